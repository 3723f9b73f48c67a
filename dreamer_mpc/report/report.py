"""`run.py report`: runs, comparisons and analyses as one HTML page to send, that opens without a network."""

import contextlib
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dreamer_mpc.config import ReportConfig, parse, to_dict
from dreamer_mpc.report.charts import curves_picture
from dreamer_mpc.report.comparison import comparison_picture, figures
from dreamer_mpc.report.curves import published, read_run
from dreamer_mpc.report.found import Found, FoundAnalysis, FoundComparison, FoundEvaluation, FoundRun, find
from dreamer_mpc.report.html import MB, Enclosures, card, code, heading, note, page, table
from dreamer_mpc.report.rows import decided, drawn_by
from dreamer_mpc.report.styles import in_words, style, styles
from dreamer_mpc.report.words import decimals, mean_and_spread, plural
from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.files import try_folder, user_path, write_text
from dreamer_mpc.util.intervals import FEWEST
from dreamer_mpc.util.program import program
from dreamer_mpc.util.versions import program_version

REPORT = "report.html"
MOST_CARDS = 12
NOT_SETTINGS = ("env", "seed", "device", "run_dir")  # those that a run's name says, or that say nothing of a method


def main(args: Sequence[str]) -> int:
    """Write the page."""
    config = parse(ReportConfig, args, prog=program("report"))
    if not config.folders:
        raise UserError("report needs a FOLDER: name one that a run, eval, compare or analyze wrote, or several")
    folders = [user_path(folder) for folder in config.folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: name one that a run, eval, compare or analyze wrote")
    found = find(folders)
    path = user_path(config.out) if config.out else folders[0] / REPORT
    enclosures = Enclosures(config.max_mb * MB)
    with _writing(path):
        try_folder(path.parent)
    text = write_page(found, enclosures, config.title)
    with _writing(path):
        write_text(path, text)
    for reason in found.left_out:
        print(f"left out: {reason}")
    for left in enclosures.left_out:
        print(f"left out, as the page would be larger than --max-mb {config.max_mb:g}: {left}")
    print(f"wrote {path} ({path.stat().st_size / MB:.1f} MB): one file, to be sent or opened in a browser")
    return 0


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, "name another file with --out") from error


def write_page(found: Found, enclosures: Enclosures, title: str | None) -> str:
    """The page as text."""
    envs = [*(c.env for c in found.comparisons), *(e.record["env"] for e in found.evaluations)]
    envs = list(dict.fromkeys([*envs, *(run.config.env for run in found.runs)]))
    head = note(f"{program_version()}, {datetime.now(UTC).date().isoformat()}") + cards(found)
    with tempfile.TemporaryDirectory() as scratch:
        sections = [
            ("Comparisons", "".join(_comparison(c, enclosures, Path(scratch)) for c in found.comparisons)),
            ("Evaluations", "".join(map(_evaluation, found.evaluations))),
            ("Analyses", "".join(_analysis(a, enclosures) for a in found.analyses)),
            ("Learning curves", _curves(found.runs, enclosures, Path(scratch))),
            ("Videos and decisions", _media(found, enclosures)),
            ("Settings that differ", _settings(found)),
            ("Versions and commands", _versions(found)),
            ("Left out", "".join(map(note, found.left_out))),
        ]
    subjects = envs or dict.fromkeys(analysis.what for analysis in found.analyses)
    return page(title or f"Planning with world models: {', '.join(subjects)}", sections, head)


def cards(found: Found) -> str:
    """The numbers to be seen first: one for each comparison, and the last evaluation of each run."""
    shown = [_claim(comparison) for comparison in found.comparisons]
    colors = _colors(found.runs)
    for run in found.runs:
        if run.evaluations:
            last = run.evaluations[-1]
            words = f"return in {run.called.task} after {last['env_steps']:,} env steps: {_name(run)}, seed "
            words += f"{run.called.seed}, mean{_and_spread(last)} over {plural(int(last['eval/episodes']), 'episode')}"
            shown.append(card(_return(last["eval/return_mean"]), words, colors[run.called.method]))
    for evaluation in found.evaluations:
        best = max(evaluation.record["results"], key=lambda row: row["return_mean"])
        words = f"return in {evaluation.record['env']} under {best['planner']}, the best of "
        words += f"{plural(len(evaluation.record['results']), 'planner')} in {plural(best['episodes'], 'episode')}"
        shown.append(card(_return(best["return_mean"]), words, style(best["planner"]).color))
    more = note(f"{len(shown) - MOST_CARDS} more stand in the tables below.") if len(shown) > MOST_CARDS else ""
    return f'<div class="cards">{"".join(shown[:MOST_CARDS])}</div>\n{more}'


def _digits(value: float) -> int:
    return decimals(0 if abs(value) >= 100 else 1, value)


def _return(value: float) -> str:
    return f"{value:,.{_digits(value)}f}"


def _and_spread(record: dict[str, Any]) -> str:
    if record["eval/episodes"] < 2:
        return ""
    return f" ± standard deviation {record['eval/return_std']:,.{_digits(record['eval/return_mean'])}f}"


def _claim(comparison: FoundComparison) -> str:
    """The largest difference to the policy, with its interval, and whether it is decided; without any, a return."""
    paired = [row for row in comparison.rows if row["difference_mean"] is not None]
    episodes = plural(comparison.rows[0]["episodes"] * comparison.rows[0]["checkpoints"], "episode")
    if not paired:
        best = max(comparison.rows, key=lambda row: row["return_mean"])
        words = f"return in {comparison.env} under {best['planner']} {_interval(best, 'return')}, {episodes}"
        return card(_return(best["return_mean"]), words, style(best["planner"]).color)
    best = max(paired, key=lambda row: row["difference_mean"])
    among = f", the largest of {len(paired)} differences" if len(paired) > 1 else ""
    surely = "decided" if decided(best) else "not decided"
    words = f"{best['planner']} over the policy in {comparison.env} {_interval(best, 'difference')}, "
    words += f"{episodes}, {surely}"
    return card(figures(best, "difference", "+").split(" ")[0], words + among, style(best["planner"]).color)


def _interval(row: dict[str, Any], key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    sign = "+" if key == "difference" else ""
    if low is None:
        return "without an interval"
    digits = f"{sign}.{decimals(1, low, high)}f"
    return f"[{low:{digits}}, {high:{digits}}]".replace("-", "−")


def _comparison(comparison: FoundComparison, enclosures: Enclosures, scratch: Path) -> str:
    rows, title = comparison.rows, comparison.title
    picture = scratch / "compare.png"
    comparison_picture(picture, rows, title)
    paired = any(row["difference_mean"] is not None for row in rows)
    titles = ["planner", "return [95 %]", "difference to the policy [95 %]", "ms per action", "model evaluations"]
    cells = []
    for row in rows:
        difference = "–" if row["difference_mean"] is None else figures(row, "difference", "+")
        cost = f"{row['ms_per_action']:,.3g}", f"{row['model_evaluations']:,}"
        cells.append([row["planner"], figures(row, "return"), difference, *cost])
    words = f"[ ]: 95 % intervals of the means (Student's t, from {FEWEST} episodes on)."
    if paired:
        words += " Differences are of the same environment seeds; *: decided at 5 % after Holm's correction over all."
    else:
        cells, titles = [[*row[:2], *row[3:]] for row in cells], [*titles[:2], *titles[3:]]
    colors = [style(row["planner"]).color for row in rows]
    inside = enclosures.figure(picture, f"{title}: {'gains over the policy' if paired else 'returns'}, and cost")
    return heading(f"{title} ({comparison.folder})") + inside + table(titles, cells, colors) + note(words)


def _evaluation(evaluation: FoundEvaluation) -> str:
    record, rows = evaluation.record, evaluation.record["results"]
    quality = record.get("render_quality")
    world = drawn_by(quality, record.get("trained_with", quality))
    title = f"{record['env']}: {record['checkpoint']}, {record['env_steps']:,} env steps{world}"
    titles = ("planner", "return ± standard deviation", "95 % interval", "ms per action", "episodes")
    cells = []
    for row in rows:
        value = mean_and_spread(row["return_mean"], row["return_std"], row["episodes"])
        interval = "–" if row["return_low"] is None else _interval(row, "return")
        cells.append((row["planner"], value, interval, f"{row['ms_per_action']:,.3g}", str(row["episodes"])))
    words = f"Intervals of the means: Student's t, from {FEWEST} episodes on."
    return heading(title) + table(titles, cells, [style(row["planner"]).color for row in rows]) + note(words)


def _analysis(analysis: FoundAnalysis, enclosures: Enclosures) -> str:
    parts = [heading(f"{analysis.what} ({analysis.folder})")]
    if analysis.picture.exists():
        parts.append(enclosures.figure(analysis.picture, f"{analysis.what}, in the words of docs/analysis.md"))
    if analysis.table:
        words = f"In brackets: 95 % intervals, Student's t, from {FEWEST} episodes on."
        parts.append(table(list(analysis.table[0]), [list(row.values()) for row in analysis.table]) + note(words))
    else:
        parts.append(note("Its table is not there: the same analyze command writes it, and measures nothing again."))
    return "".join(parts)


def _curves(runs: Sequence[FoundRun], enclosures: Enclosures, scratch: Path) -> str:
    """The picture of all runs, and the last evaluation of each."""
    evaluated = [run for run in runs if run.evaluations]
    if not evaluated:
        return ""
    curves, picture = [read_run(run.folder)[1].called(run.called) for run in evaluated], scratch / "curves.png"
    curves_picture(picture, curves, {curve.task: published(curve.task) for curve in curves})
    titles = ("run", "task", "seed", "env steps", "return ± standard deviation", "episodes")
    cells = []
    for run in evaluated:
        last, episodes = run.evaluations[-1], int(run.evaluations[-1]["eval/episodes"])
        about = (_name(run), run.called.task, str(run.called.seed), f"{last['env_steps']:,}")
        value = mean_and_spread(last["eval/return_mean"], last["eval/return_std"], episodes)
        cells.append((*about, value, str(episodes)))
    colors = [_colors(runs)[run.called.method] for run in evaluated]
    words = "The last evaluation of each run, without exploration; standard deviation over its episodes."
    return enclosures.figure(picture, "Returns during training") + table(titles, cells, colors) + note(words)


def _colors(runs: Sequence[FoundRun]) -> dict[str, str]:
    """The colour of each method, in the picture as well."""
    drawn = styles(run.called.method for run in runs if run.evaluations)
    return {method: own.color for method, own in drawn.items()}


def _name(run: FoundRun) -> str:
    return in_words(run.called.method)


def _media(found: Found, enclosures: Enclosures) -> str:
    """Pictures first, as they are small: those of comparisons and evaluations, and the last ones of each run."""
    shown: list[tuple[Path, str]] = []
    for comparison in found.comparisons:
        shown += _pairs(comparison.folder.glob("*"), comparison.env)
    for evaluation in found.evaluations:
        shown += _pairs(evaluation.folder.glob("*"), evaluation.record["env"])
    for run in found.runs:
        for suffix in (".mp4", "-decision.png"):
            files = sorted((run.folder / "videos").glob(f"*{suffix}"))
            shown += _pairs(files[-1:], f"{run.called.task}, {_name(run)}, seed {run.called.seed}")
    pictures = "".join(enclosures.figure(*pair) for pair in shown if pair[0].suffix == ".png")
    return "".join(enclosures.figure(*pair) for pair in shown if pair[0].suffix == ".mp4") + pictures


def _pairs(files: Iterable[Path], of: str) -> list[tuple[Path, str]]:
    """Videos and pictures of decisions, with captions."""
    pairs = []
    for path in sorted(files):
        what = "an episode" if path.suffix == ".mp4" else "a decision"
        name = path.stem.removesuffix("-decision")
        if path.suffix == ".mp4" or path.name.endswith("-decision.png"):
            at = f"after {int(name):,} env steps" if name.isdecimal() else f"under {name}"  # of a run; of a planner
            pairs.append((path, f"{of}: {what} {at}"))
    return pairs


def _settings(found: Found) -> str:
    """Settings that are not the same in all runs, and not in all planners of a comparison."""
    runs = {f"{_name(run)}, {run.called.task}, seed {run.called.seed}": run for run in found.runs}
    every = {name: _flat(to_dict(run.config)) for name, run in runs.items()}
    parts = [_differing(every, "of the runs", leave_out=NOT_SETTINGS)]
    for comparison in found.comparisons:
        shown = [row["planner"] for row in comparison.rows]
        planners = {name: _flat(comparison.made_with["planners"].get(name) or {}) for name in shown}
        planners = {name: values for name, values in planners.items() if values}
        parts.append(_differing(planners, f"of the planners, {comparison.env}"))
    return "".join(parts)


def _differing(values: dict[str, dict[str, str]], of: str, leave_out: Sequence[str] = ()) -> str:
    """A table of the keys whose values differ; nothing for fewer than two."""
    keys = list(dict.fromkeys(key for settings in values.values() for key in settings if key not in leave_out))
    keys = [key for key in keys if len({settings.get(key) for settings in values.values()}) > 1]
    if len(values) < 2:
        return ""
    if not keys:
        return note(f"No settings {of} differ.")
    rows = [(key, *(settings.get(key, "–") for settings in values.values())) for key in keys]
    return heading(f"Settings {of}") + table(("setting", *values), rows, words=True)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Groups with their settings as `group.setting`."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def _versions(found: Found) -> str:
    parts = []
    for comparison in found.comparisons:
        devices = ", ".join(dict.fromkeys(row["device"] for row in comparison.rows))
        checkpoints = [f"{name} (SHA-256 {sha[:12]})" for name, sha in comparison.made_with["checkpoints"].items()]
        words = f"Played on {devices}, agents {', '.join(checkpoints)}. The same episodes are played by:"
        parts.append(heading(comparison.title) + note(words) + code(comparison.command()))
        if changed := comparison.changed_presets():
            parts.append(note(f"But this version has other settings of {', '.join(changed)}."))
    for evaluation in found.evaluations:
        record = evaluation.record
        words = f"Played on {record.get('device')} with torch {record.get('torch')}, seed {record.get('seed')}."
        parts.append(heading(f"{record['env']}: {record['checkpoint']}") + note(words))
    for run in found.runs:
        known = run.versions
        packages = ", ".join(f"{name} {version}" for name, version in (known.get("packages") or {}).items())
        words = f"Commit {known.get('commit') or 'unknown'}, Python {known.get('python', 'unknown')}, on "
        words += f"{known.get('device', 'an unknown device')}, started {known.get('started', 'at an unknown time')}"
        words += "".join(f". Changed by --resume {changed}" for changed in run.history.changes)
        command = shlex.join(map(str, known.get("command") or []))
        parts.append(heading(str(run.folder)) + note(words) + note(packages) + (code(command) if command else ""))
    return "".join(parts)
