"""Updates whose batch passes the scan in segments, against those in one piece, in float64."""

from dataclasses import replace

import pytest
import torch

from dreamer_mpc.agents import segments
from dreamer_mpc.agents.segments import average, inferred
from dreamer_mpc.world_model import Batch
from dreamer_mpc.world_model.block_rssm import BlockRSSM
from dreamer_mpc.world_model.rssm import RSSM
from tests.support.agents import CATEGORICAL, WORLD, make_agent, make_batch, make_planet
from tests.support.drawing import Draws

T, B = 7, 3
FAMILIES = {
    "paper": (replace(WORLD, continuation=True, free_nats=0.3), {}),
    "v3": (replace(CATEGORICAL, free_nats=0.3), {"kind": "v3"}),
}


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def count(monkeypatch):
    """Sets the number of segments; draws begin anew."""

    def set_to(number):
        monkeypatch.setitem(segments.SEGMENTS, "cpu", number)
        monkeypatch.setattr(torch, "randn", Draws("normal_"))
        monkeypatch.setattr(torch, "rand", Draws("uniform_"))

    return set_to


def frames(state_dim, stored):
    """Episodes start in both segments, one ends in the second; the last are of a batch that follows a state or not."""
    batch = make_batch(length=T, batch_size=B, first=[(2, 0), (4, 1), (5, 2)])
    batch.is_terminal[4, 0] = True
    state = torch.linspace(-1, 1, B * state_dim).view(B, state_dim) if stored else None
    return batch._replace(state=state)


def updated(agent, batch, monkeypatch):
    """Metrics, states and all gradients of an update."""
    gradients = []
    monkeypatch.setattr(agent, "_descend", lambda *_: gradients.extend(p.grad for p in agent.model.parameters()) or {})
    torch.manual_seed(3)
    update = agent.update(batch)
    assert all(g is not None and g.isfinite().all() for g in gradients)
    return update.metrics, update.states, gradients


@pytest.mark.parametrize("stored", [False, True], ids=["initial", "stored"])
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_update_in_segments_is_the_update_in_one(family, kernels, stored, count, monkeypatch):
    world, behavior = FAMILIES[family]
    agent = make_agent(0, behavior, world, kernels=kernels)
    if behavior:
        for head in (agent.model.critic, agent.model.world_model.reward_head):  # they begin with zeros
            torch.nn.init.normal_(last_of(head), std=0.1)
    found = []
    for number in (1, 2, 3):
        count(number)
        found.append(updated(agent, frames(agent.state_dim, stored), monkeypatch))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-11)
    assert all(g.any() for g in found[0][2])


def last_of(head):
    return [p for name, p in head.named_parameters() if name.endswith("last.weight")][0]


def test_planet_learns_in_segments(count, monkeypatch):
    agent, found = make_planet(), []
    for number in (1, 2):
        count(number)
        found.append(updated(agent, frames(agent.state_dim, False), monkeypatch))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("field, place", [("reward", (6, 1)), ("reward", (0, 2)), ("action", (5, 0))])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bad_number_in_either_segment_skips_the_update(family, field, place, count):
    world, behavior = FAMILIES[family]
    agent = make_agent(0, behavior, world)
    count(2)
    batch = make_batch(length=T, batch_size=B)
    getattr(batch, field)[place] = torch.nan
    before = {name: x.clone() for name, x in agent.model.state_dict().items()}
    agent.update(batch)
    assert all(torch.equal(x, before[name]) for name, x in agent.model.state_dict().items())
    assert agent.skipped_updates().in_a_row == 1


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("make", [
    lambda kernels: RSSM(2, 5, deter=6, stoch=3, hidden=7, kernels=kernels),
    lambda kernels: BlockRSSM(2, 5, deter=6, stoch=3, classes=4, hidden=7, blocks=3, kernels=kernels),
], ids=["gaussian", "categorical"])  # fmt: skip
def test_the_scan_of_two_segments_is_the_scan_of_one(make, kernels):
    torch.manual_seed(0)
    rssm, found = make(kernels), []
    z = rssm.state_dim - rssm.deter
    shapes = (T, B, 5), (T, B, 2), (T, B, z), (B, rssm.state_dim)
    embed, action, noise, start = (torch.randn(*shape) for shape in shapes)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[2, 0] = is_first[4, 1] = True  # one at the border
    start.requires_grad_(), embed.requires_grad_()
    for bounds in ([0, T], [0, 4, T]):
        states, outputs = start, []
        for i, j in zip(bounds, bounds[1:]):
            states, posterior = rssm.observe(
                embed[i:j], action[i:j], is_first[i:j], states[-1] if i else start, noise[i:j]
            )
            outputs.append([states, *(posterior if isinstance(posterior, tuple) else [posterior])])
        whole = [torch.cat(parts) for parts in zip(*outputs)]
        loss = sum((torch.linspace(-1, 1, x.numel()).view_as(x) * x).sum() for x in whole)
        inputs = [start, embed, *(p for name, p in rssm.named_parameters() if not name.startswith("prior"))]
        found.append([*whole, *torch.autograd.grad(loss, inputs)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_segments_are_all_frames_in_order_and_the_first_ones_are_longer(count):
    count(3)
    agent = make_planet()
    batch = make_batch(length=T, batch_size=B)
    found = list(inferred(agent.model.world_model, batch, agent._amp))
    assert [len(segment.batch.reward) for segment in found] == [3, 2, 2]
    assert [segment.share for segment in found] == [3 / 7, 2 / 7, 2 / 7]
    for name in Batch._fields[:-1]:
        whole = torch.cat([getattr(segment.batch, name) for segment in found])
        assert torch.equal(whole, getattr(batch, name))
    assert found[0].batch.state is None
    for one, after in zip(found, found[1:]):
        assert torch.equal(after.batch.state, one.inference.states[-1])


def test_a_batch_of_fewer_steps_has_fewer_segments(count):
    count(2)
    agent = make_planet()
    assert len(list(inferred(agent.model.world_model, make_batch(length=1), agent._amp))) == 1


def test_correlations_over_a_batch_are_not_cut(count):
    agents = {
        number: make_agent(0, {"kind": "v3"}, replace(CATEGORICAL, representation=representation))
        for representation, number in {"decoder": 2, "barlow": 1}.items()
    }
    count(2)
    for number, agent in agents.items():
        assert len(list(inferred(agent.model.world_model, make_batch(), agent._amp))) == number


def test_a_cpu_does_not_cut_batches():
    agent = make_planet()
    assert len(list(inferred(agent.model.world_model, make_batch(), agent._amp))) == 1


def test_terms_count_by_the_frames_of_their_segments():
    terms = [{"a": torch.tensor(1.0), "b": torch.tensor(4.0)}, {"a": torch.tensor(3.0), "b": torch.tensor(0.0)}]
    found = average(terms, [0.75, 0.25])
    assert {name: x.item() for name, x in found.items()} == {"a": 1.5, "b": 3.0}
