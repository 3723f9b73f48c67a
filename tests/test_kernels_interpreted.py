"""Every Triton kernel against the plain code on a CPU, run by Triton's interpreter; on a GPU `test_gpu.py` does this.

`conftest.py` selects the interpreter before Triton is first imported.
"""

from functools import partial
from importlib import metadata

import pytest
import torch
from einops import rearrange

pytest.importorskip("triton", reason="needs Triton, which CPU builds of torch lack: docs/architecture.md says how")
if torch.cuda.is_available():
    pytest.skip("here the kernels are compiled: tests/test_gpu.py", allow_module_level=True)
if not metadata.version("triton").startswith(("3.7.", "3.8.")):  # docs/architecture.md says why other versions fail
    pytest.skip(f"not with the interpreter of Triton {metadata.version('triton')}, but 3.7.1", allow_module_level=True)

from dreamer_mpc.agents import laprop
from dreamer_mpc.agents.reinforce import Prepared
from dreamer_mpc.agents.returns import lambda_return
from dreamer_mpc.kernels import (
    block_cell,
    block_walk,
    blocks,
    cell,
    cell_triton,
    fused,
    image_error,
    kl,
    norm,
    pixels,
    pooled_norm,
    two_hot,
)
from dreamer_mpc.kernels import returns as returns_kernel
from dreamer_mpc.networks import mlp, norm_mlp, normal_actor
from dreamer_mpc.networks.critic import Critic
from dreamer_mpc.networks.normal_actor import NormalActor
from dreamer_mpc.networks.two_hot import TwoHot, symexp_bins
from dreamer_mpc.world_model import ImageForm, block_rssm, decoder, norm_decoder, norm_encoder
from dreamer_mpc.world_model.block_rssm import BlockRSSM
from dreamer_mpc.world_model.encoder import preprocess
from dreamer_mpc.world_model.norm_encoder import NormEncoder
from dreamer_mpc.world_model.rssm import RSSM, Gaussian, gaussian_kl
from tests.support import interpreter
from tests.support.agents import CATEGORICAL, make_agent, make_batch
from tests.support.cell_walks import KINDS, Sizes, assert_near, walk_both

# All sizes differ, none is a power of two, and the first needs several blocks of inputs in a product.
SMALL = Sizes(deter=20, stoch=5, hidden=23, action=3, units=18, layers=3)
LONG = Sizes(deter=70, stoch=5, hidden=83, action=3, units=75, layers=2)
ROUNDED = 2**-7  # of a number that the interpreter cuts to bf16
ONE, FOUR, THIRTEEN = 1, 8, 80  # numbers of processors that give teams of so many programs for up to 32 rows


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The extended interpreter, with fresh memory full of NaN, so that memory read before it is written is detected."""
    assert cell_triton.triton.knobs.runtime.interpret, "tests/conftest.py sets TRITON_INTERPRET"
    interpreter.complete(monkeypatch)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def processors(count, monkeypatch):
    """Set the number of programs that run at once, which decides the size of teams."""
    monkeypatch.setattr(cell_triton, "_hardware", lambda device: (count, 101_376))


@pytest.fixture
def room(monkeypatch):
    """The processors and the shared memory of an H200, for kernels that choose by them whether they run."""
    monkeypatch.setattr(normal_actor.row_layers, "_hardware", lambda device: (132, 232_448))


@pytest.mark.parametrize("kind", KINDS)
def test_the_cell_s_kernels_are_the_loop(kind, monkeypatch):
    """40 rows: two teams of one program each, the second one only partly filled."""
    assert_near(*walk_both(kind, 40, monkeypatch, steps=3, sizes=SMALL), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_products_go_through_their_inputs_in_blocks(kind, monkeypatch):
    assert_near(*walk_both(kind, 2, monkeypatch, steps=2, sizes=LONG), 1e-5)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_policy_has_any_number_of_layers(layers, monkeypatch):
    assert_near(*walk_both("policy", 2, monkeypatch, steps=2, sizes=SMALL._replace(layers=layers)), 1e-5)


@pytest.mark.parametrize("memory, whole", [(101_376, True), (8_000, False)])
@pytest.mark.parametrize("team, count", [(4, FOUR), (13, THIRTEEN)])
@pytest.mark.parametrize("kind", ["observe", "rollout", "policy"])
def test_a_team_does_what_one_program_does(kind, team, count, memory, whole, monkeypatch):
    """Programs take turns at each access to the team's counter, so a program that does not wait reads old values.

    Where a product's inputs fit one block, members compute the layers of few inputs as a whole.
    """
    monkeypatch.setattr(cell_triton, "_hardware", lambda device: (count, memory))
    launch = cell_triton._launch(20, 23, torch.device("cpu"), False, alone=False)
    assert launch["G"] == team and cell_triton._wholes(launch, 23)["WHOLE"] == whole
    assert_near(*walk_both(kind, 20, monkeypatch, steps=2, sizes=SMALL), 1e-5)


def test_a_team_may_have_members_without_a_column(monkeypatch):
    processors(THIRTEEN, monkeypatch)
    assert cell_triton._launch(20, 20, torch.device("cpu"), False, alone=False)["G"] == 13
    assert_near(*walk_both("rollout", 17, monkeypatch, steps=1, sizes=SMALL), 1e-5)


@pytest.mark.parametrize("kind", ["observe", "policy"])
def test_bf16_products_are_near_fp32(kind, monkeypatch):
    """The interpreter truncates numbers where a GPU rounds them, so the error may be twice as large."""
    assert_near(*walk_both(kind, 3, monkeypatch, bf16=True, steps=2, sizes=SMALL), 4e-2)


def test_without_a_gpu_the_loop_walks(monkeypatch):
    """Also where Triton is installed."""
    assert cell.cell_triton is cell_triton and not cell._on_gpu(torch.zeros(1), 20, 5, 20, 3)
    assert not fused.on_gpu(torch.zeros(1))


@pytest.fixture
def kernels(monkeypatch):
    """Small blocks and few programs, so that there are several of each; returns whether kernels are used."""
    monkeypatch.setattr(fused.kernels, "ELEMENTS", 512)
    monkeypatch.setattr(fused.kernels, "PROGRAMS", 2)
    return lambda used: monkeypatch.setattr(fused, "on_gpu", lambda x: used)


LAYOUTS = [
    fused.SAME, fused.Layout("to_blocks", 6, 4, 2), fused.Layout("from_blocks", 4, 4, 2, 7),
    fused.Layout("from_blocks", 4, 4, 4, 16),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", fused.ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.kind}-{layout.side}")
def test_bias_act_and_its_gradients_are_the_plain_ones(layout, act, dtype, kernels):
    torch.manual_seed(0)
    members, channels = (3, 23) if layout is fused.SAME else (1, 48)
    y, bias = torch.randn(members, 48, channels, dtype=dtype), torch.randn(members, channels)
    results = []
    for used in (True, False):
        kernels(used)
        leaves = [x.clone().requires_grad_() for x in (y if used else y.float(), bias)]
        out = fused.bias_act(leaves[0] * 1, leaves[1], act, layout)
        weight = torch.linspace(0.5, 1.5, out.numel()).view_as(out)
        results.append([x.float() for x in (out, *torch.autograd.grad((out * weight).sum(), leaves))])
    assert_near(*results, 1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", fused.ACTIVATIONS)
def test_members_of_a_product_may_lie_beside_each_other_and_end_in_one_output(act, dtype, beside, kernels):
    """A product [R, K * C] or [K, R, C], in several blocks of rows, with and without the layer that follows."""
    torch.manual_seed(0)
    members, rows, channels = 3, 41, 20
    y, bias = torch.randn(rows, members * channels, dtype=dtype), torch.randn(members, channels)
    weight, offset, results = torch.randn(members, channels), torch.randn(members), []
    for used in (True, False):
        kernels(used)
        leaves = [x.clone().requires_grad_() for x in (y if used else y.float(), bias, weight, offset)]
        parts = (leaves[0] * 1).view(rows, members, channels).transpose(0, 1)
        parts = parts if beside else parts.contiguous()
        out = fused.bias_act(parts * 1 if beside else parts.clone(), bias=leaves[1], act=act)
        assert out.is_contiguous() or not used
        value = fused.bias_act_dot(parts, leaves[1], act, *leaves[2:])
        loss = (out * torch.linspace(0.5, 1.5, channels)).sum() + (value * torch.linspace(-1, 1, rows)).sum()
        results.append([x.float() for x in (out, value, *torch.autograd.grad(loss, leaves))])
    assert_near(*results, 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(
    "make", [lambda: mlp.MLP(9, 18, 2, 1), lambda: mlp.MLP(9, 18, 2, 3), lambda: Critic(9, 3, 2, 18)]
)
@pytest.mark.parametrize("filled", [0, 3])
def test_heads_in_bf16_are_near_those_in_fp32(make, filled, kernels, monkeypatch):
    """Their inputs may be filled up with zeros."""
    torch.manual_seed(0)
    net, x, results = make(), torch.randn(4, 50, 9), []
    for used in (True, False):
        kernels(used)
        monkeypatch.setattr(mlp, "on_gpu", lambda x, used=used: used)
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=used):
            y = net(torch.nn.functional.pad(given, (0, filled)) if used else given)
        assert y.dtype == torch.float32
        g = torch.linspace(0.5, 1.5, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad(y, [given, *net.parameters()], g)])
    assert_near(*results, 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_convolution_and_its_gradients_are_the_plain_ones(channels, dtype, kernels, monkeypatch):
    """In several blocks of patches, the last one only partly filled; more of them than programs on the way back."""
    torch.manual_seed(0)
    monkeypatch.setattr(blocks, "product_dtype", lambda x: dtype)
    layer, image, found = torch.nn.Conv2d(channels, 20, 4, stride=2), torch.rand(9, 16, 16, channels), []
    for used in (True, False):
        kernels(used)
        y = blocks.image_convolution(image, layer)
        g = torch.linspace(0.5, 1.5, y.numel()).view_as(y).to(y.dtype)
        found.append([x.float() for x in (y, *torch.autograd.grad(y, list(layer.parameters()), g))])
    assert found[0][0].shape == (9, 3, 3, 80)
    assert_near(*found, 1e-5 if dtype == torch.float32 else 2e-2)


def test_images_are_dequantised_as_by_the_plain_form(kernels):
    image = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)  # more than one block of images
    found = []
    for used in (True, False):
        kernels(used)
        torch.manual_seed(0)
        found.append(preprocess(image, dequantize=True))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def between(kind, bf16=False):
    """Inputs of a part of the block scan: sizes that differ and are no powers of two."""
    torch.manual_seed(6)
    rows, blocks, units, variables, classes = 5, 3, 7, 6, 5
    product = torch.bfloat16 if bf16 else torch.float32
    gain, wide = torch.rand(21) + 0.5, torch.randn(rows, 64)
    deter, gates = wide[:, 7:28], torch.randn(blocks, rows, 3 * units).to(product)
    bias = torch.randn(blocks, 1, 3 * units).to(product)
    members = torch.randn(rows, 3, 7).to(product)
    logits, noise = 3 * torch.randn(rows, variables * classes), torch.randn(rows, variables, classes)
    first = torch.tensor([True, False, False, True, False])[:, None]
    return {
        "norm_silu": (wide[:, 3:24].to(product), gain, 1e-4, product),
        "norm_silu_backward": (wide[:, 30:51], wide[:, 3:24].to(product), gain, 1e-4),
        "norm_silu members": (members.transpose(0, 1), gain.view(3, 7), 1e-4, product),
        "norm_silu_backward members": (torch.randn(3, rows, 7), members.transpose(0, 1), gain.view(3, 7), 1e-4),
        "share": (
            wide[:, 3:10].to(product),
            wide[:, 30:37].to(product),
            wide[:, 50:57].to(product),
            *gain.view(3, 7)[:2],
            1e-4,
        ),
        "gru": (gates, bias, deter, None),
        "gru_backward": (wide[:, 40:61], gates, bias, deter),
        "begin": (deter, torch.randn(rows, 30).to(product), first),
        "draw": (logits, noise, 0.01, product),
        "draw_backward": (torch.randn_like(logits), torch.randn_like(noise), logits, 0.01),
    }[kind]


NORMS = ["norm_silu", "norm_silu_backward"]
CELL = ["share", "gru", "gru_backward", "begin", "draw", "draw_backward"]
PARTS = [*NORMS, *(f"{part} members" for part in NORMS), *CELL]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_the_parts_of_the_block_cell_are_their_torch_forms(part, bf16):
    given = between(part, bf16)
    plain, name = norm if part.startswith("norm") else block_cell, part.split()[0]
    got, expected = (getattr(module, name)(*given) for module in (plain.kernels, plain))
    got, expected = (x if isinstance(x, tuple) else (x,) for x in (got, expected))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        tolerance = 1e-2 if a.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bf16", [False, True])
def test_states_are_written_into_rows_that_lie_apart(bf16, into):
    """Together with the results, in the precision of either or of both."""
    gates, bias, deter, _ = between("gru", bf16)
    logits, noise, unimix, product = between("draw", bf16)
    found = []
    for module in (block_cell.kernels, block_cell):
        states = torch.full((5, 60), -7.0, dtype=into)
        new, given = module.gru(gates, bias, deter, states[:, 5:26])
        stoch = module.draw_into(states[:, 26:56], logits, noise, unimix, product)
        assert (new.dtype, given.dtype, stoch.dtype) == (torch.float32, product, product)
        torch.testing.assert_close(states[:, 5:26].float(), new, rtol=ROUNDED, atol=0)
        assert torch.equal(states[:, 26:56].float(), stoch.float())
        found.append([x.float() for x in (new, given, stoch, states)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=ROUNDED, atol=0)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("into", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, units", [(5, 7), (150, 70), (300, 70)])
def test_gates_and_what_becomes_of_them_are_their_torch_forms(rows, units, into, monkeypatch):
    """In one kernel, of several blocks of rows, units and inputs; in rows that lie apart."""
    torch.manual_seed(18)
    size, found = 3 * units, []
    hidden = torch.randn(rows, size + 9)[:, 5:-4].bfloat16()
    weight = (torch.randn(3, units, size) / units**0.5).bfloat16()
    bias, before = torch.randn(3, 1, size).bfloat16(), torch.randn(rows, size + 2)[:, 1:-1]
    weights = block_cell.BlockWeights(*[None] * 10, weight, bias, *[None] * 4)._replace(own=weight)
    for used in (True, False):
        monkeypatch.setattr(block_cell, "fuses", lambda x, used=used: used)
        monkeypatch.setattr(block_cell, "_added_bias", lambda w, x: w.gates_bias)
        states = torch.full((rows, size + 5), -7.0, dtype=into or torch.float32)
        place = None if into is None else states[:, 2:-3]
        gates, new, given = block_cell.gated(hidden, weights, before, place, True)
        assert (gates.dtype, new.dtype, given.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
        if into is not None:
            torch.testing.assert_close(place.float(), new, rtol=ROUNDED, atol=0)
        assert (states[:, :2] == -7).all() and (states[:, -3:] == -7).all()
        again = block_cell.gated(hidden, weights, before, place, False)
        assert torch.equal(again[1], new) and (again[0] is None) == used
        found.append([x.float() for x in (gates, new, given)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)


def test_gumbel_noise_is_its_torch_form(monkeypatch):
    """At both cuts and around 0, where the formula changes; more than one block."""
    noise = torch.cat([torch.linspace(-11, 11, 2001), torch.tensor([0.0, 1.6448, 1.6449, torch.inf, -torch.inf])])
    found = []
    for used in (True, False):
        monkeypatch.setattr(block_rssm, "fuses", lambda x, used=used: used)
        found.append(block_rssm.gumbel(noise.view(-1, 17)))
        assert block_rssm.gumbel(torch.tensor([torch.nan])).isnan()
    torch.testing.assert_close(*found, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(1, 7), (700, 7), (3, 5, 7)])
def test_the_action_s_layer_is_its_torch_form(shape, bf16, monkeypatch):
    """Of actions beyond [-1, 1] too, beside each other in memory or not."""
    torch.manual_seed(13)
    rssm = BlockRSSM(3, 5, deter=12, stoch=3, classes=4, hidden=23, blocks=3, bf16=bf16)
    with torch.no_grad():
        for parameter in rssm.action_input.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    action, found = 2 * torch.randn(shape)[..., 2:5], []
    for used in (True, False):
        monkeypatch.setattr(block_rssm, "fuses", lambda x, used=used: used)
        with torch.no_grad():
            found.append(rssm._moved(action))
    assert found[0].dtype == found[1].dtype
    torch.testing.assert_close(*found, **({"rtol": 2e-2, "atol": 2e-2} if bf16 else {"rtol": 1e-5, "atol": 1e-5}))
    monkeypatch.setattr(block_rssm, "fuses", lambda x: True)
    assert rssm._moved(action).requires_grad  # with gradients the plain form computes it


@pytest.mark.parametrize("actions", [1, 6, 19])
@pytest.mark.parametrize("shape", [(20,), (7, 20), (3, 5, 20)])
def test_the_policy_s_gaussian_is_its_torch_form(shape, actions, monkeypatch):
    """Several blocks of inputs and of rows, and a last one of each that is partly filled."""
    monkeypatch.setattr(normal_actor.kernels, "PRODUCTS", 64)
    torch.manual_seed(14)
    actor = NormalActor(20, actions, layers=1, hidden=37, min_std=0.2, max_std=0.9, scale=1.0)
    state, found = 3 * torch.randn(shape), []
    with torch.no_grad():
        actor.layers.last.bias.copy_(torch.linspace(-2, 2, 2 * actions))
        for used in (True, False):
            monkeypatch.setattr(normal_actor, "fuses", lambda x, used=used: used)
            found.append(actor(state))
    for got, expected in zip(*found, strict=True):
        assert got.shape == (*shape[:-1], actions) and got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(normal_actor, "fuses", lambda x: True)
    assert actor(state).mean.requires_grad  # with gradients the plain form computes it


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("layers, actions", [(1, 3), (3, 6), (4, 19)])
@pytest.mark.parametrize("shape", [(20,), (37, 20), (3, 5, 20)])
def test_the_policy_s_samples_are_those_of_its_gaussian(shape, layers, actions, bf16, room, monkeypatch):
    """Several blocks of rows, of which the last is partly filled; states and noise in rows that lie apart."""
    torch.manual_seed(14)
    actor = NormalActor(20, actions, layers, hidden=23, min_std=0.2, max_std=0.9, scale=1.0)
    wide, noise = torch.randn(*shape[:-1], 50), torch.randn(*shape[:-1], actions + 3)[..., 2:-1]
    state, found = 3 * wide[..., 7:27], []
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for used in (True, False):
        monkeypatch.setattr(normal_actor, "fuses", lambda x, used=used: used)
        sample = actor.sampler(bf16)
        monkeypatch.setattr(normal_actor, "fuses", lambda x: False)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            found.append(sample(state, noise))
        assert found[-1].shape == (*shape[:-1], actions) and found[-1].dtype == torch.float32
        assert not found[-1].requires_grad
        torch.manual_seed(3)
        drawn = sample(state, None)
        torch.manual_seed(3)
        assert torch.equal(drawn, sample(state, torch.randn(*shape[:-1], actions)))
    torch.testing.assert_close(*found, **({"rtol": 5e-2, "atol": 5e-2} if bf16 else {"rtol": 1e-5, "atol": 1e-5}))


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sizes", [(5, 7, 3, 4), (37, 23, 6, 5), (70, 20, 3, 83)])
def test_the_prior_s_draws_are_those_of_its_layers(sizes, bf16, into, room, monkeypatch):
    """Several blocks of rows and of variables, also in several programs; what the way back needs as well."""
    rows, width, variables, classes = sizes
    torch.manual_seed(15)
    units, product = variables * classes, torch.bfloat16 if bf16 else torch.float32
    layer, gains = torch.randn(width, width) / width**0.5, torch.rand(2, width) + 0.5
    last, second_bias = (1 if bf16 else 8) * torch.randn(units, width), 0.3 * torch.randn(width)
    bias = 0.3 * torch.randn(units)
    weights = block_walk.PriorWeights(
        None, None, gains[0], layer.to(product), second_bias.to(product), gains[1], last, bias
    )
    pre, noise = torch.randn(rows, 2 * width)[:, 3 : 3 + width].to(product), torch.randn(rows, variables, classes)
    noise = (60 if bf16 else 6) * noise  # decides the draws where numbers are cut to bf16
    found = []
    for used in (True, False):
        for module in (block_walk, block_cell, norm):
            monkeypatch.setattr(module, "fuses", lambda x, used=used and module is block_walk: used)
        states = torch.full((rows, units + 9), -7.0, dtype=into)
        given = (pre, weights, noise, 0.01, 1e-4, states[:, 5:-4])
        stoch, second_pre, logits = block_walk.draw_prior(*given, save=True)
        assert (stoch.dtype, second_pre.dtype, logits.dtype) == (product, product, torch.float32)
        assert torch.equal(states[:, 5:-4].float(), stoch.float())
        assert (states[:, :5] == -7).all() and (states[:, -4:] == -7).all()
        again = torch.zeros(rows, units, dtype=into)
        assert torch.equal(block_walk.draw_prior(*given[:-1], again, save=False)[0], stoch)
        found.append([x.float() for x in (second_pre, logits, stoch, again)])
    for got, expected, tolerance in zip(*found, (2e-2, 0.2, 0, 0) if bf16 else (1e-5, 1e-4, 0, 0), strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows", [5, 37])
def test_the_inputs_of_a_step_are_those_of_their_layers(rows, bf16, room, monkeypatch):
    """Several blocks of rows and of the numbers of stoch, in rows that lie apart; actions beyond [-1, 1] too."""
    torch.manual_seed(16)
    rssm = BlockRSSM(3, 5, deter=12, stoch=20, classes=4, hidden=23, blocks=3, bf16=bf16)
    with torch.no_grad():
        for parameter in rssm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with monkeypatch.context() as patch:
        patch.setattr(block_walk, "fuses", lambda x: True)
        weights, found = rssm._constants(), []
    product, wide = weights.cell.own.dtype, torch.randn(rows, 120)
    deter_pre, stoch, action = wide[:, 3:26].to(product), wide[:, 30:110].to(product), 2 * wide[:, 112:115]
    monkeypatch.setattr(block_rssm, "fuses", lambda x: False)
    for used in (True, False):
        for module in (block_walk, block_cell, norm):
            monkeypatch.setattr(module, "fuses", lambda x, used=used and module is block_walk: used)
        with torch.no_grad():
            given = (deter_pre, stoch, action, rssm._moved, weights, 1e-4)
            inputs = block_walk._enter(*given, save=True)
            assert inputs.deter_pre is deter_pre and inputs.stoch_pre.dtype == inputs.shared.dtype == product
            again = block_walk._enter(*given, save=False)
        assert torch.equal(again.shared, inputs.shared) and (again.stoch_pre is None) == used
        found.append([x.float() for x in inputs[1:]])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(
            got, expected, **({"rtol": 3e-2, "atol": 3e-2} if bf16 else {"rtol": 1e-5, "atol": 1e-5})
        )


def test_layers_that_do_not_fit_a_program_s_memory_are_launches_of_their_own(room):
    """By their width, the precision of their weights, the classes of a variable, the actions, the number of rows."""
    kernels = normal_actor.row_layers

    def of_prior(width, classes=16, rows=1024, dtype=torch.bfloat16):
        return kernels.fits_prior(torch.empty(rows, width, dtype=dtype), torch.empty(rows, 2, classes))

    def of_policy(width, actions=6, rows=1024, dtype=torch.bfloat16):
        return kernels.fits_policy(torch.empty(rows, width, dtype=dtype), actions)

    for fits in (of_prior, of_policy):
        assert fits(256) and fits(7) and fits(128, dtype=torch.float32)
        assert not fits(257) and not fits(256, dtype=torch.float32) and not fits(64, rows=5000)
    assert of_prior(200, 64) and not of_prior(200, 65)
    assert of_policy(200, 64) and not of_policy(200, 65)
    inputs = [torch.empty(1024, width) for width in (256, 257)] + [torch.empty(3000, 256)]
    assert [kernels.fits_inputs(x) for x in inputs] == [True, False, False]


def test_without_the_memory_a_policy_samples_by_its_own_launches(monkeypatch):
    monkeypatch.setattr(normal_actor.row_layers, "_hardware", lambda device: (132, 1_000))
    monkeypatch.setattr(normal_actor, "fuses", lambda x: True)
    actor, state, noise = NormalActor(20, 3, layers=2, hidden=23), torch.randn(4, 20), torch.randn(4, 3)
    with torch.no_grad():
        expected = actor(state).sample(noise)
    assert torch.equal(actor.sampler(False)(state, noise), expected)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("shape", [(11, 21), (3, 11, 21)])
def test_the_norm_of_a_sum_with_a_bias_is_its_torch_form_with_its_gradients(shape, apart, monkeypatch):
    """Rows of members side by side or not: the gradient of x has the strides of x."""
    monkeypatch.setattr(norm.kernels, "ELEMENTS", 64)  # several blocks and programs
    monkeypatch.setattr(norm.kernels, "PROGRAMS", 9)
    torch.manual_seed(11)
    x, g = torch.randn(shape), torch.randn(shape)
    x = x.transpose(0, -2).contiguous().transpose(0, -2) if apart else x
    gain, bias = torch.rand(*shape[:-2], 21) + 0.5, torch.randn(*shape[:-2], 21)
    leaves, found = [t.requires_grad_() for t in (x, gain, bias)], []
    for y in (norm.NormSiLU.apply(x, gain, 1e-4, bias), norm.norm_silu(x + bias[..., None, :], gain, 1e-4, x.dtype)):
        found.append((y, *torch.autograd.grad(y, leaves, g)))
    assert found[0][1].stride() == x.stride()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    y = norm.NormSiLU.apply(x.detach(), gain.detach(), 1e-4, bias)
    torch.testing.assert_close(torch.autograd.grad(y, bias, g)[0], found[1][3])


def test_the_norm_of_bf16_numbers_is_given_in_fp32():
    torch.manual_seed(14)
    x, gain, bias = torch.randn(3, 5, 7).bfloat16(), torch.rand(3, 7), torch.randn(3, 7)
    leaves, g, found = [t.requires_grad_() for t in (x, gain, bias)], torch.randn(3, 5, 7), []
    plain = norm.norm_silu(x.float() + bias[:, None], gain, 1e-4, torch.float32)
    for y in (norm.NormSiLU.apply(x, gain, 1e-4, bias, torch.float32), plain):
        assert y.dtype == torch.float32
        found.append([t.float() for t in (y, *torch.autograd.grad(y, leaves, g))])
    for a, b, tolerance in zip(*found, (1e-5, 1e-2, 1e-5, 1e-5), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("into_blocks", [False, True])
@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("shape", [(3, 12, 4, 8), (1, 16, 8, 4)])
def test_what_follows_a_convolution_is_its_torch_form_with_its_gradients(
    shape, pool, in_blocks, into_blocks, monkeypatch
):
    monkeypatch.setattr(pooled_norm.kernels, "ELEMENTS", 64)  # several blocks and programs
    monkeypatch.setattr(pooled_norm.kernels, "PROGRAMS", 2)
    torch.manual_seed(7)
    norm = torch.nn.RMSNorm(shape[1], eps=1e-4)
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn(shape[1]))
    x, bias = torch.randn(shape), torch.randn(shape[1]).requires_grad_()
    x[:, :, :2, :2] = x[:, :, :1, :1]  # equal numbers in a window
    if in_blocks:
        x = rearrange(x, "m c (h p) (w q) -> m (p q c) h w", p=2, q=2)
    x.requires_grad_()
    y = pooled_norm.pooled_norm(x, bias, norm, pool, in_blocks, into_blocks)
    g = torch.randn(y.shape)
    expected = (y, *torch.autograd.grad(y, (x, bias, norm.weight), g))
    given = (x.movedim(1, -1), bias, norm.weight, 1e-4, pool, in_blocks, into_blocks)
    y = pooled_norm.PooledNorm.apply(*given).movedim(-1, 1)
    for a, b in zip((y, *torch.autograd.grad(y, (x, bias, norm.weight), g)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("downsampling", ["max-pool", "strided"])
@pytest.mark.parametrize("channels, size", [((5, 6, 64, 64), 64), ((2, 3, 4, 5), 84)])
def test_an_encoder_with_kernels_is_the_plain_one_with_its_gradients(channels, size, downsampling, monkeypatch):
    """Layers on blocks follow each other, and a layer on pixels those on blocks; maps of 84 pixels become odd ones."""
    monkeypatch.setattr(pooled_norm.kernels, "PROGRAMS", 2)
    monkeypatch.setattr(pooled_norm.kernels, "ELEMENTS", 2**16)
    torch.manual_seed(16)
    net, found = NormEncoder(channels, downsampling, ImageForm(size)), []
    image = torch.randint(256, (2, size, size, 3), dtype=torch.uint8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for used in (True, False):
        for module in (pixels, pooled_norm, norm_encoder):
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        y = net(image)
        g = torch.linspace(-1, 1, y.numel()).view(y.shape)
        found.append((y, *torch.autograd.grad(y, list(net.parameters()), g)))
    assert_near(*found, 1e-4)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [norm_mlp.NormMLP, partial(norm_mlp.NormEnsemble, members=3)])
@pytest.mark.parametrize("filled", [False, True])
def test_perceptrons_with_kernels_are_the_plain_ones_with_their_gradients(filled, kind, layers, monkeypatch):
    torch.manual_seed(15)
    net, x, found = kind(6, 10, layers, 7, filled=filled), torch.randn(2, 5, 6), []
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for used in (True, False):
        monkeypatch.setattr(norm_mlp, "fuses", lambda x, used=used: used)
        given = x.clone().requires_grad_()
        y = net(given)
        assert y.shape[-1] == (8 if used and filled else 7)
        g = torch.linspace(-1, 1, y[..., :7].numel()).view(y[..., :7].shape)
        found.append((y[..., :7], *torch.autograd.grad(y[..., :7], [given, *net.parameters()], g)))
        constant = {name: weight.detach() for name, weight in net.named_parameters()}
        of_x = torch.autograd.grad(torch.func.functional_call(net, constant, (given,))[..., :7], [given], g)
        torch.testing.assert_close(of_x[0], found[-1][1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_walk_is_its_torch_form_with_its_gradients(bf16, precision, monkeypatch):
    """Its first step reads deter and stoch side by side in memory; all others what the step before wrote as states."""
    torch.manual_seed(12)
    rssm = BlockRSSM(2, 5, deter=12, stoch=3, classes=4, hidden=6, blocks=3, bf16=bf16)
    state, actions, g, found = torch.randn(5, 24), 2 * torch.rand(3, 5, 2), torch.randn(3, 5, 24), []
    noise = 6 * torch.randn(3, 5, 12)  # decides the draws, so that rounding changes none
    for used in (True, False):
        for module in (norm, block_cell, block_walk, block_rssm):
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        with torch.no_grad():
            path = torch.empty(4, 5, 24, dtype=precision)
            rounded = rssm.walk(state, lambda k, _: actions[k], noise, False, path)[1].states
        leaves = [state.clone().requires_grad_(), actions.clone().requires_grad_()]
        _, walked = rssm.walk(leaves[0], lambda k, _: actions[k], noise, save=True)
        states = rssm.differentiable_states(*leaves, walked)
        assert rounded.dtype == (precision or torch.float32)
        torch.testing.assert_close(rounded.float(), states, rtol=ROUNDED, atol=0)
        found.append((states, *torch.autograd.grad(states, leaves, g)))
    assert_near(*found, 4e-2 if bf16 else 1e-4)


def test_imagination_with_kernels_is_the_plain_one(room, monkeypatch):
    """With noise and weights prepared before, as on a GPU."""
    agent, found = make_agent(behavior={"kind": "v3"}, world=CATEGORICAL), []
    learner, rssm = agent.learner, agent.model.world_model.rssm
    with torch.no_grad():
        for p in agent.model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    steps, start = learner.config.horizon, torch.randn(5, agent.state_dim)
    noise, draws = torch.randn(steps, 5, agent.model.noise_dim), torch.randn(steps, 5, agent.model.action_dim)
    for used in (True, False):
        for module in (norm, block_cell, block_walk, block_rssm, norm_mlp, normal_actor):
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        prepared = Prepared(rssm.prepared(noise), draws, agent.model.actor.sampler(False))
        with torch.no_grad():
            found.append(learner._imagine(start, prepared))
    assert_near(*found, 1e-4)


def observed(rssm):
    """States, posterior and gradients of a sequence, the weights' included."""
    torch.manual_seed(18)
    sizes = (5, 2, rssm.state_dim - rssm.deter)
    embed, action, noise = (3 * torch.randn(4, 3, size) for size in sizes)
    is_first = torch.zeros(4, 3, dtype=torch.bool)
    is_first[2, 0] = is_first[1, 1] = True
    embed.requires_grad_()
    states, posterior = rssm.observe(embed, action, is_first, torch.rand(3, rssm.state_dim), noise)
    found = [states, *(posterior if isinstance(posterior, tuple) else [posterior])]
    value = sum((torch.linspace(-1, 1, x.numel()).view_as(x) * x).sum() for x in found)
    inputs = [embed, *(p for name, p in rssm.named_parameters() if not name.startswith("prior"))]
    return [*found, *torch.autograd.grad(value, inputs)]


def test_v3_s_sequence_with_kernels_is_the_plain_sequence(monkeypatch):
    torch.manual_seed(17)
    rssm, found = BlockRSSM(2, 5, deter=12, stoch=3, classes=4, hidden=6, blocks=3), []
    for used in (True, False):
        for module in (norm, block_cell, block_rssm):
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        found.append(observed(rssm))
    assert_near(*found, 1e-4)


def test_the_paper_s_sequence_with_kernels_is_the_plain_sequence(monkeypatch):
    torch.manual_seed(17)
    rssm, found = RSSM(2, 5, deter=12, stoch=3, hidden=11), []
    for used in (True, False):
        monkeypatch.setattr(cell, "_on_gpu", lambda *_, used=used: used)
        found.append(observed(rssm))
    assert_near(*found, 1e-5)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(two_hot.kernels, "ELEMENTS", 32)  # several blocks and programs
    monkeypatch.setattr(two_hot.kernels, "PROGRAMS", 4)
    return lambda used: monkeypatch.setattr(two_hot, "fuses", lambda x: used)


@pytest.mark.parametrize("fill", [0, 1, 9])
@pytest.mark.parametrize("bins", [7, 8])
@pytest.mark.parametrize("second", [False, True])
def test_cross_entropies_over_bins_are_the_plain_ones(second, bins, fill, small_blocks):
    """Targets between bins, at one, at and beyond the ends; logits of which the last step is not read, nor `fill`."""
    torch.manual_seed(8)
    bins = symexp_bins(bins, 3.0)
    target = torch.tensor([-100.0, bins[0], -0.7, 0.0, bins[-2], 2.5, bins[-1], 100.0, 1.0, -3.0]).view(2, 5)
    given = (target, 3 * torch.randn(3, 2, 5), 0.4) if second else (target,)
    leaf, g, found = 2 * torch.randn(3, 3, 5, len(bins) + fill), torch.randn(3, 2, 5), []
    leaf[..., len(bins) :] = torch.nan
    for used in (True, False):
        small_blocks(used)
        logits = leaf.clone().requires_grad_()
        loss = TwoHot(logits[:, :-1], bins).loss(*given)
        found.append((loss, *torch.autograd.grad(loss, logits, g)))
        assert not found[-1][1][..., len(bins) :].any()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_cross_entropy_to_a_target_that_is_not_finite_is_nan(small_blocks):
    small_blocks(True)
    logits = torch.randn(4, 8, requires_grad=True)
    loss = TwoHot(logits, symexp_bins(7, 3.0)).loss(torch.tensor([torch.inf, torch.nan, -torch.inf, 1.0]))
    assert loss.isnan().tolist() == [True, True, True, False]
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.isnan().any(-1).tolist() == [True, True, True, False]
    assert not grad[:, 7].any(), "what fills up the rows has no gradient"


@pytest.mark.parametrize("readout", ["real", "symlog"])
@pytest.mark.parametrize("bins", [7, 8])
def test_means_over_bins_are_the_plain_ones(bins, readout, small_blocks):
    torch.manual_seed(9)
    logits, bins, found = torch.randn(3, 2, 5, bins + 3), symexp_bins(bins, 3.0), []
    logits[..., len(bins) :] = torch.nan
    logits[1, 1, 3, : len(bins)] = 0
    for used in (True, False):
        small_blocks(used)
        found.append(TwoHot(logits, bins, readout).mean)
        assert found[-1][1, 1, 3] == 0
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elements", [64, 256])
@pytest.mark.parametrize("side, row, sigmoid", [(2, 8, True), (4, 12, False)], ids=["v3", "paper"])
def test_the_error_of_images_in_blocks_is_its_torch_form_with_its_gradients(
    side, row, sigmoid, elements, dtype, monkeypatch
):
    """v3's rows of two pixels of 3 channels are filled up to 8; a block has fewer numbers than an image, or more."""
    torch.manual_seed(10)
    monkeypatch.setattr(image_error.kernels, "ELEMENTS", elements)
    leaf, target, found = torch.randn(3, 2, 5, side * row), torch.rand(3, 3, 2 * side, 5 * side), []
    for used in (True, False):
        monkeypatch.setattr(image_error, "fuses", lambda x, used=used: used)
        y, bias = leaf.to(dtype).requires_grad_(), torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
        error = image_error.image_error(y.movedim(-1, 1), bias, target, side, sigmoid)
        found.append([x.float() for x in (error, *torch.autograd.grad(error, (y, bias), torch.tensor([1.0, -2, 3])))])
    assert not found[0][1].unflatten(-1, (side, row))[..., side * 3 :].any()
    assert_near(*found, 1e-5 if dtype == torch.float32 else 1e-2)


def test_the_decoder_s_error_is_half_the_squared_distance_of_its_images(monkeypatch):
    torch.manual_seed(0)
    net, state, image = decoder.Decoder(6, 16, (8, 6, 4)), torch.randn(1, 2, 6), torch.rand(1, 2, 64, 64, 3)
    monkeypatch.setattr(image_error.kernels, "ELEMENTS", 16_384)
    found = []
    for used in (True, False):
        for module in (decoder, image_error):
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        error = net.error(state, image.movedim(-1, -3))
        found.append((error, *torch.autograd.grad(error, list(net.parameters()), torch.tensor([[1.0, -2]]))))
    assert_near(*found, 1e-4)


@pytest.mark.parametrize("shape", [(5, 7, 11), (16, 4)])
def test_the_kl_of_gaussians_and_its_gradients_are_the_plain_ones(shape, monkeypatch):
    """Means are parts of wider rows, and the last block of rows is only partly filled, or full."""
    torch.manual_seed(11)
    leaves, found = [torch.randn(*shape[:-1], 2 * shape[-1]).requires_grad_() for _ in range(2)], []
    g = torch.linspace(-1, 2, leaves[0].shape[:-1].numel()).view(shape[:-1])
    for used in (True, False):
        monkeypatch.setattr(kl, "fuses", lambda x, used=used: used)
        p, q = (Gaussian(mean, raw.exp()) for mean, raw in (leaf.chunk(2, dim=-1) for leaf in leaves))
        value = gaussian_kl(p, q)
        found.append((value, *torch.autograd.grad(value, leaves, g)))
    assert_near(*found, 1e-5)


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("measured", [False, True])
def test_laprop_s_kernels_are_their_torch_form(measured, warmup, monkeypatch):
    """Tensors of several blocks and of one number, in two groups; clipped gradients and others; two skipped steps."""
    monkeypatch.setattr(laprop.kernels, "BLOCK", 32)
    monkeypatch.setattr(laprop.kernels, "MANY", 2)
    found = []
    for used in (True, False):
        monkeypatch.setattr(laprop, "fuses", lambda tensors, used=used: used)
        torch.manual_seed(13)
        drawn = [9 * torch.randn(7, 11), torch.randn(()), torch.zeros(40), torch.randn(33)[1:], torch.randn(9)]
        params = [torch.nn.Parameter(x) for x in drawn]
        groups = [{"params": params[:4]}, {"params": params[4:], "lr": 0.1}]
        optimizer, norms = laprop.LaProp(groups, lr=0.02, betas=(0.8, 0.95), warmup=warmup), []
        for step in range(6):
            skipped = step in (0, 3)
            for p in params:
                p.grad = torch.full_like(p, torch.nan) if skipped else torch.randn_like(p)
            if measured:
                norms.append(optimizer.grad_norm())
            optimizer.found_inf = torch.tensor(float(skipped))
            optimizer.step()
        found.append([x for p in params for x in (p.detach(), *optimizer.state[p].values())] + norms)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("shape", [(1, 3), (7, 5, 3)])
def test_lambda_returns_in_one_launch_are_those_of_the_loop_with_their_gradients(shape, ends, monkeypatch):
    """Several programs, the last one with columns to spare; inputs that are parts of longer tensors."""
    monkeypatch.setattr(returns_kernel.kernels, "COLUMNS", 4)
    torch.manual_seed(14)
    r, v, g = torch.randn(3, shape[0] + 1, *shape[1:])[:, 1:]
    inputs, found = [r, v] + [torch.rand(*shape[1:], shape[0]).movedim(-1, 0)] * ends, []
    for used in (True, False):
        monkeypatch.setattr(returns_kernel, "fuses", lambda x, used=used: used)
        given = [x.clone().requires_grad_() for x in inputs]
        y = lambda_return(*given[:2], 0.9, 0.7, *given[2:])
        found.append((y, *torch.autograd.grad(y, given, g)))
    assert_near(*found, 1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4, 9])
def test_pixels_in_blocks_are_their_torch_form(channels, monkeypatch):
    monkeypatch.setattr(pixels.kernels, "ELEMENTS", 64)
    image, found = torch.randint(256, (3, 6, 10, channels), dtype=torch.uint8), []
    for used in (True, False):
        monkeypatch.setattr(pixels, "fuses", lambda x, used=used: used)
        found.append(pixels.centred_blocks(image, torch.float32))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_an_update_of_v3_with_kernels_is_the_plain_one(monkeypatch):
    """All but those of the recurrent cell together: logits in filled rows, maps in blocks, norms for the optimizer."""
    modules = (norm, two_hot, pooled_norm, image_error, norm_mlp, norm_encoder, norm_decoder, laprop)
    for module in modules[:4]:
        monkeypatch.setattr(module.kernels, "PROGRAMS", 2, raising=False)
        monkeypatch.setattr(module.kernels, "ELEMENTS", 2**17)  # the interpreter's time is that of single operations
    found = []
    for used in (True, False):
        for module in modules:
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        agent = make_agent(behavior={"kind": "v3"}, world=CATEGORICAL, kind="laprop", lr=1e-3, warmup=0)
        with torch.no_grad():
            for p in agent.model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        torch.manual_seed(17)
        metrics = agent.update(make_batch()).metrics
        found.append([*metrics.values(), *(p.detach() for p in agent.model.parameters())])
    assert_near(*found, 2e-3)


def test_laprop_s_kernels_take_the_gradients_of_the_step(monkeypatch):
    """Not those whose norm was read before."""
    monkeypatch.setattr(laprop, "fuses", lambda tensors: True)
    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    for p, read in zip(params, (True, False)):
        optimizer = laprop.LaProp([p], lr=0.1, warmup=0)
        other = torch.full_like(p, 1e3)
        if read:
            p.grad = other
            optimizer.grad_norm()
        p.grad = torch.linspace(-1, 1, 5)
        optimizer.step()
    assert torch.equal(*params)
