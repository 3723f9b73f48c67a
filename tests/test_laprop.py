"""LaProp against a plain loop over scalars in float64."""

import copy
import math

import pytest
import torch

from dreamer_mpc.agents.laprop import LaProp, clip_by_norm
from dreamer_mpc.kernels.graphs import Captured

SETTINGS = dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, clip=0.3, clip_floor=1e-3, warmup=4)
SIZES = {"large": (3, 2), "tiny": (4,), "zero": (2, 2), "scalar": ()}
SCALES = {"large": 100.0, "tiny": 1e-2, "zero": 0.0, "scalar": 1.0}
STEPS = 12


def draw(seed):
    """Standard normal numbers in the shape of each tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in SIZES.items()}


def make_params(dtype=torch.float64):
    return [torch.nn.Parameter((SCALES[name] * x).to(dtype)) for name, x in draw(0).items()]


def gradients(step):
    """Of another size in every step: those of `large` are never clipped, those of `tiny` and `zero` always."""
    return [(1 + 0.2 * step) * x for x in draw(step).values()]


def descend(optimizer, params, grads, found_inf=None):
    for parameter, grad in zip(params, grads):
        parameter.grad = grad.to(parameter.dtype)
    if found_inf is not None:
        optimizer.found_inf = torch.tensor(found_inf, device=params[0].device)
    optimizer.step()


class Reference:
    """The optimizer of DreamerV3, number by number."""

    def __init__(self, tensors, lr, betas, eps, clip, clip_floor, warmup):
        self.tensors = [x.detach().double().flatten().tolist() for x in tensors]
        self.lr, self.betas, self.eps, self.clip, self.floor, self.warmup = lr, betas, eps, clip, clip_floor, warmup
        self.squares = [[0.0] * len(x) for x in self.tensors]
        self.averages = [[0.0] * len(x) for x in self.tensors]
        self.updates = 0

    def step(self, grads):
        """One update; returns for each tensor whether its gradient was clipped."""
        rate = self.lr * min(1.0, self.updates / self.warmup) if self.warmup else self.lr
        self.updates += 1
        return [self._step_tensor(i, g.flatten().tolist(), rate) for i, g in enumerate(grads)]

    def _step_tensor(self, i, grad, rate):
        beta1, beta2 = self.betas
        norm = math.sqrt(sum(g * g for g in grad))
        limit = self.clip * max(self.floor, math.sqrt(sum(p * p for p in self.tensors[i])))
        for j, g in enumerate(grad):
            if norm > limit:
                g = g * limit / norm
            self.squares[i][j] = beta2 * self.squares[i][j] + (1 - beta2) * g * g
            size = math.sqrt(self.squares[i][j] / (1 - beta2**self.updates))
            self.averages[i][j] = beta1 * self.averages[i][j] + (1 - beta1) * g / (size + self.eps)
            self.tensors[i][j] -= rate * self.averages[i][j] / (1 - beta1**self.updates)
        return norm > limit

    def same(self, params, **tolerance):
        for parameter, expected in zip(params, self.tensors):
            found = parameter.detach().double().flatten()
            torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **tolerance)


EXACT = dict(rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("warmup", [0, 4, 1000])
def test_updates_are_the_plain_loop_s(warmup):
    params, settings = make_params(), SETTINGS | {"warmup": warmup}
    optimizer, reference = LaProp(params, **settings), Reference(params, **settings)
    for step in range(1, STEPS + 1):
        clipped = reference.step(gradients(step))
        assert clipped[:3] == [False, True, True], "the clipping binds some tensors and not others"
        descend(optimizer, params, gradients(step))
        reference.same(params, **EXACT)


def test_the_default_settings_are_the_recipe_s():
    params = make_params(torch.float32)
    reference = Reference(params, 4e-5, (0.9, 0.999), 1e-20, 0.3, 1e-3, 1000)
    optimizer = LaProp(params)
    for step in range(1, 100):
        descend(optimizer, params, gradients(step))
        reference.step(gradients(step))
    moved = (params[2].detach().double().flatten() / torch.tensor(reference.tensors[2]).double() - 1).abs()
    assert moved.max() < 1e-4  # `zero` holds nothing but the updates
    reference.same(params, rtol=1e-6, atol=1e-9)


def test_the_first_update_of_a_warm_up_moves_nothing():
    params, before = make_params(), make_params()
    optimizer = LaProp(params, **SETTINGS)
    descend(optimizer, params, gradients(1))
    assert all(torch.equal(a, b) for a, b in zip(params, before))
    descend(optimizer, params, gradients(2))
    assert not any(torch.equal(a, b) for a, b in zip(params, before))


def test_the_size_of_gradients_does_not_matter_down_to_1e_minus_12():
    """Below, in float32, their squares lose digits."""
    large, small = make_params(torch.float32), make_params(torch.float32)
    for params, scale in ((large, 1e-6), (small, 1e-12)):
        optimizer = LaProp(params, warmup=0)
        for step in range(1, 4):
            descend(optimizer, params, [scale * g for g in gradients(step)])
    for a, b in zip(large, small):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)
    assert large[2].abs().max() > 1e-4


@pytest.mark.parametrize("first", [1, 5], ids=["first", "later"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0], ids=["nan", "inf", "finite"])
def test_a_skipped_step_changes_nothing_at_all(first, value):
    """Not even the count of steps: what follows is as if the step had not been."""
    params, never = make_params(), make_params()
    optimizer, other = LaProp(params, **SETTINGS), LaProp(never, **SETTINGS)
    for step in range(1, STEPS + 1):
        if step == first:
            before = copy.deepcopy([params, optimizer.state_dict()["state"]])
            descend(optimizer, params, [torch.full_like(g, value) for g in gradients(step)], found_inf=1.0)
            after = [params, optimizer.state_dict()["state"]]
            assert all(torch.equal(a, b) for a, b in zip(before[0], after[0]))
            if step > 1:
                torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
        descend(optimizer, params, gradients(step), found_inf=0.0)
        descend(other, never, gradients(step))
    assert all(torch.equal(a, b) for a, b in zip(params, never))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernels", "plain"])
def test_captured_steps_are_eager_steps(dtype):
    captured, eager = ([torch.nn.Parameter(x.detach().cuda()) for x in make_params(dtype)] for _ in range(2))
    optimizers = LaProp(captured, **SETTINGS), LaProp(eager, **SETTINGS)

    def step_captured(found_inf, *grads):
        for parameter, grad in zip(captured, grads):
            parameter.grad = 1 * grad  # a new tensor in every eager call, as autograd's are
        optimizers[0].found_inf = found_inf
        norm = optimizers[0].grad_norm()
        optimizers[0].step()
        return norm

    replayed = Captured(step_captured)
    for step in range(1, 10):
        skip = step in (1, 3, 7)
        grads = [g.cuda().to(dtype) * (math.nan if skip else 1) for g in gradients(step)]
        norm = replayed(torch.tensor(float(skip), device="cuda"), *grads)
        torch.testing.assert_close(norm, torch.nn.utils.get_total_norm(grads), equal_nan=True)
        descend(optimizers[1], eager, grads, float(skip))
    assert all(torch.equal(a, b) for a, b in zip(captured, eager))
    assert optimizers[0].state[captured[0]]["step"].item() == 6


def test_gradients_stay_as_they_are():
    params = make_params()
    descend(LaProp(params, **SETTINGS), params, gradients(1))
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(params, gradients(1)))


def test_a_parameter_without_gradient_is_an_error():
    params = make_params()
    optimizer = LaProp(params, **SETTINGS)
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(ValueError, match="gradient of every parameter"):
        optimizer.step()
    assert not optimizer.state


def test_saved_state_goes_on_bit_for_bit(tmp_path):
    params = make_params(torch.float32)
    optimizer = LaProp(params, **SETTINGS)
    for step in range(1, 6):
        descend(optimizer, params, gradients(step))
    torch.save([params, optimizer.state_dict()], tmp_path / "saved.pt")
    again, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = [torch.nn.Parameter(x) for x in again]
    restored = LaProp(again, **SETTINGS)
    restored.load_state_dict(state)
    torch.testing.assert_close(restored.state_dict(), optimizer.state_dict(), rtol=0, atol=0)
    assert restored.state_dict()["state"][0]["step"].item() == 5
    for step in range(6, 10):
        descend(optimizer, params, gradients(step))
        descend(restored, again, gradients(step))
    assert all(torch.equal(a, b) for a, b in zip(params, again))


def test_groups_have_their_own_learning_rates():
    params = make_params()
    optimizer = LaProp([{"params": params[:2], "lr": 0.5}, {"params": params[2:]}], **SETTINGS)
    references = [Reference(params[:2], **SETTINGS | {"lr": 0.5}), Reference(params[2:], **SETTINGS)]
    for step in range(1, STEPS):
        descend(optimizer, params, gradients(step))
        for reference, part in zip(references, (slice(0, 2), slice(2, 4))):
            reference.step(gradients(step)[part])
            reference.same(params[part], **EXACT)


def test_clipping_is_worked_by_hand():
    param, grad = torch.tensor([3.0, 4.0]), torch.tensor([[6.0], [8.0]])  # norms 5 and 10
    (clipped,) = clip_by_norm([param], [grad], clip=0.3, floor=1e-3)
    torch.testing.assert_close(clipped, 0.15 * grad)  # to norm 1.5
    (floored,) = clip_by_norm([0 * param], [grad], clip=0.3, floor=1e-3)
    torch.testing.assert_close(floored, 3e-5 * grad)
    (kept,) = clip_by_norm([param], [0.1 * grad], clip=0.3, floor=1e-3)
    assert torch.equal(kept, 0.1 * grad)


def test_a_setting_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="eps must be at least 0"):
        LaProp(make_params(), eps=-1.0)
