"""The training loop: the order and number of its actions, and its messages."""

import dataclasses
import gzip
import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.protocol import Update
from dreamer_mpc.config import Config, config_from_dict, load_presets, parse, resolve, to_dict, training_planner
from dreamer_mpc.config.make import replay_capacity
from dreamer_mpc.data.collect import Counters
from dreamer_mpc.envs.rows import LocalVectorEnv
from dreamer_mpc.evaluation.episodes import EpisodeRecording, Evaluation
from dreamer_mpc.planners import Policy
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.resume import open_run
from dreamer_mpc.training.reporting import Throughput, agent_name, introduction
from dreamer_mpc.training.state import MetricMeans
from dreamer_mpc.training.trainer import AHEAD, Trainer
from dreamer_mpc.util.errors import UserError
from tests.support.agents import TINY
from tests.support.commands import records, train
from tests.support.counting_env import CountingEnv

SHORT = [
    "--env", "tests.support.counting_env:make", "--planner", "policy", "--max-env-steps", "10", "--train.every", "20",
]  # fmt: skip
QUICK = load_presets("quick")


class Unlike(CountingEnv):
    """Episodes of 7 or 10 steps, depending on the seed."""

    def reset(self, *, seed=None, options=None):
        self.length = 7 if seed % 2 else 10
        return super().reset(seed=seed, options=options)


def make_trainer(folder, events, monkeypatch, *args):
    """A tiny run with its environments in this process; its actions are recorded in `events`."""
    monkeypatch.setattr("dreamer_mpc.envs.vector.WorkerVectorEnv", LocalVectorEnv)
    args = [*TINY, *SHORT, *map(str, args), "--run-dir", str(folder)]
    config = parse(Config, args, QUICK)
    trainer = Trainer(config, RunFolder.create(folder))
    envs, act, update = trainer.envs, Dreamer.act, trainer.agent.update

    monkeypatch.setattr(Dreamer, "act", noted(events, "plan", act))
    trainer.agent.update = noted(events, "update", update)
    envs.step_async, envs.step_wait = noted(events, "send", envs.step_async), noted(events, "receive", envs.step_wait)
    result = Evaluation(np.zeros(1), [1], 1.0, 1, 0, EpisodeRecording())
    monkeypatch.setattr("dreamer_mpc.evaluation.player.evaluate", noted(events, "evaluate", lambda *_, **__: result))
    return trainer


def noted(events, name, function):
    def call(*args, **kwargs):
        events.append(name)
        return function(*args, **kwargs)

    return call


def test_one_environment_alternates_as_in_the_paper(tmp_path, monkeypatch):
    events = []
    trainer = make_trainer(tmp_path, events, monkeypatch, "--env-steps", 70, "--train.updates", 3, "--eval.every", 40)
    trainer.run()
    random, planned = ["send", "receive"], ["plan", "send", "receive"]
    # 10 env steps of a seed episode, then rounds of 3 updates and 20 env steps; evaluation at the round past 40.
    a_round = ["update"] * 3 + planned * 20
    assert events == random * 10 + a_round * 2 + ["evaluate"] + a_round + ["evaluate"]
    rows = [(row["env_steps"], row["updates"]) for row in records(tmp_path) if "eval/return_mean" not in row]
    assert rows == [(10, 0), (30, 3), (50, 6), (70, 9)]
    rounds = [row for row in records(tmp_path) if "train/updates_per_s" in row]
    assert [row["updates"] for row in rounds] == [3, 6, 9] and all(row["train/env_steps_per_s"] > 0 for row in rounds)


def test_throughput_is_that_of_training_since_the_last_record():
    now = [0.0]
    throughput = Throughput(Counters(env_steps=1000), clock=lambda: now[0])
    assert throughput.read(Counters(env_steps=1000)) == {}
    now[0] = 10.0
    expected = {"train/env_steps_per_s": 50.0, "train/updates_per_s": 2.0}
    assert throughput.read(Counters(env_steps=1500, updates=20)) == expected
    now[0] = 500.0  # an evaluation
    throughput.restart(Counters(env_steps=1500, updates=20))
    now[0] = 520.0
    assert throughput.read(Counters(env_steps=2500, updates=60)) == expected


@pytest.mark.parametrize("num_envs, repeat", [(2, 1), (4, 1), (3, 2), (8, 3)])
@pytest.mark.parametrize("updates", [0, 1, 13])
def test_several_environments_step_while_updates_run_in_the_exact_ratio(
    num_envs, repeat, updates, tmp_path, monkeypatch
):
    events = []
    args = ["--num-envs", num_envs, "--action-repeat", repeat, "--train.updates", updates, "--env-steps", 200]
    trainer = make_trainer(tmp_path, events, monkeypatch, *args)
    monkeypatch.setattr(trainer.agent, "update", fake_update(events))
    trainer.run()
    start = 10  # one seed episode
    first, seeding = events.index("plan"), -(-10 // repeat)
    assert events[:first] == ["send", "receive"] * seeding + ["update"] * updates, "a round of updates, then steps"
    issued, env_steps, position = updates, start, first
    while events[position] == "plan":
        assert events[position + 1] == "send"
        end = events.index("receive", position)
        between = events[position + 2 : end]
        assert set(between) <= {"update"}, "updates are issued while the step is in flight"
        # Episodes are 10 env steps, so with action repeat 3 the last step of an episode is shorter.
        in_flight = min(env_steps + repeat * num_envs, 200)
        issued = max(issued, updates + updates * (in_flight - start) // 20)
        assert len(between) == issued - events[:position].count("update")
        env_steps += num_envs * min(repeat, 10 - ((env_steps - start) // num_envs) % 10)
        position = end + 1
    assert events[position:] == ["evaluate"]
    assert env_steps == trainer.counters.env_steps >= 200
    assert trainer.counters.updates == updates + updates * (200 - start) // 20


def test_an_update_before_the_actions_are_sent_changes_no_number(tmp_path, monkeypatch):
    """As on a GPU, where the plan is waited for after that update was asked for; here with updates that learn."""
    weights, orders = [], []
    for ahead in (0, 1):
        monkeypatch.setitem(AHEAD, "cpu", ahead)
        events = []
        args = ["--num-envs", 3, "--train.updates", 12, "--env-steps", 90, "--planner", "dream-mpc"]
        with monkeypatch.context() as patch:
            trainer = make_trainer(tmp_path / str(ahead), events, patch, *args)
            trainer.run()
        weights.append([*trainer.agent.model.parameters()])
        orders.append(events)
        trainer.close()
    assert all(map(torch.equal, *weights))
    after = [{b for a, b in pairwise(order) if a == "plan"} for order in orders]
    assert after[0] == {"send"} and "update" in after[1]
    assert Counter(orders[0]) == Counter(orders[1])


def fake_update(events):
    def update(_):
        events.append("update")
        return Update({"loss": torch.zeros(()), "skipped": torch.zeros(())}, torch.zeros(1, 1, 1))

    return update


def test_rows_that_end_at_different_times_keep_the_ratio(tmp_path, monkeypatch):
    args = ["--env", "tests.test_train:Unlike", "--num-envs", 2, "--action-repeat", 4, "--train.updates", 5]
    trainer = make_trainer(tmp_path, [], monkeypatch, *args, "--env-steps", 300, "--train.seed-episodes", 3)
    monkeypatch.setattr(trainer.agent, "update", fake_update([]))
    trainer.run()
    rows = records(tmp_path)
    start, last = rows[0]["env_steps"], rows[-1]
    assert last["env_steps"] < 4 * last["agent_steps"], "some steps were cut short"
    assert last["updates"] == 5 + 5 * (300 - start) // 20
    for row in rows[1:]:
        exact = 5 + 5 * (min(row["env_steps"], 300) - start) / 20
        assert -1 < row["updates"] - exact < 5 * 8 / 20


@pytest.mark.parametrize("num_envs, done", [(1, 120), (4, 122)])  # a seed episode of 10 env steps, then whole steps
def test_a_longer_run_goes_on_without_seed_episodes_in_the_same_ratio(num_envs, done, tmp_path, monkeypatch):
    args, events = ["--num-envs", num_envs, "--train.updates", 6], []
    trainer = make_trainer(tmp_path, [], monkeypatch, *args, "--env-steps", done)
    trainer.run()
    before = trainer.counters.updates
    config = parse(Config, ["--env-steps", "240", "--resume", str(tmp_path)], trainer.config)
    saved = open_run(str(tmp_path))
    saved.check(config)
    resumed = Trainer(config, saved.folder, saved.checkpoint)
    assert (resumed.counters.env_steps, resumed.counters.updates) == (done, before)
    monkeypatch.setattr(Dreamer, "act", noted(events, "plan", Dreamer.act))
    monkeypatch.setattr(resumed.agent, "update", noted(events, "update", resumed.agent.update))
    resumed.run()
    ahead = ["plan", "update", "plan", "update", "update", "plan", "update", "plan"]  # 0.3 updates for each env step
    assert events[:8] == (["update"] * 6 + ["plan"] * 2 if num_envs == 1 else ahead)
    rounds = (6, 12) if num_envs == 1 else (1 + 112 / 20, 1 + 230 / 20)
    assert (before, resumed.counters.updates) == tuple(int(6 * n) for n in rounds)
    assert events.count("update") == resumed.counters.updates - before


def test_errors_of_simulators_and_lost_environments_are_logged_once_there_are_some(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, [], monkeypatch, "--num-envs", 2, "--env-steps", 80)
    receive, steps = trainer.envs.step_wait, iter(range(1000))

    def faulty():
        image, reward, terminated, truncated, info = receive()
        lost = np.array([next(steps) == 22, False])
        info |= {"simulator_error": lost[::-1], "lost": lost}
        return image, reward, terminated, truncated | lost | lost[::-1], info

    monkeypatch.setattr(trainer.envs, "step_wait", faulty)
    trainer.run()
    counts = [
        (row.get("train/simulator_errors"), row.get("train/lost_environments"))
        for row in records(tmp_path)
        if "eval/return_mean" not in row
    ]
    assert counts == [(None, None)] * 2 + [(1.0, 1.0)] * 3


@pytest.mark.parametrize(
    "num_envs, words",
    [(1, "take turns (sequential"), (2, "2 environments, planned in one batch: they step while updates run")],
)
def test_the_user_is_told_how_collecting_and_updating_go_together(num_envs, words, tmp_path, monkeypatch, capsys):
    trainer = make_trainer(tmp_path, [], monkeypatch, "--num-envs", num_envs, "--env-steps", 60)
    trainer.run()
    output = capsys.readouterr().out
    assert words in output and "replay 0." in output
    assert output.count("set-up before the first update") == 1


def test_a_fast_form_that_does_not_fit_is_said_at_the_start(tmp_path, monkeypatch, capsys):
    trainer = make_trainer(tmp_path, [], monkeypatch, "--env-steps", 20)
    trainer.agent.forms = dataclasses.replace(trainer.agent.forms, reasons=("the cell is too wide",))
    trainer.run()
    assert capsys.readouterr().out.count("the cell is too wide") == 1


def test_a_profile_opens_as_a_trace_and_training_goes_on(tmp_path, monkeypatch, capsys):
    args = ["--num-envs", 2, "--env-steps", 160, "--train.updates", 12, "--profile"]
    trainer = make_trainer(tmp_path, [], monkeypatch, *args)
    trainer.run()
    assert trainer.counters.env_steps == 160
    path = tmp_path / "profile" / "trace.json.gz"
    output = " ".join(capsys.readouterr().out.split())
    assert f"{path}" in output and "https://ui.perfetto.dev" in output and "no profile" not in output
    spans = Counter(event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"])
    assert 3 <= spans["update"] <= 6 and 3 <= spans["store"] <= 10
    # The evaluation begins while a step is in flight.
    assert spans["store"] == spans["wait for environments"] == spans["plan"] + 1
    assert path.stat().st_size < 2e6


@pytest.mark.parametrize("args", [["--train.updates", "0"], ["--env-steps", "40"], ["--env-steps", "10"]])
def test_a_run_that_ends_before_its_profile_says_so(args, tmp_path, monkeypatch, capsys):
    trainer = make_trainer(tmp_path, [], monkeypatch, "--env-steps", 60, "--profile", *args)
    trainer.run()
    assert capsys.readouterr().out.count("no profile") == 1
    assert not (tmp_path / "profile").exists()


# seed episodes, exploration, termination


@pytest.mark.parametrize("num_envs, episodes", [(1, 5), (2, 5), (5, 5), (8, 5), (8, 9), (3, 1)])
def test_seed_episodes_are_exactly_as_many_as_asked(num_envs, episodes, tmp_path, monkeypatch):
    args = ["--num-envs", num_envs, "--train.seed-episodes", episodes, "--train.updates", 0, "--env-steps", 130]
    trainer = make_trainer(tmp_path, [], monkeypatch, *args)
    held, act = [], Dreamer.act

    def noting(*args):
        held.append((trainer.replay.episodes, len(trainer.replay)))
        return act(*args)

    monkeypatch.setattr(Dreamer, "act", noting)
    trainer.run()
    assert records(tmp_path)[0]["env_steps"] == 10 * episodes, "rows without a seed episode are not stepped"
    assert records(tmp_path)[0]["episodes"] == episodes
    assert held[0] == (episodes + num_envs, 11 * episodes + num_envs), "and all rows have begun another one"


def test_across_episodes_seed_episodes_go_on_until_an_environment_has_a_sequence(tmp_path):
    args = [*TINY, "--planner", "policy", "--env-steps", "90", "--num-envs", "2", "--train.seed-episodes", "1"]
    args += ["--replay.sequence-length", "25", "--replay.across-episodes"]  # an episode has 8 steps and 9 frames
    output = train(*args, "--run-dir", tmp_path / "run")
    assert output.count("1 seed episode gave no 25 frames of one environment") == 1
    rows = records(tmp_path / "run")
    # One environment: 9, 9 and 7 frames, which are 8, 8 and 6 steps. The other one joins it after its first episode.
    assert (rows[0]["env_steps"], rows[0]["agent_steps"]) == (8 + 2 * (8 + 6), 8 + 2 * (8 + 6))
    assert (rows[0]["episodes"], rows[0]["updates"]) == (2 + 1, 0)
    assert rows[-1]["env_steps"] == 90 and rows[-1]["updates"] > 0


def test_seed_episodes_are_over_where_a_resume_asks_for_no_more_than_there_were(tmp_path):
    args = [*TINY, "--planner", "policy", "--num-envs", "1", "--train.seed-episodes", "20"]
    assert "2 of 20 ended" in train(*args, "--run-dir", tmp_path / "run", code=2)
    assert "evaluation at 16 env steps" in train("--resume", tmp_path / "run", "--train.seed-episodes", 2)


def test_seed_episodes_that_never_give_a_sequence_end_the_run_with_what_to_change(tmp_path):
    args = [*TINY, "--planner", "policy", "--replay.sequence-length", "25", "--replay.across-episodes"]
    said = train(*args, "--num-envs", "1", "--run-dir", tmp_path / "run", code=2)
    assert "2 ended, and gave no 25 frames of one environment" in said and "raise --env-steps" in said
    assert train("--resume", tmp_path / "run", "--env-steps", 40).count("evaluation at 40 env steps") == 1


@pytest.mark.parametrize(
    "args, acts",
    [
        ([], Policy(sample=True)),
        (["--train.policy-action", "mode"], Policy()),
        (["--planner", "mppi", "--train-planner", "policy"], Policy(sample=True)),
        (["--planner", "policy", "--train-planner", "mppi"], None),
        (["--policy.sample"], Policy(sample=True)),
        (["--policy.sample", "--train.policy-action", "mode"], Policy()),
    ],
)
def test_the_policy_samples_while_collecting_and_in_evaluations_where_that_is_asked_for(
    args, acts, tmp_path, monkeypatch, capsys
):
    played = []
    trainer = make_trainer(tmp_path, [], monkeypatch, "--env-steps", 30, *args)
    result = Evaluation(np.zeros(1), [1], 1.0, 1, 0, EpisodeRecording())
    evaluate = "dreamer_mpc.evaluation.player.evaluate"
    monkeypatch.setattr(evaluate, lambda _, planner, *__, **___: played.append(planner) or result)
    acting, act = set(), Dreamer.act
    monkeypatch.setattr(Dreamer, "act", lambda self, planner, *rest: acting.add(planner) or act(self, planner, *rest))
    trainer.run()
    assert acting == {acts or trainer.config.mppi}
    assert played == [Policy("--policy.sample" in args) if "mppi" not in args[:2] else trainer.config.mppi]
    two = "acted by policy (sampled while collecting) in training, mppi in evaluation, on"
    assert (two in capsys.readouterr().out) == (args[:2] == ["--planner", "mppi"])


@pytest.mark.parametrize("args, words", [
    ([], "Dreamer"), (["--agent", "planet"], "PlaNet (world model alone)"),
    (["--world-model.kind", "categorical", "--behavior.kind", "v3"], "DreamerV3"),
    (["--world-model.kind", "categorical"], "Dreamer (categorical world model, dreamer behavior)"),
    (["--behavior.kind", "v3"], "Dreamer (gaussian world model, v3 behavior)"),
    (["--world-model.kind", "categorical", "--agent", "planet"], "PlaNet (world model alone, categorical)"),
])  # fmt: skip
def test_a_run_is_introduced_by_its_family(args, words):
    assert agent_name(dataclasses.replace(config(*args), agent="planet" if "planet" in args else "dreamer")) == words


@pytest.mark.parametrize("args, words", [
    ([], "policy (sampled while collecting) on"),
    (["--policy.sample"], "policy (sampled) on"),
    (["--policy.sample", "--train.policy-action", "mode"], "policy (sampled in evaluation) on"),
    (["--train.policy-action", "mode"], "policy on"),
    (["--policy.sample", "--train-planner", "cem"], "cem in training, policy (sampled) in evaluation, on"),
    (["--policy.sample", "--planner", "mppi"], "mppi on"),
])  # fmt: skip
def test_a_run_says_where_the_policy_samples(args, words, tmp_path):
    settings = resolve(config("--planner", "policy", *args))
    lines = introduction(settings, training_planner(settings), torch.device("cpu"), RunFolder(tmp_path))
    assert f", acted by {words} " in next(lines)


def test_a_run_that_was_saved_before_the_setting_goes_on_with_the_mode():
    values = to_dict(QUICK)
    del values["train"]["policy_action"]
    assert config_from_dict(values, "an old run").train.policy_action == "mode"
    assert QUICK.train.policy_action == "sample"
    del values["policy"]
    assert not config_from_dict(values, "an old run").policy.sample
    values["train"]["policy_action"] = "sample"
    assert config_from_dict(values, "a new run").train.policy_action == "sample"


def test_a_termination_is_said_once_a_run(tmp_path, monkeypatch, capsys):
    words = "tests.test_train:terminating terminated an episode: imagination and values go on past it"
    args = ["--env", "tests.test_train:terminating", "--num-envs", 2]
    trainer = make_trainer(tmp_path, [], monkeypatch, *args, "--env-steps", 60)
    trainer.run()
    out = " ".join(capsys.readouterr().out.split())
    assert out.count(words) == 1 and "--world-model.continuation" in out
    config = parse(Config, ["--env-steps", "100", "--resume", str(tmp_path)], trainer.config)
    resumed = Trainer(config, RunFolder(tmp_path), open_run(str(tmp_path)).checkpoint)
    resumed.run()
    assert resumed.collector.terminations > 0
    assert words not in " ".join(capsys.readouterr().out.split()), "a resumed run has said it"


def test_a_run_that_predicts_where_episodes_end_is_given_no_advice_about_it(tmp_path, monkeypatch, capsys):
    args = ["--env", "tests.test_train:terminating", "--world-model.continuation", "--env-steps", 60]
    trainer = make_trainer(tmp_path, [], monkeypatch, *args)
    trainer.run()
    assert trainer.collector.terminations > 0 and "terminated" not in capsys.readouterr().out


def terminating():
    return CountingEnv(terminates=True)


# latent states


@pytest.mark.parametrize("num_envs", [1, 2])
def test_replay_keeps_the_states_of_acting_and_those_of_the_last_update(num_envs, tmp_path, monkeypatch):
    args = ["--replay.states", "--num-envs", num_envs, "--train.updates", 3, "--env-steps", 60]
    trainer = make_trainer(tmp_path, [], monkeypatch, *args)
    replay, agent, expected = trainer.replay, trainer.agent, {}  # slot -> state
    act, update, planned = Dreamer.act, agent.update, []

    def keep(slots, states):
        for slot, state in zip(slots, states, strict=True):
            expected[slot] = state.bfloat16()

    def acted(*inputs):
        for slots, states in planned:  # stored when the step is received
            keep(slots, states)
        plan = act(*inputs)
        streams = np.arange(num_envs)
        planned[:] = [((streams * replay.size + (replay.written - 1) % replay.size).tolist(), plan.carry.state)]
        return plan

    def updated(batch):
        learned = update(batch)
        position = batch.index // num_envs
        slots = batch.index % num_envs * replay.size + position % replay.size
        for column in range(slots.shape[1]):
            keep(slots[:, column].tolist(), learned.states[:, column])
        return learned

    monkeypatch.setattr(Dreamer, "act", acted)
    agent.update = updated
    trainer.run()
    for slots, states in planned:
        keep(slots, states)
    assert len(expected) > 40 and replay.states.known.sum() == len(expected)
    assert all(torch.equal(replay.states.state[slot], state) for slot, state in expected.items())


# replay's size


def config(*args):
    return parse(Config, list(map(str, args)), Config())


@pytest.mark.parametrize("num_envs", [1, 8, 7])
def test_the_replay_has_room_for_the_whole_run_and_no_more(num_envs):
    settings = ["--num-envs", num_envs, "--env-steps", 200_000]
    capacity = replay_capacity(config(*settings))
    episodes = 200_000 // 1000 + 2 * num_envs
    assert 100_000 + episodes <= capacity < 110_000 and capacity % num_envs == 0
    assert replay_capacity(config(*settings, "--replay.capacity", 30_000)) == 30_000 // num_envs * num_envs


def test_a_share_below_two_sequences_is_refused_in_one_line():
    replay_capacity(config("--num-envs", 8, "--replay.capacity", 800))
    with pytest.raises(
        UserError, match="--replay.capacity 799 .*100 frames.*8 training environments.*--num-envs"
    ) as error:
        replay_capacity(config("--num-envs", 8, "--replay.capacity", 799))
    assert "\n" not in str(error.value)


def test_metrics_are_means_and_skipped_updates_are_counted():
    means = MetricMeans()
    assert means.read() == {}
    for loss, skipped in [(1.0, 0.0), (2.0, 1.0), (6.0, 1.0)]:
        means.add({"loss": torch.tensor(loss), "skipped": torch.tensor(skipped)})
    assert means.read() == {"train/loss": 3.0, "train/skipped_updates": 2}
