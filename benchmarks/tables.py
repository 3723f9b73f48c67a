"""One table for each card, made of the JSON files in its folder alone.

<root>/<card>/<part>.json are the figures of today's code, <root>/<card>/earlier/<date>-<commit>/<part>.json those of
earlier code: `put_aside` moves a file there before it is measured anew.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common, targets
from benchmarks.targets import Results, made
from dreamer_mpc.util.files import write_text

EARLIER, RUN = "earlier", "run"


def card(device: str) -> str:
    """The folder of a device: `NVIDIA H100 80GB HBM3` is h100-80gb-hbm3, every CPU is cpu."""
    if device.startswith("CPU"):
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")


def read(folder: Path) -> Results:
    """The records in a folder; those of parts that failed in the last run have an error."""
    results = {path.stem: common.read(path) for path in sorted(folder.glob("*.json"))}
    for name, error in results.get(RUN, {}).get("failed", {}).items():
        results.setdefault(name, {})["error"] = error
    return results


def put_aside(folder: Path, names: Sequence[str]) -> None:
    """Move records that are to be measured anew to the earlier ones, by their date and commit.

    A second one of the same day and commit replaces the first.
    """
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            aside = folder / EARLIER / (made(common.read(path)).replace(", ", "-") or "unknown")
            aside.mkdir(parents=True, exist_ok=True)
            path.replace(aside / path.name)


def earlier(folder: Path, wanted: Sequence[targets.Target]) -> list[dict[str, str]]:
    """A line for each figure of earlier code, with its commit and date; the newest first."""
    rows = []
    sets = [read(path) for path in sorted((folder / EARLIER).glob("*"), reverse=True)]
    for target in wanted:
        for results in sets:
            row = target.row(results)
            if not isinstance(target.value(results), str):
                rows.append({"what": row["what"], "then": row["now"], "peer": row["peer"], "measured": row["measured"]})
    return rows


def frames(record: dict) -> list[dict[str, str]]:
    """Frames a second: a line for each render quality, a column for each number of environments."""
    numbers = sorted({row["num_envs"] for row in record["rows"]})
    lines = []
    for quality in dict.fromkeys(row["quality"] for row in record["rows"]):
        found = {row["num_envs"]: row for row in record["rows"] if row["quality"] == quality}
        cells = {str(n): _frames(found.get(n)) for n in numbers}
        lines.append({"render quality": quality} | {f"{n} environments": cell for n, cell in cells.items()})
    return lines


def _frames(row: dict | None) -> str:
    if row is None:
        return ""
    if row["frames_per_s"] is None:
        return row["text"]
    drawing = f" (drawing alone {row['drawing_alone']:,.0f})" if "drawing_alone" in row else ""
    return f"{row['frames_per_s']:,.0f}{drawing}"


def notes(results: Results) -> list[str]:
    """Machine, versions, command, and what failed."""
    records = [record for name, record in results.items() if name != RUN and "device" in record]
    lines = []
    for keys in dict.fromkeys(_machine(record) for record in records):
        lines.append(keys)
    run = results.get(RUN, {})
    if run:
        lines.append(f"command: `{run['command']}`")
        lines.append(
            "time of the parts: " + ", ".join(f"{name} {taken:.0f} s" for name, taken in run["seconds"].items())
        )
        if run["gpus"] > 1:
            lines.append(f"the parts ran on {run['gpus']} GPUs of one host at the same time, and shared its cores")
    lines += [f"{name} {record['error']}" for name, record in results.items() if "error" in record]
    for name, record in results.items():
        peer = record.get("peer", {})
        if stood_in := next((row["stand_ins"] for row in record.get("rows", []) if row.get("stand_ins")), None):
            lines.append(f"{name}: {peer['repository']} with stand-ins for {', '.join(stood_in)}, not installed there")
    lines.append("medians; met: aim, yes (the floor), no; empty: no such target; percentiles and rooflines: JSON files")
    return lines


def _machine(record: dict) -> str:
    versions = f"Python {record.get('python')}, torch {record.get('packages', {}).get('torch')}"
    versions += f", CUDA {record['cuda']}" if record.get("cuda") else ""
    return f"{record['device']}; CPU {record.get('cpu')}, {record.get('cpu_cores')} cores; {versions}"


def markdown(rows: Sequence[dict[str, str]]) -> list[str]:
    """Lines of a table in Markdown."""
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return [*lines, *(f"| {' | '.join(row[column].replace('|', '/') for column in columns)} |" for row in rows)]


def write(folder: Path) -> Path:
    """Write table.md of a card from the files in its folder, print it, and return its path."""
    results = read(folder)
    on_cpu = folder.name == "cpu"
    wanted = targets.CPU if on_cpu else targets.GPU
    rows, then = targets.table(results, wanted), earlier(folder, wanted if on_cpu else [*wanted, *targets.ONCE])
    said = notes(results)
    common.print_table(f"Targets: {folder.name}", {key: key for key in rows[0]}, rows, "\n".join(said))
    lines = [f"# Speed on {folder.name}: targets and what was measured", "", *markdown(rows), ""]
    lines += [*(f"- {note}" for note in said), ""]
    if results.get("rendering", {}).get("rows"):
        lines += ["## Frames a second", "", f"{made(results['rendering'])}; {results['rendering']['env']}", ""]
        lines += [*markdown(frames(results["rendering"])), ""]
    if then:
        lines += ["## Earlier figures", "", "Of earlier code, whose date and commit stand in the last column.", ""]
        lines += [*markdown(then), ""]
    path = folder / "table.md"
    write_text(path, "\n".join(lines))
    print(f"wrote {path}", flush=True)
    return path
