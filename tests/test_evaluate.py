"""Evaluation episodes and their pictures."""

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from dreamer_mpc.evaluation import visualize
from dreamer_mpc.evaluation.episodes import Evaluation, Trace, evaluate
from dreamer_mpc.evaluation.visualize import decision, episode_video, imagine_open_loop
from dreamer_mpc.planners import Memory, make_planner
from envs import make_vector_env
from tests.support.agents import make_agent
from tests.support.counting_env import CountingEnv, decode, encode, expected_reward
from tests.support.recorder import Recorder

POLICY = make_planner("policy")
DREAM = make_planner("dream-mpc", horizon=3, candidates=3, reuse=0.5)


class SeededEnv(CountingEnv):
    """Image and reward name the seed of the reset instead of the episode's number; 3 + seed % 4 steps."""

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


def test_a_planner_s_executed_action_is_its_plan():
    class Recording:
        plans = []

        def plan(self, model, state, memory=None):
            self.plans.append(DREAM.plan(model, state, memory))
            return self.plans[-1]

    planner = Recording()
    result = evaluate(make_agent(), planner, make_envs(1), 1, seed=11, trace_steps=100)
    assert len(planner.plans) == result.lengths[0] == len(result.trace.action)
    for plan, action in zip(planner.plans, result.trace.action):
        assert torch.equal(plan.action[0], action)
    assert result.model_evaluations == DREAM.model_evaluations


class Valued:
    """Dream-MPC that notes what it planned."""

    def __init__(self):
        self.plans = []

    def plan(self, model, state, memory=None):
        self.plans.append(DREAM.plan(model, state, memory))
        return self.plans[-1]


def test_a_trace_s_value_is_j_of_the_plan_made_on_seeing_the_image():
    planner = Valued()
    trace = evaluate(make_agent(), planner, make_envs(2), 2, seed=11, trace_steps=100).trace
    assert len(trace.value) == len(trace.image) == 6
    for t, value in enumerate(trace.value):
        assert value == float(planner.plans[t].value[0])
        assert torch.equal(planner.plans[t].action[0], trace.action[t])
        assert decode(trace.image[t]) == (11, t)
    assert len(set(trace.value)) == 6, "each plan has its own"


@pytest.mark.parametrize("trace_steps", [0, 2])
def test_a_listener_is_told_of_every_step(trace_steps):
    steps = []
    result = evaluate(Still(), POLICY, make_envs(1), 3, seed=10, trace_steps=trace_steps, on_step=steps.append)
    assert result.lengths == [5, 6, 3]
    assert steps == list(range(1, 15))


def test_a_listener_is_told_of_the_steps_of_all_rows_at_once():
    steps = []
    evaluate(Still(), POLICY, make_envs(3), 3, seed=10, on_step=steps.append)
    assert steps == [1, 2, 3, 4, 5, 6], "as many as the longest episode"


def test_the_same_seed_gives_the_same_evaluation():
    agent = make_agent()
    runs = [evaluate(agent, DREAM, make_envs(2), 3, seed=seed, trace_steps=9) for seed in (10, 10, 14)]
    assert (runs[0].returns == runs[1].returns).all()
    assert all(map(torch.equal, runs[0].trace.action, runs[1].trace.action))
    assert not torch.equal(runs[0].trace.action[0], runs[2].trace.action[0])


def test_torch_s_generator_is_left_as_it_was():
    agent, before = make_agent(), torch.get_rng_state()
    evaluate(agent, DREAM, make_envs(1), 1, seed=10)
    assert torch.equal(torch.get_rng_state(), before)


def test_torch_s_generator_does_not_change_an_evaluation():
    agent, returns = make_agent(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        returns.append(evaluate(agent, DREAM, make_envs(1), 2, seed=10).returns)
    assert (returns[0] == returns[1]).all()


def test_the_agent_is_not_changed():
    agent = make_agent()
    before = {name: x.clone() for name, x in agent.model.state_dict().items()}
    evaluate(agent, DREAM, make_envs(1), 1, seed=10)
    assert all(torch.equal(x, before[name]) for name, x in agent.model.state_dict().items())
    assert all(p.grad is None for p in agent.model.parameters())


@pytest.fixture(scope="module")
def traced():
    """An agent, and its trace of episode 0: 10 steps, while row 1 plays shorter episodes."""
    agent = make_agent()
    return agent, evaluate(
        agent, DREAM, make_envs(2, "tests.support.counting_env:make"), 4, seed=3, trace_steps=100
    ).trace


def test_a_trace_is_aligned(traced):
    agent, trace = traced
    assert [decode(image) for image in trace.image] == [(0, step) for step in range(10)]
    assert len(trace.state) == len(trace.action) == len(trace.reward) == len(trace.memory) == 10
    for t, (action, reward) in enumerate(zip(trace.action, trace.reward)):
        assert reward == pytest.approx(expected_reward(0, t + 1, action.numpy()), rel=1e-5)


def test_a_trace_s_states_follow_from_its_images_and_actions(traced):
    agent, trace = traced
    rssm, world = agent.model.world_model.rssm, agent.model.world_model
    state, action = torch.zeros(24), torch.zeros(2)
    embed = world.encode(torch.from_numpy(np.stack(trace.image)))
    for t in range(10):
        _, posterior, prior = rssm.observe(
            embed[t, None, None], action[None, None], torch.tensor([[t == 0]]), state[None]
        )
        deter, stoch = trace.state[t].split([16, 8])
        torch.testing.assert_close(rssm.prior(deter).mean, prior.mean[0, 0], rtol=1e-4, atol=1e-5)
        assert ((stoch - posterior.mean[0, 0]) / posterior.std[0, 0]).abs().max() < 5
        state, action = trace.state[t], trace.action[t]


def test_a_trace_s_memory_is_what_the_planner_was_given(traced):
    _, trace = traced
    assert trace.memory[0] is None
    for t in range(1, 10):
        assert isinstance(trace.memory[t], Memory)
        assert trace.memory[t].actions.shape == (1, 3, 2)
        assert torch.equal(trace.memory[t].actions[0, 0], trace.action[t - 1]), (
            "the plan made one step before"
        )


@pytest.mark.parametrize("steps", [0, 4])
def test_a_trace_is_no_longer_than_asked_and_of_episode_0(steps):
    trace = evaluate(Still(), POLICY, make_envs(1), 2, seed=13, trace_steps=steps).trace
    assert [decode(image) for image in trace.image] == [(13, step) for step in range(steps)]


def test_a_trace_stops_where_episode_0_does():
    trace = evaluate(Still(), POLICY, make_envs(1), 2, seed=12, trace_steps=100).trace
    assert [decode(image) for image in trace.image] == [(12, step) for step in range(3)]


def test_the_summary_counts_and_averages():
    summary = Evaluation(np.array([1.0, 2.0, 6.0]), [1, 1, 1], 5.0, 2, 75, Trace()).summary()
    assert summary["return_mean"] == 3
    assert summary["return_std"] == pytest.approx(7**0.5)
    assert (summary["return_low"], summary["return_high"], summary["failed_episodes"]) == (None, None, None), "too few"
    assert (summary["episodes"], summary["model_evaluations"], summary["ms_per_action"]) == (3, 75, 5.0)
    assert Evaluation(np.array([4.0]), [1], 5.0, 2, 75, Trace()).summary()["return_std"] == 0


def test_the_summary_of_five_episodes_and_more_has_an_interval_and_counts_failures():
    summary = Evaluation(np.array([98.0, 99, 100, 101, 102]), [1] * 5, 5.0, 2, 75, Trace()).summary()
    half = 2.7764 * 0.5**0.5  # Student's t of 4 degrees of freedom, standard error sqrt(2.5 / 5)
    assert (summary["return_low"], summary["return_high"]) == pytest.approx((100 - half, 100 + half), abs=1e-3)
    assert summary["failed_episodes"] == 0
    one_fell = Evaluation(np.array([98.0, 99, 100, 101, 102, 20]), [1] * 6, 5.0, 2, 75, Trace()).summary()
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


def test_an_episode_video_has_a_frame_a_step(traced, tmp_path):
    agent, trace = traced
    path = tmp_path / "episode.mp4"
    episode_video(path, agent, trace, fps=5)
    frames = np.stack(imageio.mimread(path, memtest=False))
    assert len(frames) == 10
    assert frames.shape[1] > 256
    assert frames.shape[2] > 3 * 256
    assert frames[0].std() > 10


def test_an_episode_video_shows_real_frame_reconstruction_and_dream(traced, tmp_path, monkeypatch):
    agent, trace = traced
    shown = {}
    monkeypatch.setattr(
        visualize, "side_by_side", lambda columns, footer: shown.update(columns, footer=footer)
    )
    monkeypatch.setattr(visualize, "write_mp4", lambda *_: None)
    monkeypatch.setattr(visualize, "DREAM_STEPS", 6)
    episode_video(tmp_path / "episode.mp4", agent, trace)
    assert (shown["real"] == np.stack(trace.image)).all()
    state = torch.stack(trace.state)
    dreamt = imagine_open_loop(agent.model, state, torch.stack(trace.action))
    decode_all = agent.model.world_model.decode
    assert (shown["reconstruction"] == decode_all(state).numpy()).all()
    assert (shown["imagination"] == decode_all(dreamt).numpy()).all()
    expected = agent.model.reward(dreamt)
    for t, line in enumerate(shown["footer"]):
        paid = 0.0 if t == 0 else trace.reward[t - 1]
        assert line.split("reward")[1].split()[0] == f"{paid:.2f}"
        assert line.split("dreamed")[1].strip() == f"{expected[t]:.2f}"
        assert f"dreaming {t % 6:2d} steps ahead" in line


def test_the_footer_says_j_of_the_plan_and_the_return_so_far(traced, tmp_path, monkeypatch):
    agent, trace = traced
    shown = []
    monkeypatch.setattr(visualize, "side_by_side", lambda columns, footer: shown.extend(footer))
    monkeypatch.setattr(visualize, "write_mp4", lambda *_: None)
    episode_video(tmp_path / "episode.mp4", agent, trace)
    assert len(shown) == 10
    for t, line in enumerate(shown):
        assert line.startswith(f"step {t:3d} ")
        assert line.split(" J ")[1].split()[0] == f"{trace.value[t]:.1f}"
        assert line.split("return so far")[1].split()[0] == f"{sum(trace.reward[:t]):.1f}"


@pytest.mark.parametrize("t", [0, 5])
def test_a_decision_is_drawn(traced, tmp_path, t):
    agent, trace = traced
    path = tmp_path / "decision.png"
    assert decision(path, agent, DREAM, trace, t, "counting")
    image = imageio.imread(path)
    assert image.shape[:2] == (900, 1600)
    assert image[..., :3].std() > 10


def test_pictures_leave_torch_s_generator_as_it_was(traced, tmp_path, monkeypatch):
    agent, trace = traced
    monkeypatch.setattr(visualize, "write_mp4", lambda *_: None)
    monkeypatch.setattr(visualize, "decision_picture", lambda *_, **__: None)
    before = torch.get_rng_state()
    episode_video(tmp_path / "episode.mp4", agent, trace)
    assert torch.equal(torch.get_rng_state(), before)
    decision(tmp_path / "decision.png", agent, DREAM, trace, 5, "counting")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_decision_shows_the_same_plan_before_and_after_the_ascent(traced, tmp_path, monkeypatch):
    agent, trace = traced
    drawn = []
    monkeypatch.setattr(visualize, "decision_picture", lambda *args, **options: drawn.append((args, options)))
    plain = {"line_search": (), "step_scale": "gradient"}
    planner = make_planner("dream-mpc", horizon=3, candidates=3, step_size=1e-3, latent_noise="mean", **plain)
    assert decision(tmp_path / "decision.png", agent, planner, trace, 5, "counting")
    (_, before, after, j_before, j_after, actions_before, actions_after), options = drawn[0]
    assert before.shape == after.shape == (3, 64, 64, 3)
    assert j_after > j_before, "a small step along the gradient"
    change = np.linalg.norm(actions_after - actions_before)
    assert 0 < change <= 1e-3 * planner.grad_clip
    assert (options["real"] == trace.image[5]).all()


@pytest.mark.parametrize("planner", [POLICY, make_planner("dream-mpc", horizon=3, iterations=0)])
def test_a_planner_that_does_not_ascend_draws_nothing(traced, tmp_path, planner):
    agent, trace = traced
    assert not decision(tmp_path / "decision.png", agent, planner, trace, 0, "counting")
    assert list(tmp_path.iterdir()) == []
