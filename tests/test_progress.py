"""Progress of runs, episodes and sweeps: what a terminal shows, and the lines without one."""

import io
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dreamer_mpc.evaluation.progress import EpisodesProgress, lines_of_evaluation
from dreamer_mpc.report.display import LINE_EVERY_S, is_live
from dreamer_mpc.report.words import duration
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.sweeps.progress import SweepProgress, total_line
from dreamer_mpc.sweeps.run import Run
from dreamer_mpc.sweeps.sweep import Entry
from dreamer_mpc.training.progress import Progress
from dreamer_mpc.util.stop import STOPPING, Stop


class Clock:
    """A clock that the tests advance."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})


def lines(console):
    return console.file.getvalue().splitlines()


def screen(progress):
    """The current text of the live display, without colours."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(progress._render() if isinstance(progress, Progress) else progress._bar.get_renderable())
    return console.file.getvalue().rstrip("\n").split("\n")


def test_without_a_terminal_one_line_at_most_every_half_minute(clock):
    console = plain()
    with Progress(10_000, console=console, clock=clock) as progress:
        for second in range(1, 100):
            clock.now = float(second)
            progress.update(second * 10, second, "train")
        assert len(lines(console)) == int(99 // LINE_EVERY_S)
        progress.line("x" * 200 + " [bold]y[/bold]")
    assert "env steps 300/10,000 (3.0 %)" in lines(console)[0]
    assert "env steps 990/10,000" in lines(console)[-1], "the end is said once"
    assert lines(console)[-2] == "x" * 200 + " [bold]y[/bold]", "not wrapped"
    assert "\x1b" not in console.file.getvalue()


def test_without_a_terminal_every_evaluation_has_its_line(clock):
    console = plain()
    with Progress(10_000, console=console, clock=clock) as progress:
        for env_steps in (100, 200, 300):
            clock.now += 1
            progress.update(env_steps, 0)
            progress.update(env_steps, 0, eval_return=env_steps / 2)
    assert [re.search(r"eval ([\d.]+)", line)[1] for line in lines(console)] == ["50.0", "100.0", "150.0"]


@pytest.mark.parametrize("before", [0, 500_000])
def test_rates_are_those_of_the_last_minute_and_of_this_run(clock, before):
    progress = Progress(1_000_000, start_env_steps=before, console=plain(), clock=clock)
    for second in range(600):
        clock.now = float(second)
        fast = max(second - 300, 0)
        progress.update(before + second * 10 + fast * 90, 50_000 + second, "train")
        if second == 20:
            assert progress.rates() == pytest.approx((10, 1))
    assert progress.rates() == pytest.approx((100, 1))


def test_a_long_phase_of_updates_does_not_show_a_rate_of_zero(clock):
    progress = Progress(1_000_000, console=plain(), clock=clock)
    for second in range(1000):
        clock.now = float(second)
        progress.update(1000 * (1 + second // 200), second)
    env_rate, _ = progress.rates()
    assert 2 < env_rate < 10


def test_the_display_fits_80_columns_and_says_everything(clock):
    progress = Progress(1_000_000, console=terminal(), clock=clock)
    assert "ETA -" in " ".join(screen(progress))
    for clock.now, env_steps in ((0.0, 0), (753.0, 420_000)):
        progress.update(env_steps, env_steps // 20, "train")
    begins = screen(progress)[0].index("━")
    progress.update(420_000, 21_000, "seed episodes", train_return=512.34, eval_return=604.1)
    shown = screen(progress)
    assert len(shown) == 3
    assert all(len(line) <= 80 for line in shown)
    assert "…" not in "".join(shown)
    text = " ".join(shown)
    for words in ("seed episodes", "42.0 %", "420,000/1,000,000 env steps", "558 env steps/s",
                  "27.9 updates/s", "train return 512.3", "eval return 604.1",
                  "elapsed 0:12:33", "ETA 0:17:19"):  # fmt: skip
        assert words in text
    assert shown[0].count("━") > 10 and shown[0].index("━") == begins, "a new phase does not move the bar"
    for env_steps, percent in ((999_999, "99.9 %"), (1_000_100, "100.0 %")):
        progress.update(env_steps, 21_000)
        shown = screen(progress)
        assert percent in shown[0], "not rounded up to done"
        assert all(words in " ".join(shown) for words in ("seed episodes", "train return 512.3", "eval return 604.1"))


def test_on_a_terminal_lines_go_above_the_bar_and_the_cursor_comes_back_after_an_error(clock):
    console = terminal()
    with pytest.raises(KeyError), Progress(1000, console=console, clock=clock) as progress:
        progress.update(500, 10, "train")
        progress.line("checkpoint runs/x/checkpoints/checkpoint-00000500.safetensors")
        raise KeyError
    text = console.file.getvalue()
    assert text.index("checkpoint-00000500.safetensors") < text.rindex("env steps/s")
    assert "\x1b[?25h" in text, "the cursor is shown again"


def seconds_left(progress):
    text = progress._fields()["ETA"]
    if text == "-":
        return None
    days, _, clock = text.rpartition("d ")
    parts = [int(part) for part in clock.split(":")] + [0] * bool(days)
    return 86_400 * int(days or 0) + 3600 * parts[0] + 60 * parts[1] + parts[2]


@pytest.mark.parametrize("updating, collecting", [(1200, 60), (100, 100), (5, 300)])
def test_in_bursts_the_time_left_is_right_or_not_said(updating, collecting, clock):
    """One environment: seed episodes, then rounds of updates alone and of 1000 env steps alone."""
    progress, total = Progress(100_000, console=plain(), clock=clock, alternating=True), 100_000
    for clock.now in range(100):
        progress.update(50 * int(clock.now), 0, "seed episodes")
    env_steps, updates, said = 5000, 0, 0
    for _ in range(8):
        for phase, seconds in (("updating", updating), ("collecting", collecting)):
            for second in range(seconds):
                clock.now += 1.0
                updates += phase == "updating"
                now = env_steps + (1000 * (second + 1) // seconds if phase == "collecting" else 0)
                progress.update(now, updates, phase)
                left = seconds_left(progress)
                said += left is not None
                truth = (total - now) / 1000 * (updating + collecting)
                assert left is None or 0.8 * truth < left < 1.25 * truth, (phase, second)
        env_steps += 1000
    assert said > 6 * (updating + collecting), "it is said after a whole turn"


def test_the_updates_before_the_first_step_are_not_in_the_time_left(clock):
    """Several environments: a round of updates at once, then updates beside steps, and evaluations."""
    progress, total = Progress(100_000, console=plain(), clock=clock), 100_000
    for clock.now in range(1200):
        progress.update(5000, int(clock.now), "updating")
        assert seconds_left(progress) is None
    for second in range(1, 5000):
        clock.now = 1200.0 + second
        progress.update(5000 + second, 1200 + second, "training")
        assert second < 5 or seconds_left(progress) == pytest.approx(total - 5000 - second, rel=0.2), second


def test_the_answer_to_ctrl_c_stays_in_the_live_display(clock, capfd):
    """A line written beside the display is overwritten at its next refresh: people press again and lose the save."""
    console, stop = terminal(), Stop()
    with stop:
        with Progress(1000, console=console, clock=clock, stop=stop) as progress:
            progress.update(500, 10, "train")
            assert STOPPING not in " ".join(screen(progress))
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            assert STOPPING in " ".join(screen(progress)) and len(screen(progress)) == 4
    text = console.file.getvalue()
    assert text.rindex(STOPPING) > text.rindex("ETA"), "the last frame, which stays, shows it"
    assert STOPPING not in capfd.readouterr().err


@pytest.mark.parametrize("console", [plain, None])
def test_without_a_live_display_the_answer_to_ctrl_c_is_a_line(console, clock, capfd):
    with Stop() as stop:
        if console:
            with Progress(1000, console=console(), clock=clock, stop=stop):
                os.kill(os.getpid(), signal.SIGINT)
        else:
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == f"\n{STOPPING}\n"


def test_a_sweep_answers_ctrl_c_in_its_table():
    with Stop() as stop, SweepProgress([], console=terminal(), stop=stop) as progress:
        os.kill(os.getpid(), signal.SIGINT)
        shown = terminal()
        shown.print(progress._render())
        assert STOPPING in shown.file.getvalue()


@pytest.mark.parametrize("seconds, text", [(0, "0:00:00"), (753.9, "0:12:33"), (86_399, "23:59:59"),
                                           (2 * 86_400 + 11_040, "2d 03:04")])  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text


# episodes

LABELS = ("policy", "dream-mpc", "policy-grad-mpc", "grad-mpc", "cem", "mppi")


def test_without_a_terminal_a_comparison_prints_a_line_a_batch(clock):
    console = plain()
    with EpisodesProgress(19, 12, console=console, clock=clock) as progress:
        for first, count in ((0, 3), (3, 1)):
            on_step = progress.start("cem", first, count)
            for step in range(1, 501):
                clock.now += 1.0
                on_step(step)
            progress.finish([10.0, 20.0, 33.0][:count], [500] * count)
        progress.line("wrote [somewhere]")
    steps = [line for line in lines(console) if "step" in line]
    words = "cem, episode 1 to 3: step {}, 12 of 19 episodes, ETA -"
    assert steps[:2] == [words.format(30), words.format(60)] and len(steps) == 2 * 16
    assert steps[-1] == "cem, episode 4: step 480, 15 of 19 episodes, ETA 0:25:19"
    assert [line for line in lines(console) if line not in steps] == [
        "12 of 19 episodes are there already",
        "cem, episode 1 to 3: mean return 21.0 in 0:08:20",
        "cem, episode 4: mean return 10.0 in 0:08:20",
        "wrote [somewhere]",
    ]
    assert "\x1b" not in console.file.getvalue()


def test_a_comparison_s_bar_counts_whole_episodes_and_moves_in_between(clock):
    progress = EpisodesProgress(20, 4, console=terminal(), clock=clock)
    [task] = progress._bar.tasks
    on_step = progress.start("cem", 4, 2)
    clock.now = 10.0
    on_step(250)
    assert task.completed == 4, "how long an episode is is not known yet"
    assert "cem, episode 5 to 6" in screen(progress)[0] and "ETA -" in screen(progress)[0]
    assert "4/20" in screen(progress)[0]
    progress.finish([1.0, 1.0], [500, 400], counted=False)
    assert task.completed == 4, "played again for a video"
    progress.start("cem", 4, 2)
    progress.finish([1.0, 1.0], [500, 400])
    assert task.completed == 6
    on_step = progress.start("mppi", 0, 4)
    on_step(250)
    assert task.completed == 8 and "mppi, episode 1 to 4" in screen(progress)[0]
    on_step(900)
    assert 9.9 < task.completed < 10, "not done before it is"
    assert "9/20" in screen(progress)[0]
    progress.finish([1.0] * 4, [900] * 4)
    assert task.completed == 10
    progress = EpisodesProgress(600, 90, console=terminal(), clock=clock)
    for label in (*LABELS, "dream-mpc step-size=0.01"):
        progress.start(label, 90, 10)(123)
        [shown] = screen(progress)
        assert len(shown) <= 80 and label in shown and "90/600" in shown and "0:00:" in shown and "…" not in shown
        assert "ETA" in shown


def test_the_time_left_of_episodes_is_said_as_soon_as_their_length_is_known(clock):
    progress = EpisodesProgress(20, 10, steps=100, console=terminal(), clock=clock)
    on_step = progress.start("cem", 10, 5, rows=2)  # three rounds
    assert "ETA -" in screen(progress)[0]
    clock.now = 30.0
    on_step(150)  # a half of 5 episodes in 30 s, and 7.5 are left
    assert "ETA 0:01:30" in screen(progress)[0]
    clock.now = 60.0
    progress.finish([1.0] * 5, [100] * 5)
    assert "15/20" in screen(progress)[0] and "ETA 0:01:00" in screen(progress)[0]


def test_on_a_terminal_a_comparison_s_lines_stay_and_the_cursor_comes_back(clock):
    console = terminal()
    with pytest.raises(KeyError), EpisodesProgress(4, console=console, clock=clock) as progress:
        progress.start("cem", 0, 1)(5)
        progress.finish([7.0], [10])
        raise KeyError
    assert "cem, episode 1: mean return 7.0 in 0:00:00" in console.file.getvalue()
    assert "\x1b[?25h" in console.file.getvalue()


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_colours_that_are_asked_for_make_no_live_display_of_a_file(variable, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("TERM", "xterm")
    with (tmp_path / "log").open("w") as file:
        console = Console(file=file)
        assert console.is_terminal and not is_live(console)
        with Progress(100, console=console) as progress:
            progress.update(100, 1, "train")
            progress.line("done")
    assert "\x1b[?25l" not in (tmp_path / "log").read_text(), "the cursor is not hidden"


# sweeps


def sweep_entry(name, state, env_steps=0, rate=None, running=True):
    entry = Entry(Run(RunFolder(Path(name)), 1000, "cpu", ()))
    entry.standing = SimpleNamespace(env_steps=env_steps, env_steps_per_s=rate, train_return=None, eval_return=None)
    entry.job = SimpleNamespace(running=running, where="job 1") if state == "running" else None
    entry.state, entry.starts = state, 1
    return entry


def test_a_sweep_says_how_far_all_of_its_runs_are():
    entries = [
        sweep_entry("a", "complete", 1000),
        sweep_entry("b", "running", 500, 10.0),
        sweep_entry("c", "running", 900, 1.0),
        sweep_entry("d", "running", running=False),
        sweep_entry("e", "failed", 600),
    ]
    said = "5 runs: 1 complete, 2 running, 1 queued, 1 failed; 60.0 % of 5,000 env steps, ETA "
    assert total_line(entries) == said + "0:02:25", "1600 steps at 11 a second: slower than each of those that run"
    entries[2].standing.env_steps_per_s = 0.1
    assert total_line(entries) == said + "0:16:40", "the slowest run takes longer"
    assert total_line(entries[3:]).endswith("ETA -")


def test_a_live_table_of_many_runs_shows_first_what_needs_attention():
    entries = [sweep_entry(f"done-{i}", "complete", 1000) for i in range(300)] + [sweep_entry("broken", "failed")]
    console = terminal()
    with SweepProgress(entries, console=console) as progress:
        shown = terminal()
        shown.print(progress._render())
    text = shown.file.getvalue()
    assert "broken" in text and "not shown" in text and text.count("\n") <= console.height


def test_a_long_evaluation_of_a_run_says_what_is_played(clock):
    said = []
    on_step = lines_of_evaluation(said.append, "policy", 5, 2, clock)
    for step, ended in ((500, 0), (1200, 2), (1300, 2), (2400, 4)):
        on_step(step, ended)
        clock.now += LINE_EVERY_S
    assert said == [
        "evaluating policy: episode 3 to 4 of 5, step 1,200 of the evaluation",
        "evaluating policy: episode 3 to 4 of 5, step 1,300 of the evaluation",
        "evaluating policy: episode 5 of 5, step 2,400 of the evaluation",
    ]
