"""The tables of evaluations and comparisons, as printed on consoles of several widths."""

import io
from collections import Counter

import pytest
from rich.console import Console
from rich.table import Table

from dreamer_mpc.report.console import print_table
from dreamer_mpc.report.tables import comparison_table, results_table

LABELS = ("policy", "dream-mpc", "policy-grad-mpc", "grad-mpc", "cem", "mppi")


def plain(width=80):
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def test_the_results_table_fits_80_columns():
    keys = "planner return_mean return_std return_low return_high ms_per_action model_evaluations failed_episodes"
    keys += " episodes num_envs"
    short = ("policy", 612.34, 12.1, 601.0, 622.0, 0.3, 0, 1, 10, 2)
    long = ("policy-grad-mpc", 645.0, 112.0, 590.2, 700.1, 130.25, 120_000, 12, 100, 2)
    few = ("cem", 52.0, 4.0, None, None, 0.3, 120_000, None, 3, 2)
    rows = [dict(zip(keys.split(), values, strict=True)) for values in (short, long, few)]
    console = plain()
    console.print(results_table(rows, "walker-run: runs[1], 1,000 env steps"))
    text = console.file.getvalue()
    assert "…" not in text
    assert "walker-run: runs[1], 1,000 env steps" in text
    for words in ("612.3 ± 12.1", "[601.0, 622.0]", "130.25", "120,000", "95 %", "from 5 episodes on"):
        assert words in text
    assert "for 2 environments at once" in " ".join(text.split())
    own = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert own["policy"][-3:] == ["1", "of", "10"] and own["policy-grad-mpc"][-3:] == ["12", "of", "100"]
    assert own["cem"][1:] == ["52.0", "±", "4.0", "–", "0.30", "120,000", "–", "of", "3"]


def row(label, value=845.1, difference=32.8, width=100.0, **more):
    """A row with the fields that the table reads."""
    values = {"planner": label, "episodes": 10, "checkpoints": 5, "num_envs": 10, "model_evaluations": 75}
    values |= {"return_mean": value, "return_low": value - width, "return_high": value + width}
    paired = difference is not None
    values |= {"difference_mean": difference, "difference_low": paired and difference - width}
    values |= {"difference_high": paired and difference + width, "difference_p_holm": 0.2 if paired else None}
    return values | {"failed_episodes": 0, "ms_per_action": 2.31} | more


def printed(rows, width=80):
    console = plain(width)
    console.print(comparison_table(rows))
    return console.file.getvalue().splitlines()


def test_the_comparison_table_fits_80_columns():
    rows = [row(label, 899.0, None if label == "policy" else -782.8) for label in LABELS]
    rows[0] |= {"ms_per_action": 0.312, "model_evaluations": 0}
    rows[4] |= {"ms_per_action": 1232.31, "model_evaluations": 120_000}
    rows[4] |= {"failed_episodes": 12, "difference_p_holm": 0.05}
    shown = printed(rows)
    assert all(len(line) <= 80 for line in shown) and "…" not in "".join(shown)
    own = {line.split()[0]: line for line in shown if line.split() and line.split()[0] in LABELS}
    assert list(own) == list(LABELS), "no label is folded"
    assert own["policy"].split() == ["policy", "899", "[799,", "999]", "0", "–", "0.31", "0"]
    assert own["cem"].split()[1:] == [
        "899", "[799,", "999]", "12", "*", "-783", "[-883,", "-683]", "1,232", "120,000",
    ]  # fmt: skip
    none = ("return_low", "return_high", "difference_low", "difference_high", "difference_p_holm", "failed_episodes")
    none = dict.fromkeys(none)
    assert "cem 845 – – +33 – 2.31 75" in " ".join(" ".join(printed([row("cem", **none)])).split())
    assert own["mppi"].split()[5:8] == ["-783", "[-883,", "-683]"], "not decided, not marked"
    assert own["mppi"].index("-683]") == own["cem"].index("-683]"), "the mark moves no number"


def test_a_long_label_of_a_sweep_is_folded_and_not_cut():
    label = "policy-grad-mpc latent_noise=fixed"
    shown = printed([row("policy", difference=None), row(label)])
    assert all(len(line) <= 80 for line in shown) and "…" not in "".join(shown)
    start = next(i for i, line in enumerate(shown) if line.startswith(" policy-grad-mpc"))
    assert label.replace(" ", "") in "".join(line[:20] for line in shown[start : start + 4]).replace(" ", "")
    assert any(label in line for line in printed([row(label)], width=120)), "on one line where there is room"


@pytest.mark.parametrize(
    "value, difference, width, words",
    [
        (845.12, 32.81, 100.4, "845 [745, 946] 0 +33 [-68, +133]"),
        (-3.25, -0.04, 1.0, "-3.2 [-4.2, -2.2] 0 -0.0 [-1.0, +1.0]"),
        (0.0, 9.96, 0.0, "0.0 [0.0, 0.0] 0 +10.0 [+10.0, +10.0]"),
    ],
)
def test_returns_and_differences_have_digits_that_mean_something(value, difference, width, words):
    assert words in " ".join(" ".join(printed([row("cem", value, difference, width)])).split())


def test_the_caption_says_what_was_compared():
    def caption(*rows):
        return " ".join(" ".join(printed(list(rows))).split())

    start = "10 episodes on 5 checkpoints; 95 % intervals: Student's t, from 5 episodes on"
    assert start in caption(row("cem"))
    one = "Differences are of the same environment seeds; *: decided (p at most 0.05)."
    assert one in caption(row("policy", difference=None), row("cem"))
    many = "3 compared, each interval by itself; *: decided after Holm's correction over all 3 (5 %)."
    assert many in caption(row("policy", difference=None), *3 * [row("cem")])
    assert "ifference" not in caption(row("cem", difference=None)).split("on 5 checkpoints")[1]
    assert "10 episodes on 1 checkpoint;" in caption(row("cem", checkpoints=1))
    assert "1 episode on 5 checkpoints;" in caption(row("cem", episodes=1))
    assert "for 10 environments at once" in caption(row("cem"), row("mppi"))
    assert "for 1 environment at once" in caption(row("cem", num_envs=1))
    assert "for 2 or 10 environments at once" in caption(row("cem"), row("mppi", num_envs=2))


def test_a_table_keeps_its_letters_on_a_terminal_of_20_columns():
    console = Console(file=io.StringIO(), width=20)
    cells = ("policy-grad-mpc", "645.0 ± 112.0", "130.25", "120,000", "12 of 100")
    table = Table(*cells)
    table.add_row(*cells)
    print_table(table, console)
    printed = Counter(console.file.getvalue())
    assert not Counter("".join(2 * cells).replace(" ", "")) - printed
    assert console.width == 20
