"""Fast paths against the eager code, on a GPU; skipped without one."""

import pytest
import torch

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.kernels import cell, fused
from dreamer_mpc.networks import Actor
from dreamer_mpc.planners import make_planner
from dreamer_mpc.world_model import Batch, WorldModel, WorldModelConfig
from dreamer_mpc.world_model.encoder import preprocess

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ACTION_DIM = 3


def make_pair(**settings):
    """A captured and an eager agent with the same weights."""
    agents = []
    for capture in (True, False):
        torch.manual_seed(0)
        agents.append(Dreamer(ACTION_DIM, device="cuda:0", capture=capture, **settings))
    return agents


def random_batch(seed, length=12, batch_size=8):
    generator = torch.Generator("cuda").manual_seed(seed)
    options = {"generator": generator, "device": "cuda"}
    is_first = torch.zeros(length, batch_size, dtype=torch.bool, device="cuda")
    is_first[0, ::2] = True
    return Batch(
        torch.randint(0, 256, (length, batch_size, 64, 64, 3), dtype=torch.uint8, **options),
        torch.rand(length, batch_size, ACTION_DIM, **options) * 2 - 1,
        torch.rand(length, batch_size, **options),
        is_first,
        torch.arange(length * batch_size, device="cuda").view(length, batch_size),
    )


PLANS = {
    "dream-mpc": {},
    "dream-mpc after": {"iterations": 3, "choose_by": "after"},
    "dream-mpc fixed": {"latent_noise": "fixed"},
    "policy-grad-mpc": {},
    "grad-mpc": {"candidates": 100, "iterations": 3},
    "cem": {"candidates": 200, "elites": 20, "iterations": 3},
    "cem kept": {"candidates": 200, "elites": 20, "iterations": 3, "reuse": 0.5, "objective": "return"},
    "mppi": {},
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("batch", [1, 4])
def test_captured_acting_is_eager_acting(name, batch):
    captured, eager = make_pair(bf16=False)
    planner = make_planner(name.split()[0], **PLANS[name])
    carries = [captured.initial(batch), eager.initial(batch)]
    images = random_batch(1).image[:, :batch]
    for t in range(8):  # three warm-up calls, the recording, and four replays
        is_first = torch.tensor([t == 0] + [t == 5] * (batch - 1), device="cuda")
        actions = []
        for i, agent in enumerate((captured, eager)):
            torch.manual_seed(t)
            action, carries[i], *_ = agent.act(planner, carries[i], images[t], is_first, 0.1)
            actions.append(action)
        torch.testing.assert_close(*actions, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(carries[0].state, carries[1].state, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"behavior": None}], ids=["dreamer", "planet"])
def test_captured_update_is_eager_update(settings):
    captured, eager = make_pair(bf16=False, **settings)
    for step in range(8):
        batch = random_batch(step)
        metrics = []
        for agent in (captured, eager):
            torch.manual_seed(step)
            metrics.append(agent.update(batch))
        for name in metrics[0]:
            torch.testing.assert_close(metrics[0][name], metrics[1][name], rtol=2e-2, atol=2e-2, msg=f"{step} {name}")
    for (name, p), q in zip(captured.model.named_parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=4e-3, msg=name)


def test_bf16_is_near_fp32():
    losses = []
    for bf16 in (True, False):
        torch.manual_seed(0)
        agent = Dreamer(ACTION_DIM, device="cuda:0", capture=False, bf16=bf16)
        torch.manual_seed(1)
        losses.append(agent.update(random_batch(0))["model_loss"])
        assert all(p.dtype == torch.float32 for p in agent.model.parameters())
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)


@pytest.mark.parametrize("capture", [True, False])
def test_update_does_not_synchronise(capture):
    agent = Dreamer(ACTION_DIM, device="cuda:0", capture=capture)
    batch = random_batch(0)
    for _ in range(5):
        agent.update(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_planet_agent_acts_by_cem():
    agent = Dreamer(ACTION_DIM, device="cuda:0", behavior=None)
    planner, carry, images = make_planner("cem"), agent.initial(2), random_batch(0).image[:, :2]
    for t in range(6):
        first = torch.full((2,), t == 0, device="cuda")
        action, carry, evaluations, value = agent.act(planner, carry, images[t], first)
        assert action.isfinite().all() and action.abs().max() <= 1 and value.isfinite().all()
    assert evaluations == 120_000


def test_captured_plans_follow_the_weights():
    """A graph reads the parameters where they are, so an update changes the next action."""
    agent = Dreamer(ACTION_DIM, device="cuda:0")
    planner, carry, image = make_planner("policy"), agent.initial(1), random_batch(0).image[0, :1]
    first = torch.ones(1, dtype=torch.bool, device="cuda")

    def act():
        torch.manual_seed(0)
        return agent.act(planner, carry, image, first).action

    for _ in range(5):
        before = act()
    with torch.no_grad():
        for p in agent.model.actor.parameters():
            p.add_(0.05)
    assert not torch.allclose(before, act())


def test_nonfinite_update_is_skipped():
    agent = Dreamer(ACTION_DIM, device="cuda:0")
    batch = random_batch(0)
    for _ in range(5):
        agent.update(batch)
    before = [p.clone() for p in agent.model.parameters()]
    metrics = agent.update(batch._replace(reward=batch.reward * torch.nan))
    assert metrics["skipped"].item() == 1
    assert all(torch.equal(p, q) for p, q in zip(agent.model.parameters(), before, strict=True))
    assert agent.update(batch)["skipped"].item() == 0


@pytest.fixture
def full_fp32():
    """Products in float32, not TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def unrolled(rows, kind, bf16, monkeypatch, steps=7, size=200, stoch=30):
    """A sequence walked by the Triton kernel and by the loop in torch, and the gradients of both."""
    torch.manual_seed(rows)
    draw = lambda *shape: 0.3 * torch.randn(*shape, device="cuda")  # noqa: E731
    scale = size**-0.5
    weights = cell.Cell(
        draw(size, stoch + 6), draw(size), scale * draw(3 * size, size) * 3, draw(3 * size),
        scale * draw(3 * size, size) * 3, draw(3 * size), (scale * draw(size, size + 24) * 3)[:, :size],
        scale * draw(2 * stoch, size) * 3, draw(2 * stoch),
    )  # fmt: skip
    state, noise = draw(rows, size + stoch), 3 * draw(steps, rows, stoch)
    action, keep = draw(steps, rows, 6).clamp(-1, 1), (torch.rand(steps, rows, device="cuda") > 0.2).float()
    inputs = {"observe": (action, draw(steps, rows, size), noise, keep), "rollout": (action, draw(size), noise, None)}
    actor, weight = Actor(size + stoch, 6).cuda(), torch.rand(rows, device="cuda")
    acting = cell.Acting(actor, torch.randn_like(action), action, weight)
    inputs["policy"] = (acting, draw(size), noise, None)
    grads = [draw(steps, rows, size), draw(steps, rows, stoch)]
    if kind == "observe":
        grads.append(draw(steps, rows, 2 * stoch))
    found = []
    for triton in (True, False):
        if not triton:
            monkeypatch.setattr(cell, "_on_gpu", lambda *_: False)
        with torch.no_grad():
            taken, trace = cell.unroll(weights, state, *inputs[kind], 0.1, bf16=bf16)
            if triton:
                kept = trace  # both go back through the same states
            deltas = cell._backward(weights, kept, noise, inputs[kind][3], *grads, bf16=bf16)
        wanted = deltas if kind == "observe" else deltas[:3]
        found.append((taken, *trace, *wanted))
    return found


def assert_near(found, expected, tolerance):
    """Relative distance of each tensor; one that is zero must be zero."""
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        distance = ((x - y).norm() / y.norm().clamp_min(1e-12)).item()
        assert distance < tolerance, f"tensor {i}: {distance}"


@pytest.mark.parametrize("kind", ["observe", "rollout", "policy"])
@pytest.mark.parametrize("rows", [1, 50, 500, 2500])  # teams of 13 for few rows, of 4, and none
def test_the_cell_s_kernel_is_the_loop(kind, rows, full_fp32, monkeypatch):
    assert_near(*unrolled(rows, kind, False, monkeypatch), 1e-5)


def test_the_cell_s_kernel_takes_other_sizes(full_fp32, monkeypatch):
    assert_near(*unrolled(20, "observe", False, monkeypatch, size=52, stoch=9), 1e-5)


@pytest.mark.parametrize("kind", ["observe", "policy"])
@pytest.mark.parametrize("rows", [50, 2500])
def test_bf16_products_in_the_cell_are_near_fp32(kind, rows, monkeypatch):
    assert_near(*unrolled(rows, kind, True, monkeypatch), 2e-2)


def test_teams_agree_every_time(monkeypatch):
    """A member that read too early would change the result from run to run."""
    first = unrolled(50, "policy", True, monkeypatch, steps=50)[0]
    for _ in range(5):
        monkeypatch.undo()
        again = unrolled(50, "policy", True, monkeypatch, steps=50)[0]
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("act", ["none", "relu", "elu"])
@pytest.mark.parametrize(
    "layout",
    [fused.SAME, fused.Layout("to_blocks", 6, 4, 2), fused.Layout("from_blocks", 4, 4, 2, 7),
     fused.Layout("from_blocks", 4, 4, 4, 16)],
)  # fmt: skip
def test_bias_act_on_the_gpu_is_that_on_the_cpu(act, layout):
    torch.manual_seed(0)
    members = 3 if layout is fused.SAME else 1
    y, bias = torch.randn(members, 960, 48), torch.randn(members, 48)
    results = []
    for device in ("cuda", "cpu"):
        leaves = [x.to(device).requires_grad_() for x in (y, bias)]
        out = fused.bias_act(leaves[0] * 1, leaves[1], act, layout)
        weight = torch.linspace(-1, 1, out.numel(), device=device).view_as(out)
        results.append([x.cpu() for x in (out, *torch.autograd.grad((out * weight).sum(), leaves))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_images_are_dequantised_as_on_the_cpu():
    image = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, device="cuda")
    x = preprocess(image, dequantize=True).movedim(-3, -1)
    level = (image >> 3).float()
    noise = (x + 0.5) * 32 - level
    assert noise.min() > -1e-5 and noise.max() < 1 + 1e-5 and 0.2 < noise.std() < 0.4


def test_the_world_model_s_loss_with_kernels_is_the_plain_one(full_fp32):
    results = []
    for kernels in (True, False):
        torch.manual_seed(0)
        world = WorldModel(WorldModelConfig(), ACTION_DIM, kernels).cuda()
        torch.manual_seed(1)
        batch, amp = random_batch(0), torch.autocast("cuda", enabled=False)
        inference = world.infer(batch, amp)
        loss, metrics = world.loss(batch, inference, amp)
        gradients = torch.autograd.grad(loss, list(world.parameters()))
        results.append([loss, inference.states, *metrics.values(), *gradients])
    assert_near(*results, 1e-3)


def test_the_behavior_s_gradients_with_kernels_are_near_the_plain_ones():
    """They draw other noise: gradients of many rows agree in direction."""
    gradients = []
    for kernels in (True, False):
        torch.manual_seed(0)
        agent = Dreamer(ACTION_DIM, device="cuda:0", capture=False, kernels=kernels)
        start = torch.randn(4000, agent.model.world_model.rssm.state_dim, device="cuda")
        found, _ = agent._behavior_gradients(start, torch.arange(4000, device="cuda"))
        gradients.append({name: torch.cat([g.flatten() for g in grads]) for name, grads in found.items()})
    for name in gradients[0]:
        cosine = torch.cosine_similarity(gradients[0][name], gradients[1][name], dim=0)
        assert cosine > 0.9, f"{name}: {cosine}"


def test_a_run_on_the_gpu_is_stopped_and_resumed(tmp_path, monkeypatch):
    """Graphs are recorded anew; replay, carry and generator come back from the host."""
    import os
    import signal

    import run
    from dreamer_mpc.runs.checkpoint import load_checkpoint
    from dreamer_mpc.training.trainer import Trainer
    from tests.test_cli import TINY

    args = [*TINY, "--env-steps", "96", "--num-envs", "2", "--planner", "dream-mpc", "--replay.storage", "gpu"]
    advance = Trainer._advance

    def stopped(self, due):
        if self.counters.env_steps == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, due)

    monkeypatch.setattr(Trainer, "_advance", stopped)
    assert run.main([*args, "--run-dir", str(tmp_path / "run")]) == 0
    monkeypatch.undo()
    before = load_checkpoint(tmp_path / "run")
    assert before["counters"]["env_steps"] == 42 and before["random"]["cuda"] is not None
    assert run.main(["--resume", str(tmp_path / "run")]) == 0
    after = load_checkpoint(tmp_path / "run")
    assert after["counters"]["env_steps"] == 96 and after["training"]["finished"]
    assert after["counters"]["updates"] == (96 - 8) // 8
    assert after["replay"]["written"].tolist() == [8 + 1 + 44 + 6, 44 + 6], "one seed episode, in the first row alone"
