"""The library: players act as `eval` does, inputs that do not fit are explained, and exports do what the agent does."""

import json
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import dreamer_mpc
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.library.export import SUFFIXES, Policy, _check, export_policy
from dreamer_mpc.runs.checkpoint import save_checkpoint
from dreamer_mpc.util.errors import UserError
from tests.support.agents import ACTION_DIM, FAMILIES
from tests.support.checkpoints import family_checkpoint
from tests.support.commands import ROOT, quietly

CHEETAH = ["--env", "cheetah-run", "--max-env-steps", "24", "--action-repeat", "2"]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    """A checkpoint of a small agent of each family."""
    path = tmp_path_factory.mktemp("library") / f"{request.param}.safetensors"
    save_checkpoint(path, family_checkpoint(request.param))
    return path


@pytest.fixture(scope="module")
def agent(checkpoint):
    return dreamer_mpc.load(checkpoint, device="cpu")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 2, 64, 64, 3), dtype=np.uint8)  # [T, N, H, W, C]


def played(path, episodes, envs, *args):
    several = ("--episodes", episodes, "--num-envs", envs)
    done = quietly("eval", "--checkpoint", path, *several, "--out", path.parent, *args)
    assert done.code == 0, done.err
    return json.loads((path.parent / "eval.json").read_text())["results"][0]["returns"]


def test_a_player_plays_the_episode_of_an_evaluation(tmp_path):
    path = tmp_path / "cheetah.safetensors"
    save_checkpoint(path, family_checkpoint("paper", *CHEETAH, action_dim=6))
    expected = played(path, 1, 1, "--planner", "dream-mpc", "--dream-mpc.horizon", "3", "--seed", "7")
    trained = dreamer_mpc.load(path, device="cpu")
    player, env = trained.player("dream-mpc", horizon=3, seed=7), trained.make_env()
    (image, _), total, over = env.reset(seed=7), 0.0, False
    while not over:
        torch.rand(3)  # others may draw from torch's generator
        image, reward, terminated, truncated, _ = env.step(player(image))
        total, over = total + reward, terminated or truncated
    env.close()
    assert total == expected[0] and total != 0


def actions_of(agent, images, reset_at=None, **settings):
    """Actions [T, N, A] of a player under Dream-MPC with the paper's reuse of plans; row 1 is reset before one step."""
    player = agent.player("dream-mpc-paper", horizon=3, seed=1, **settings)
    actions = []
    for t, image in enumerate(images):
        if t == reset_at:
            player.reset(np.array([False, True]))
        actions.append(player(image))
    return np.stack(actions)


def test_a_row_that_is_reset_forgets_and_the_others_go_on(agent, images):
    others = images.copy()
    others[:3, 1] = 255 - others[:3, 1]
    one, other = actions_of(agent, images, reset_at=3), actions_of(agent, others, reset_at=3)
    assert one.dtype == np.float32 and one.shape == (6, 2, ACTION_DIM)
    np.testing.assert_array_equal(one[:, 0], other[:, 0])
    np.testing.assert_array_equal(one[3:, 1], other[3:, 1])
    assert (one[1, 1] != other[1, 1]).any() and (actions_of(agent, images)[3:, 1] != one[3:, 1]).any()


def test_answers_have_the_form_of_the_question(agent, images):
    expected = actions_of(agent, images[:2])
    player = agent.player("dream-mpc-paper", horizon=3, seed=1)
    given = [player(torch.from_numpy(image)) for image in images[:2]]
    assert all(isinstance(action, torch.Tensor) for action in given)
    np.testing.assert_array_equal(torch.stack(given).numpy(), expected)
    single = agent.player("policy")
    assert single(images[0, 0]).shape == (ACTION_DIM,) and single.value.shape == ()
    dream = agent.imagine(single.state, horizon=4)
    assert dream.states.shape == (4, agent.state_dim) and dream.rewards.shape == dream.values.shape == (4,)
    assert agent.decode(dream.states).shape == (4, 64, 64, 3) and agent.decode(single.state).dtype == np.uint8


def test_actions_go_to_the_bounds_that_are_given(agent, images):
    plain, scaled = actions_of(agent, images), actions_of(agent, images, bounds=(np.array([-2, 0]), np.array([2, 10])))
    np.testing.assert_allclose(scaled, (plain + 1) / 2 * [4, 10] + [-2, 0], atol=1e-5)


def test_a_dream_follows_the_actions_and_its_seed(agent, images):
    player = agent.player("policy")
    player(images[0])
    dream = agent.imagine(player.state, horizon=5)
    same = agent.imagine(player.state, dream.actions)
    np.testing.assert_allclose(same.states, dream.states, atol=1e-5)
    assert (agent.imagine(player.state, -dream.actions).states != dream.states).any()
    one, two, other = (agent.imagine(player.state, horizon=5, noise="fresh", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.states, two.states)
    assert (one.states != other.states).any()


BAD = {
    "floats": (lambda x: x.astype(np.float32) / 255, "uint8 .* got float32 .*: pixels go from 0 to 255"),
    "channels first": (lambda x: x.transpose(0, 3, 1, 2), r"got uint8 \[2, 3, 64, 64\]: channels come last"),
    "another size": (lambda x: x[:, ::2], r"uint8 \[64, 64, 3\], or \[N, ...\] .* got uint8 \[2, 32, 64, 3\]"),
    "a list": (lambda x: x.tolist(), "as a NumPy array or a torch tensor, got list"),
    "fewer rows": (lambda x: x[:1], "plays 2 environments, got images of 1"),
}


@pytest.mark.parametrize("change, words", BAD.values(), ids=BAD)
def test_an_image_that_does_not_fit_is_explained_in_one_line(change, words, agent, images):
    player = agent.player("policy")
    player(images[0])
    with pytest.raises(ValueError, match=words) as raised:
        player(change(images[0]))
    assert "\n" not in str(raised.value)


def test_other_mistakes_are_one_line_too(agent, images):
    player = agent.player("policy")
    calls = {
        "has seen no image": lambda: player.state,
        "has no setting horizn": lambda: agent.player("dream-mpc", horizn=3),
        "settings go with the name": lambda: agent.player(dreamer_mpc.make_planner("policy"), horizon=3),
        "bool .0., one for each": lambda: player.reset([True]),
        "horizon must be 1 or more": lambda: agent.imagine(np.zeros(agent.state_dim, np.float32), horizon=0),
        "low below high": lambda: agent.player("policy", bounds=(1, -1)),
        "a state must be float32": lambda: agent.imagine(np.zeros(3, np.float32)),
        "actions of 3 environments do not fit 2": lambda: agent.imagine(
            np.zeros((2, agent.state_dim), np.float32), np.zeros((3, 4, ACTION_DIM), np.float32)
        ),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="unknown planner 'nothing': known are"):
        agent.player("nothing")
    with pytest.raises(dreamer_mpc.UserError, match="no checkpoint nowhere"):
        dreamer_mpc.load("nowhere")
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        dreamer_mpc.lod  # noqa: B018


def test_the_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    runpy.run_path("examples/play.py")
    assert "pictures (15, 64, 64, 3)" in capsys.readouterr().out


def test_an_exported_policy_gives_what_the_agent_gives(checkpoint, tmp_path):
    """ONNX for the one family, torch.export for the other; the command itself makes this check of every file."""
    form = {"paper": "onnx", "v3": "torch"}[checkpoint.stem]
    path = tmp_path / f"policy{SUFFIXES[form]}"
    assert export_policy(Subject.load(checkpoint), path, form) < 1e-4
    about = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert path.exists() and about["inputs"]["image"]["shape"] == ["batch", 64, 64, 3]


def test_an_exported_policy_is_the_agent_s(agent, images, checkpoint):
    """Its step is the one that the agent takes with the same draws, and the check notices another one."""
    player = agent.player("policy", seed=3)
    expected = [(player(image), player.state) for image in images[:3]]
    policy, draws = Policy(dreamer_mpc.load(checkpoint, device="cpu").agent), torch.Generator().manual_seed(3)
    action, state = torch.zeros(2, ACTION_DIM), torch.zeros(2, agent.state_dim)
    for image, (wanted, wanted_state) in zip(images[:3], expected, strict=True):
        noise = torch.randn(2, agent.agent.model.noise_dim, generator=draws)
        with torch.no_grad():
            action, state = policy(torch.from_numpy(image), action, state, noise)
        np.testing.assert_allclose(action.numpy(), wanted, atol=1e-5)
        np.testing.assert_allclose(state.numpy(), wanted_state, atol=1e-5)
    assert _check(policy, lambda *given: tuple(0.5 + x.numpy() for x in policy(*given))) >= 0.5


def test_what_cannot_be_exported_is_one_line(checkpoint, tmp_path, monkeypatch):
    def refused(*args):
        done = quietly("export", "--checkpoint", checkpoint, *args)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
        return done.err

    assert "is a file *.pt2, not " in refused("--format", "torch", "--out", tmp_path / "policy.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    assert "ONNX needs onnxscript: pip install 'dreamer-mpc[onnx]', or --format torch" in refused()
    assert not list(tmp_path.iterdir())


def plan_of_policy(model, state):
    return dreamer_mpc.make_planner("policy").plan(model, state)


class Stranger:
    """A planner that answers what it is told to."""

    def __init__(self, answer):
        self.plan = lambda model, state, memory=None: answer(model, state)


@pytest.mark.parametrize(("answer", "words"), [
    (lambda model, state: state, "must return a Plan of dreamer_mpc.planners, got Tensor"),
    (lambda *given: replace(plan_of_policy(*given), action=torch.full((2, ACTION_DIM), 4.0)), "got 4"),
    (lambda *given: replace(plan_of_policy(*given), action=torch.full((2, ACTION_DIM), np.nan)), "got nan"),
], ids=["no plan", "too large", "not a number"])  # fmt: skip
def test_a_stranger_s_plan_that_is_none_or_out_of_bounds_is_one_line(agent, images, answer, words):
    with pytest.raises(ValueError, match="Stranger.plan must ") as raised:
        agent.player(Stranger(answer))(images[0])
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_an_agent_says_in_a_line_what_it_is(agent):
    assert len(repr(agent)) < 300 and "env steps" in repr(agent)
