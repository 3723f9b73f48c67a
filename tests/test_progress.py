import io
import re

import pytest
from rich.console import Console

from dreamer_mpc.progress import LINE_EVERY_S, Progress, duration, results_table


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def terminal(width=80):
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


def lines(console):
    return console.file.getvalue().splitlines()


def screen(progress, width=80):
    """The live display as a person sees it now, without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(progress._render())
    return console.file.getvalue().rstrip("\n").split("\n")


def test_without_a_terminal_one_line_at_most_every_half_minute(clock):
    console = plain()
    with Progress(10_000, console=console, clock=clock) as progress:
        for second in range(1, 100):
            clock.now = float(second)
            progress.update(second * 10, second, "train")
        assert len(lines(console)) == int(99 // LINE_EVERY_S)
    assert "env steps 300/10,000 (3.0 %)" in lines(console)[0]
    assert "env steps 990/10,000" in lines(console)[-1], "the end is said once"


def test_without_a_terminal_every_evaluation_has_its_line(clock):
    console = plain()
    with Progress(10_000, console=console, clock=clock) as progress:
        for env_steps in (100, 200, 300):
            clock.now += 1
            progress.update(env_steps, 0)
            progress.update(env_steps, 0, eval_return=env_steps / 2)
    assert [re.search(r"eval ([\d.]+)", line)[1] for line in lines(console)] == ["50.0", "100.0", "150.0"]


def test_plain_lines_have_no_escape_codes_and_are_not_wrapped(clock):
    console = plain()
    with Progress(1_000_000, console=console, clock=clock) as progress:
        progress.line("x" * 200 + " [bold]y[/bold]")
        progress.update(420_000, 21_000, "train", train_return=1.0, eval_return=2.0)
    assert lines(console)[0] == "x" * 200 + " [bold]y[/bold]"
    assert len(lines(console)) == 2
    assert "\x1b" not in console.file.getvalue()


def test_rates_are_those_of_the_last_minute(clock):
    progress = Progress(1_000_000, console=plain(), clock=clock)
    for second in range(600):
        clock.now = float(second)
        fast = max(second - 300, 0)
        progress.update(second * 10 + fast * 90, second, "train")
    env_rate, update_rate = progress.rates()
    assert env_rate == pytest.approx(100)
    assert update_rate == pytest.approx(1)


def test_a_resumed_run_does_not_count_the_steps_before(clock):
    progress = Progress(1_000_000, start_env_steps=500_000, console=plain(), clock=clock)
    for second in range(20):
        clock.now = float(second)
        progress.update(500_000 + 10 * second, 50_000 + second)
    assert progress.rates() == pytest.approx((10, 1))


def test_a_long_phase_of_updates_does_not_show_a_rate_of_zero(clock):
    progress = Progress(1_000_000, console=plain(), clock=clock)
    for second in range(1000):
        clock.now = float(second)
        progress.update(1000 * (1 + second // 200), second)
    env_rate, _ = progress.rates()
    assert 2 < env_rate < 10


def test_before_the_first_step_the_eta_is_open(clock):
    assert "ETA -" in " ".join(screen(Progress(100, console=terminal(), clock=clock)))


def test_the_display_fits_80_columns_and_says_everything(clock):
    progress = Progress(1_000_000, console=terminal(), clock=clock)
    for clock.now, env_steps in ((0.0, 0), (753.0, 420_000)):
        progress.update(env_steps, env_steps // 20, "train")
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
    assert shown[0].count("━") > 10


def test_a_new_phase_does_not_move_the_bar(clock):
    progress = Progress(1000, console=terminal(), clock=clock)
    progress.update(500, 0, "eval")
    short = screen(progress)[0].index("━")
    progress.update(500, 0, "a phase with a very long name")
    assert screen(progress)[0].index("━") == short


def test_what_is_not_given_stays(clock):
    progress = Progress(1000, console=terminal(), clock=clock)
    progress.update(10, 0, "collecting", train_return=1.0, eval_return=2.0)
    progress.update(20, 0)
    text = " ".join(screen(progress))
    assert "collecting" in text and "train return 1.0" in text and "eval return 2.0" in text


def test_percent_is_not_rounded_up_to_done(clock):
    progress = Progress(100_000, console=terminal(), clock=clock)
    progress.update(99_999, 0)
    assert "99.9 %" in screen(progress)[0]
    progress.update(100_100, 0)
    assert "100.0 %" in screen(progress)[0]


def test_on_a_terminal_lines_go_above_the_bar(clock):
    console = terminal()
    with Progress(1000, console=console, clock=clock) as progress:
        progress.update(500, 10, "train")
        progress.line("checkpoint runs/x/checkpoints/checkpoint-00000500.pt")
    text = console.file.getvalue()
    assert text.index("checkpoint-00000500.pt") < text.rindex("env steps/s")
    assert "\x1b[?25h" in text, "the cursor is shown again"


def test_the_cursor_comes_back_after_an_error(clock):
    console = terminal()
    with pytest.raises(KeyError), Progress(1000, console=console, clock=clock):
        raise KeyError
    assert "\x1b[?25h" in console.file.getvalue()


def test_the_results_table_fits_80_columns():
    keys = (
        "planner",
        "return_mean",
        "return_std",
        "return_low",
        "return_high",
        "ms_per_action",
        "model_evaluations",
        "episodes",
    )
    short = ("policy", 612.34, 12.1, 601.0, 622.0, 0.3, 0, 10)
    long = ("policy-grad-mpc", 645.0, 112.0, 590.2, 700.1, 130.25, 120_000, 100)
    rows = [dict(zip(keys, values, strict=True)) for values in (short, long)]
    console = plain()
    console.print(results_table(rows))
    text = console.file.getvalue()
    assert "…" not in text
    for words in (
        "policy-grad-mpc",
        "612.3 ± 12.1",
        "[601.0, 622.0]",
        "130.25",
        "120,000",
        "95 %",
        "episodes",
    ):
        assert words in text


@pytest.mark.parametrize("seconds, text", [(0, "0:00:00"), (753.9, "0:12:33"), (86_399, "23:59:59"),
                                           (2 * 86_400 + 11_040, "2d 03:04")])  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text
