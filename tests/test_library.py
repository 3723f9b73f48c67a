"""The library: players act as `eval` does, inputs that do not fit are explained, and exports do what the agent does."""

import json
import re
import runpy
import sys
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import dreamer_mpc
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.library.export import INPUTS, SUFFIXES, Policy, _check, export_policy
from dreamer_mpc.planners import PLANNERS, Memory
from dreamer_mpc.planners import Policy as PolicyPlanner
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
    "none": (lambda x: x[:0], r"got uint8 \[0, 64, 64, 3\], which is empty"),
    "fewer rows": (lambda x: x[:1], "got 1 in place of 2 images"),
}


@pytest.mark.parametrize("change, words", BAD.values(), ids=BAD)
def test_an_image_that_does_not_fit_is_explained_in_one_line(change, words, agent, images):
    player = agent.player("policy")
    player(images[0])
    with pytest.raises(ValueError, match=words) as raised:
        player(change(images[0]))
    assert "\n" not in str(raised.value)


def test_other_mistakes_are_one_line_too(agent, images, unchecked):
    player, played = agent.player("policy"), agent.player("policy")
    played(images[0])
    calls = {
        "has seen no image": lambda: player.state,
        "has no setting horizn": lambda: agent.player("dream-mpc", horizn=3),
        "settings go with the name": lambda: agent.player(dreamer_mpc.make_planner("policy"), horizon=3),
        "bool .2., one for each": lambda: played.reset([True]),
        "horizon must be at least 1, got 0": lambda: agent.imagine(np.zeros(agent.state_dim, np.float32), horizon=0),
        "horizon must be a whole number, got '3'": lambda: agent.imagine(
            np.zeros(agent.state_dim, np.float32), horizon="3"
        ),
        "got numbers that are not finite": lambda: agent.imagine(np.full(agent.state_dim, np.nan, np.float32)),
        r"actions must be .* got float32 \[0, 2\], which is empty": lambda: agent.imagine(
            np.zeros(agent.state_dim, np.float32), np.zeros((0, ACTION_DIM), np.float32)
        ),
        r"a state must be .* got float32 \[2, 0\]": lambda: agent.decode(np.zeros((2, 0), np.float32)),
        "the next call begins an episode": lambda: agent.player("policy").reset([True]),
        "got the class Stranger: give Stranger": lambda: agent.player(Stranger),
        r"an object with a method plan\(model, state, memory\), got int": lambda: agent.player(5),
        r"got Forgetful with plan\(model, state\)": lambda: agent.player(Forgetful()),
        "seed must be a whole number, got 1.5": lambda: agent.player("policy", seed=1.5),
        "bounds must be .low, high., each a number or 2 numbers": lambda: agent.player("policy", bounds=([0] * 3, 1)),
        "make_env has no setting repeat: known are action_repeat": lambda: agent.make_env(repeat=2),
        "image_size must be a whole number, got '64'": lambda: agent.make_env(image_size="64"),
        "a path must be a text or a pathlib.Path, got int": lambda: dreamer_mpc.load(5),
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
    if form == "torch":
        sizes = {name: [2, *shape["shape"][1:]] for name, shape in about["inputs"].items()}
        given = [torch.zeros(sizes[name], dtype=torch.uint8 if name == "image" else torch.float32) for name in INPUTS]
        action, _ = torch.export.load(path).module()(*given)
        assert action.numpy().shape == (2, ACTION_DIM), "no gradient is attached"


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
    assert "cannot write /proc/policy.pt2 (" in refused("--format", "torch", "--out", "/proc/policy.pt2")
    (tmp_path / "policy.pt2.json").mkdir()
    assert "Is a directory" in refused("--format", "torch", "--out", tmp_path / "policy.pt2")
    (tmp_path / "policy.pt2.json").rmdir()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    assert "ONNX needs onnxscript: pip install 'dreamer-mpc[onnx]', or --format torch" in refused()
    assert not list(tmp_path.iterdir())


@dataclass
class Stranger:
    """The policy as a planner that has no hash, with other parts of its plans; `parts` may be the whole plan."""

    parts: Any = field(default_factory=dict)
    candidates: list = field(default_factory=list)  # a planner may call anything so

    def plan(self, model, state, memory=None):
        return with_parts(dreamer_mpc.make_planner("policy").plan(model, state), self.parts)


class Forgetful:
    """A planner without the argument for its memory."""

    def plan(self, model, state):
        raise NotImplementedError


def with_parts(plan, parts):
    if not isinstance(parts, dict):
        return parts
    for name, value in parts.items():
        setattr(plan, name, value)
    return plan


class Kept(NamedTuple):
    """A memory that cannot forget."""

    actions: torch.Tensor


UNFIT = {  # plans of 2 rows for an agent of 2 actions
    "no plan": (torch.zeros(2), "must return a Plan of dreamer_mpc.planners, got Tensor"),
    "too large": ({"action": torch.full((2, 2), 4.0)}, "must give actions in [-1, 1], got 4"),
    "not a number": ({"action": torch.full((2, 2), np.nan)}, "must give actions in [-1, 1], got nan"),
    "3 numbers": ({"action": torch.zeros(2, 3)}, "the action [B, A] as float32 [2, 2] on cpu, got float32 [2, 3] on"),
    "one row": ({"action": torch.zeros(1, 2)}, "got float32 [1, 2] on cpu"),
    "doubles": ({"action": torch.zeros(2, 2).double()}, "got float64 [2, 2] on cpu"),
    "NumPy": ({"action": np.zeros((2, 2))}, "must give the action as a torch tensor [B, A], got ndarray [2, 2]"),
    "one value": ({"value": torch.zeros(())}, "the value [B] as float32 [2] on cpu, got float32 [] on cpu"),
    "no value": ({"value": None}, "must give the value as a torch tensor [B], got NoneType"),
    "a tensor kept": ({"memory": torch.zeros(2, 3)}, "None or a named tuple of tensors [B, ...], of B = 2 rows, with"),
    "kept for good": ({"memory": Kept(torch.zeros(2))}, "with a method reset(done), such as"),
    "kept of one row": ({"memory": Memory(torch.zeros(1, 3, 2), torch.ones(1, dtype=torch.bool))}, "got Memory"),
    "no count": ({"model_evaluations": 2.5}, "must give model_evaluations as a whole number, got float"),
}


@pytest.mark.parametrize("parts, words", UNFIT.values(), ids=UNFIT)
def test_a_plan_that_does_not_fit_is_one_line_that_names_the_planner(agent, images, parts, words, unchecked):
    player = agent.player(Stranger(parts))
    with pytest.raises(ValueError, match="^Stranger.plan must ") as raised:
        player(images[0])
    assert words in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="has seen no image"):
        player.state  # noqa: B018
    with pytest.raises(ValueError, match="^Stranger.plan must "):  # not that it plays 2 environments
        player(images[:3, 0])


def test_a_planner_without_a_hash_plays_and_its_settings_may_change(agent, images):
    np.testing.assert_array_equal(agent.player(Stranger())(images[0]), agent.player("policy")(images[0]))
    changed = Stranger()
    player = agent.player(changed)
    player(images[0])
    changed.parts = {"action": torch.full((2, ACTION_DIM), 0.5)}
    assert (player(images[1]) == 0.5).all()


@pytest.mark.parametrize("command", [
    ["train", "--run-dir"],
    ["eval", "--episodes", "1", "--num-envs", "1", "--out"],
    ["compare", "--episodes", "1", "--num-envs", "1", "--planners", "policy", "--out"],
], ids=lambda command: command[0])  # fmt: skip
@pytest.mark.parametrize("action, words", [
    (torch.zeros(1, 3), "must give the action [B, A] as float32 [1, 2] on cpu, got float32 [1, 3] on cpu"),
    (torch.full((1, 2), np.nan), "must give actions in [-1, 1], got nan"),
], ids=["3 numbers", "not a number"])  # fmt: skip
def test_an_unfit_plan_ends_a_command_with_one_line(command, action, words, checkpoint, tmp_path, monkeypatch):
    right, unfit = PolicyPlanner.plan, {"action": action}
    monkeypatch.setattr(PolicyPlanner, "plan", lambda *given: with_parts(right(*given), unfit))
    subject = [*FAMILIES[checkpoint.stem], "--num-envs", "1"] if command[0] == "train" else ["--checkpoint", checkpoint]
    planner = [] if command[0] == "compare" else ["--planner", "policy"]
    done = quietly(*command, tmp_path / "out", *subject, *planner)
    assert done.code == 2 and done.err.strip().splitlines()[-1] == f"error: Policy.plan {words}", done.err


WRONG = [
    ("policy", "sample", "yes", "sample must be True or False, got 'yes'"),
    ("policy", "sample", 1, "sample must be True or False, got 1"),
    ("cem", "horizon", 2.5, "horizon must be a whole number, got 2.5"),
    ("mppi", "candidates", True, "candidates must be a whole number, got True"),
    ("cem", "discount", "0.9", "discount must be a number, got '0.9'"),
    ("grad-mpc", "objective", 3, "objective must be one of return, lambda-return, rewards, got 3"),
    ("dream-mpc", "draws", "few", "draws must be a whole number or None, got 'few'"),
    ("dream-mpc", "line_search", 0.1, "line_search must be a tuple of values, each a number, got 0.1"),
    ("dream-mpc", "habits", "clip", "habits must be a tuple of values, each a text, got 'clip'"),
]


@pytest.mark.parametrize("planner, setting, value, words", WRONG, ids=str)
def test_a_setting_of_another_type_is_refused(agent, planner, setting, value, words, unchecked):
    for make in (agent.player, dreamer_mpc.make_planner):
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            make(planner, **{setting: value})


@pytest.mark.parametrize("planner", PLANNERS)
def test_every_setting_has_a_type_that_is_checked(planner, unchecked):
    for setting in fields(PLANNERS[planner]):
        with pytest.raises(ValueError, match=f"^{setting.name} must be .* got {{}}$"):
            dreamer_mpc.make_planner(planner, **{setting.name: {}})


def test_settings_may_be_lists_and_numbers_of_numpy(agent, images, unchecked):
    own = agent.player("cem", horizon=np.int64(2), candidates=8, elites=2, discount=np.float32(0.9))
    assert own(images[0]).shape == (2, ACTION_DIM)
    for make in (lambda *name, **settings: agent.player(*name, **settings).planner, dreamer_mpc.make_planner):
        assert make("dream-mpc", line_search=[0.1, 1]).line_search == (0.1, 1)


def test_an_agent_says_in_a_line_what_it_is(agent):
    assert len(repr(agent)) < 300 and "env steps" in repr(agent)
