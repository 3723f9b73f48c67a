"""Evaluation episodes and their pictures."""

import copy

import numpy as np
import pytest
import torch

from dreamer_mpc.envs import make_vector_env
from dreamer_mpc.evaluation import visualize
from dreamer_mpc.evaluation.episodes import EpisodeRecording, Evaluation, evaluate
from dreamer_mpc.evaluation.visualize import decision, episode_video, imagine_open_loop
from dreamer_mpc.planners import Memory, make_planner
from tests.support.agents import make_agent, same
from tests.support.counting_env import CountingEnv, decode, encode, expected_reward
from tests.support.recorder import Recorder

POLICY = make_planner("policy")
DREAM = make_planner("dream-mpc", horizon=3, candidates=3, reuse=0.5)


class SeededEnv(CountingEnv):
    """Image and reward encode the seed of the reset instead of the episode's number; 3 + seed % 4 steps."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = 255 if seed is None else seed
        self.length = 3 + self.episode % 4
        return encode(self.episode, 0), {}


def make_envs(num_envs, env="tests.test_evaluate:SeededEnv", action_repeat=1):
    return make_vector_env(env, num_envs, workers=False, action_repeat=action_repeat)


class Still(Recorder):
    """Always the same action."""

    def act(self, *args):
        act = super().act(*args)
        return act._replace(action=torch.full_like(act.action, 0.5))


def known_return(seed):
    return sum(expected_reward(seed, step, np.array([0.5])) for step in range(1, 4 + seed % 4))


@pytest.mark.parametrize("episodes, num_envs", [(1, 1), (5, 1), (5, 2), (7, 3), (4, 4), (2, 3)])
def test_episode_e_is_played_from_seed_plus_e(episodes, num_envs):
    result = evaluate(Still(), POLICY, make_envs(num_envs), episodes, seed=10)
    np.testing.assert_allclose(result.returns, [known_return(10 + e) for e in range(episodes)], rtol=1e-6)
    assert result.lengths == [3 + (10 + e) % 4 for e in range(episodes)]
    assert result.batch == num_envs


def test_lengths_are_agent_steps():
    envs = make_envs(2, "tests.support.counting_env:make", action_repeat=4)
    result = evaluate(Still(), POLICY, envs, 3, seed=0)
    assert result.lengths == [3, 3, 3]
    one = sum(expected_reward(0, step, np.array([0.5])) for step in range(1, 11))
    np.testing.assert_allclose(result.returns, [one, one, one + 100], rtol=1e-6)


def test_the_agent_acts_without_noise_and_is_told_of_each_start():
    agent = Still()
    evaluate(agent, POLICY, make_envs(2), 5, seed=10)
    for _, images, is_first, noise in agent.calls:
        assert noise == 0
        assert is_first == [step == 0 for _, step in images]
    starts = [seed for _, images, *_ in agent.calls for seed, step in images if step == 0]
    assert starts[:5] == [10, 11, 12, 13, 14]


class Valued:
    """Dream-MPC that records its plans."""

    def __init__(self):
        self.plans = []

    def plan(self, model, state, memory=None):
        self.plans.append(DREAM.plan(model, state, memory))
        return self.plans[-1]


def test_what_is_executed_is_the_plan_and_a_trace_s_value_its_j():
    planner = Valued()
    result = evaluate(make_agent(), planner, make_envs(2), 2, seed=11, recorded_steps=100)
    assert result.model_evaluations == DREAM.model_evaluations
    recording = result.recording
    assert len(recording.value) == len(recording.image) == 6
    for t, value in enumerate(recording.value):
        assert value == float(planner.plans[t].value[0])
        assert torch.equal(planner.plans[t].action[0], recording.action[t])
        assert decode(recording.image[t]) == (11, t)
    assert len(set(recording.value)) == 6, "each plan has its own"


@pytest.mark.parametrize("recorded_steps", [0, 2])
def test_a_listener_is_told_of_every_step(recorded_steps):
    steps = []
    heard = {"recorded_steps": recorded_steps, "on_step": lambda *counts: steps.append(counts)}
    result = evaluate(Still(), POLICY, make_envs(1), 3, seed=10, **heard)
    assert result.lengths == [5, 6, 3]
    ended = [0] * 4 + [1] * 6 + [2] * 3 + [3]
    assert steps == list(zip(range(1, 15), ended, strict=True))
    steps.clear()
    evaluate(Still(), POLICY, make_envs(3), 3, seed=10, **heard)
    assert steps == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 3)], "of all rows at once"


@pytest.mark.parametrize("planner", [DREAM, make_planner("policy", sample=True)])
def test_the_same_seed_gives_the_same_evaluation(planner):
    agent = make_agent()
    runs = [evaluate(agent, planner, make_envs(2), 3, seed=seed, recorded_steps=9) for seed in (10, 10, 14)]
    assert (runs[0].returns == runs[1].returns).all()
    assert all(map(torch.equal, runs[0].recording.action, runs[1].recording.action))
    assert not torch.equal(runs[0].recording.action[0], runs[2].recording.action[0])


def test_torch_s_generator_and_an_evaluation_do_not_change_each_other_nor_the_agent():
    agent, returns = make_agent(), []
    weights = copy.deepcopy(agent.model.state_dict())
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        returns.append(evaluate(agent, DREAM, make_envs(1), 2, seed=10).returns)
        assert torch.equal(torch.get_rng_state(), before)
    assert (returns[0] == returns[1]).all()
    assert same(agent.model.state_dict(), weights) and all(p.grad is None for p in agent.model.parameters())


@pytest.fixture(scope="module")
def recorded():
    """An agent, and its recording of episode 0: 10 steps, while row 1 plays shorter episodes."""
    agent = make_agent()
    return agent, evaluate(
        agent, DREAM, make_envs(2, "tests.support.counting_env:make"), 4, seed=3, recorded_steps=100
    ).recording


def test_a_trace_is_aligned(recorded):
    agent, recording = recorded
    assert [decode(image) for image in recording.image] == [(0, step) for step in range(10)]
    assert len(recording.state) == len(recording.action) == len(recording.reward) == len(recording.memory) == 10
    for t, (action, reward) in enumerate(zip(recording.action, recording.reward)):
        assert reward == pytest.approx(expected_reward(0, t + 1, action.numpy()), rel=1e-5)


def test_a_trace_s_states_follow_from_its_images_and_actions(recorded):
    agent, recording = recorded
    rssm, world = agent.model.world_model.rssm, agent.model.world_model
    state, action = torch.zeros(24), torch.zeros(2)
    embed = world.encode(torch.from_numpy(np.stack(recording.image)))
    for t in range(10):
        inferred, posterior = rssm.observe(
            embed[t, None, None], action[None, None], torch.tensor([[t == 0]]), state[None]
        )
        deter, stoch = recording.state[t].split([16, 8])
        torch.testing.assert_close(deter, inferred[0, 0, :16], rtol=1e-4, atol=1e-5)
        assert ((stoch - posterior.mean[0, 0]) / posterior.std[0, 0]).abs().max() < 5
        state, action = recording.state[t], recording.action[t]


def test_a_trace_s_memory_is_what_the_planner_was_given(recorded):
    _, recording = recorded
    assert recording.memory[0] is None
    for t in range(1, 10):
        assert isinstance(recording.memory[t], Memory)
        assert recording.memory[t].actions.shape == (1, 3, 2)
        assert torch.equal(recording.memory[t].actions[0, 0], recording.action[t - 1]), "the plan made one step before"


@pytest.mark.parametrize("seed, asked, steps", [(13, 0, 0), (13, 4, 4), (12, 100, 3)])
def test_a_recording_is_no_longer_than_asked_and_of_episode_0(seed, asked, steps):
    recording = evaluate(Still(), POLICY, make_envs(1), 2, seed=seed, recorded_steps=asked).recording
    assert [decode(image) for image in recording.image] == [(seed, step) for step in range(steps)]


def test_the_summary_counts_and_averages():
    summary = Evaluation(np.array([1.0, 2.0, 6.0]), [1, 1, 1], 5.0, 2, 75, EpisodeRecording()).row("cem")
    assert summary["return_mean"] == 3
    assert summary["return_std"] == pytest.approx(7**0.5)
    assert (summary["return_low"], summary["return_high"], summary["failed_episodes"]) == (None, None, None), "too few"
    assert (summary["episodes"], summary["model_evaluations"], summary["ms_per_action"]) == (3, 75, 5.0)
    assert Evaluation(np.array([4.0]), [1], 5.0, 2, 75, EpisodeRecording()).row("cem")["return_std"] == 0


def test_the_summary_of_five_episodes_and_more_has_an_interval_and_counts_failures():
    summary = Evaluation(np.array([98.0, 99, 100, 101, 102]), [1] * 5, 5.0, 2, 75, EpisodeRecording()).row("cem")
    half = 2.7764 * 0.5**0.5  # Student's t of 4 degrees of freedom, standard error sqrt(2.5 / 5)
    assert (summary["return_low"], summary["return_high"]) == pytest.approx((100 - half, 100 + half), abs=1e-3)
    assert summary["failed_episodes"] == 0
    one_fell = Evaluation(np.array([98.0, 99, 100, 101, 102, 20]), [1] * 6, 5.0, 2, 75, EpisodeRecording()).row("cem")
    assert one_fell["failed_episodes"] == 1


# pictures


@pytest.mark.parametrize("restart", [1, 4, 100])
def test_a_dream_is_the_prior_s_mean_and_restarts_from_what_is_seen(monkeypatch, restart):
    monkeypatch.setattr(visualize, "DREAM_STEPS", restart)
    agent = make_agent()
    torch.manual_seed(0)
    state, action = torch.randn(10, 24), torch.rand(10, 2) * 2 - 1
    dreamt = imagine_open_loop(agent.model, state, action)
    rssm, zeros = agent.model.world_model.rssm, torch.zeros(8)
    for t in range(10):
        if t % restart == 0:
            expected = state[t]
        else:  # action[t] was chosen on seeing image t, so action[t - 1] led into it
            expected = rssm.prior_step(expected, action[t - 1], zeros)
        torch.testing.assert_close(dreamt[t], expected)


def test_an_episode_video_shows_real_frame_reconstruction_and_dream(recorded, tmp_path, monkeypatch):
    agent, recording = recorded
    shown = {}

    def frame(page, view, panels, facts):
        for name, shot in zip(("view", "real", "reconstruction", "imagination", "facts"), (view, *panels, facts)):
            shown.setdefault(name, []).append(shot)

    monkeypatch.setattr(visualize.Page, "frame", frame)
    monkeypatch.setattr(visualize, "write_mp4", lambda path, frames, fps: shown.update(frames=list(frames), fps=fps))
    monkeypatch.setattr(visualize, "DREAM_STEPS", 6)
    episode_video(tmp_path / "episode.mp4", agent, recording, "counting", "#0072B2")
    assert shown["fps"] == visualize.UNKNOWN_SPEED, "this environment does not say how fast it is"
    assert (np.stack(shown["real"]) == np.stack(recording.image)).all()
    assert (abs(np.stack(shown["view"]).astype(int) - np.stack(recording.image)).max((1, 2, 3)) < 30).any(), "as JPEG"
    state = torch.stack(recording.state)
    dreamt = imagine_open_loop(agent.model, state, torch.stack(recording.action))
    decode_all = agent.model.world_model.decode
    assert (np.stack(shown["reconstruction"]) == decode_all(state).numpy()).all()
    assert (np.stack(shown["imagination"]) == decode_all(dreamt).numpy()).all()
    expected = agent.model.reward(dreamt)
    assert len(shown["facts"]) == 10
    for t, facts in enumerate(shown["facts"]):
        paid = 0.0 if t == 0 else recording.reward[t - 1]
        assert facts == [
            f"step {t}", f"return so far {sum(recording.reward[:t]):.1f}", f"reward {paid:.2f}",
            f"imagined reward {expected[t]:.2f}", f"imagined {t % 6} steps ahead",
            f"J of the plan {recording.value[t]:.1f}",
        ]  # fmt: skip


def test_pictures_leave_torch_s_generator_as_it_was(recorded, tmp_path, monkeypatch):
    agent, recording = recorded
    monkeypatch.setattr(visualize, "write_mp4", lambda *_: None)
    monkeypatch.setattr(visualize, "decision_picture", lambda *_, **__: None)
    before = torch.get_rng_state()
    episode_video(tmp_path / "episode.mp4", agent, recording, "counting", "#0072B2")
    assert torch.equal(torch.get_rng_state(), before)
    decision(tmp_path / "decision.png", agent, DREAM, recording, 5, "counting", "#0072B2")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("t", [0, 5])
def test_a_decision_shows_the_same_plan_before_and_after_the_ascent(recorded, tmp_path, monkeypatch, t):
    agent, recording = recorded
    drawn = []
    monkeypatch.setattr(visualize, "decision_picture", lambda path, decision, *_: drawn.append(decision))
    plain = {"line_search": (), "step_scale": "gradient"}
    planner = make_planner("dream-mpc", horizon=3, candidates=3, step_size=1e-3, latent_noise="mean", **plain)
    assert decision(tmp_path / "decision.png", agent, planner, recording, t, "counting", "#0072B2")
    shown = drawn[0]
    assert shown.before.shape == shown.after.shape == (3, 64, 64, 3)
    assert shown.j_after > shown.j_before and shown.j_error < 1e-6, "a small step along the gradient, without noise"
    change = np.linalg.norm(shown.actions_after - shown.actions_before)
    assert 0 < change <= 1e-3 * planner.grad_clip
    assert (shown.real == recording.image[t]).all()
    assert shown.names == ("action 0", "action 1")
    assert shown.meaning.startswith("J: lambda-return of 3 imagined steps, lambda 0.9, discount 0.99, minus 1")


def test_the_meaning_of_j_follows_the_planner_s_settings():
    def words(**settings):
        return visualize.meaning(make_planner("dream-mpc", **settings))

    assert "lambda-return of 10 imagined steps, lambda 0.9, discount 0.5" in words(discount=0.5)
    assert "minus 0.2 times the spread of the value heads" in words(uncertainty=0.2)
    assert "minus" not in words(uncertainty=0) and "draws" in words()
    assert "1 candidate, 3 iterations" in words(iterations=3)
    assert "rewards of 4 imagined steps and the value of step 5" in words(objective="return", horizon=5)


@pytest.mark.parametrize("planner", [POLICY, make_planner("dream-mpc", horizon=3, iterations=0)])
def test_a_planner_that_does_not_ascend_draws_nothing(recorded, tmp_path, planner):
    agent, recording = recorded
    assert not decision(tmp_path / "decision.png", agent, planner, recording, 0, "counting", "#0072B2")
    assert list(tmp_path.iterdir()) == []
