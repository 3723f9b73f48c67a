"""Fast paths against the eager code, on a GPU; skipped without one."""

import pytest
import torch

from dreamer_mpc.agent import Dreamer
from dreamer_mpc.planners import make_planner
from dreamer_mpc.world_model import Batch

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
