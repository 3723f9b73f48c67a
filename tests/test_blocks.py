"""The convolutions in blocks of pixels against the plain layers, values and gradients, in float64."""

import pytest
import torch
from torch.nn import functional as F

from dreamer_mpc.kernels.fused import Layout, bias_act, from_blocks, to_blocks
from dreamer_mpc.world_model.decoder import Decoder, SquaredError
from dreamer_mpc.world_model.encoder import Encoder

DOUBLE = {"dtype": torch.float64, "requires_grad": True}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def assert_same_function(found, expected, inputs):
    """Same values, and same gradients of a weighted sum."""
    found, expected = found(), expected()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    grads = [torch.autograd.grad((y * weight).sum(), inputs) for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_blocks_hold_their_pixels_row_by_row():
    x = torch.arange(2.0 * 4 * 6 * 3).view(2, 4, 6, 3)
    blocks = to_blocks(x)
    assert blocks.shape == (2, 2, 3, 12)
    assert torch.equal(blocks[1, 1, 2], torch.cat([x[1, 2, 4], x[1, 2, 5], x[1, 3, 4], x[1, 3, 5]]))
    assert torch.equal(from_blocks(blocks), x)


@pytest.mark.parametrize("layout", ["plain", "channels last"])
def test_the_encoder_in_blocks_is_the_plain_one(layout):
    encoder = Encoder((4, 8, 8, 12)).double()
    image = torch.randn(2, 64, 64, 3, **DOUBLE).movedim(-1, -3)
    image = image if layout == "channels last" else image.contiguous()
    inputs = [image, *encoder.parameters()]
    assert_same_function(lambda: encoder.in_blocks(image), lambda: encoder.layers(image), inputs)


def test_the_decoder_with_kernels_is_the_plain_one():
    decoder = Decoder(6, 16, (8, 6, 4)).double()
    state = torch.randn(2, 3, 6, **DOUBLE)

    def run(kernels):
        decoder.kernels = kernels
        return decoder(state)

    assert_same_function(lambda: run(True), lambda: run(False), [state, *decoder.parameters()])


@pytest.mark.parametrize("act", ["none", "relu", "elu"])
@pytest.mark.parametrize("layout", [Layout(), Layout("to_blocks", 4, 6, 2), Layout("from_blocks", 4, 6, 2, 7)])
def test_bias_act_is_bias_activation_and_rearrangement(act, layout):
    if layout.kind == "from_blocks":
        layout = layout._replace(width=4)
    rows = 3 * layout.height * layout.width
    y, bias = torch.randn(1, rows, 8, **DOUBLE), torch.randn(1, 8, **DOUBLE)

    def expected():
        x = {"none": lambda v: v, "relu": F.relu, "elu": F.elu}[act](y + bias[:, None])
        return x if layout == Layout() else layout.apply(x.view(3, layout.height, layout.width, 8))

    def found():
        out = bias_act(y * 1, bias, act, Layout() if layout == Layout() else layout)
        assert layout == Layout() or out.shape == (3, *layout.shape(8))
        return out.reshape(expected().shape)

    assert_same_function(found, expected, [y, bias])


def test_squared_error_is_half_the_squared_distance():
    image, target = torch.randn(2, 3, 4, 5, **DOUBLE), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = 0.5 * (image - target).square().sum((-1, -2, -3))
    torch.testing.assert_close(SquaredError.apply(image, target), expected)
    assert torch.autograd.gradcheck(lambda x: SquaredError.apply(x, target), image)
    rounded = image.detach().bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(SquaredError.apply(rounded, target.float()).sum(), rounded)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.double(), rounded.double() - target, rtol=1e-2, atol=1e-2)
