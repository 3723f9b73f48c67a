"""All benchmarks in one run, each in its own process, and the table of targets at the end.

    python -m benchmarks --peer CHECKOUT --out results/benchmarks

Writes <name>.json for each part and table.md. A part that fails is reported, and the others continue. Settings of a run
(`--device cpu`, `--config quick`) are passed to every part but the peer. The whole run may be measured separately, on
another GPU of the same machine, and read with --end-to-end-result.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common, targets
from dreamer_mpc.config import option
from dreamer_mpc.util.device import choose_device

PARTS = ("ceilings", "peers", "update", "plan", "collect", "end_to_end")
LIMIT_S = {"end_to_end": 4 * 3600}  # the limit of the other parts is an option


def run_part(name: str, words: Sequence[str], out: Path, limit: float) -> dict[str, Any]:
    """Run `python -m benchmarks.<name>`; its record, or {"error": reason}."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *words, "--out", str(out)]
    environment = os.environ | {"COLUMNS": "130", "PYTHONUNBUFFERED": "1"}
    tail: deque[str] = deque(maxlen=30)
    process = subprocess.Popen(
        command, cwd=common.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    timer = threading.Timer(limit, end, [process])
    timer.start()
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            tail.append(line.strip())
        process.wait()
    finally:
        late = not timer.is_alive()
        timer.cancel()
        end(process)
        process.wait()
    if process.returncode:
        last = next((line for line in reversed(tail) if line), "no word of it")
        return {"error": f"failed: longer than {limit:.0f} s" if late else f"failed: {last}"[:200]}
    return common.read(out)


def end(process: subprocess.Popen) -> None:
    """Kill a part and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def words_for(name: str, args: argparse.Namespace, rest: Sequence[str], cuda: bool) -> list[str]:
    """The command line of a part."""
    if name == "peers":
        device = option(rest, "device")
        words = [str(args.peer.resolve()), *(["--device", device] if device else [])]
        return words + ["--seconds", "2.5" if cuda else "40"] + shlex.split(args.peers_extra)
    words = list(rest)
    if (args.out / "ceilings.json").exists() and name in ("update", "plan"):
        words += ["--ceilings", str(args.out / "ceilings.json")]
    if (args.out / "peers.json").exists() and name in ("update", "plan"):
        words += ["--peer", str(args.out / "peers.json")]
    if name == "update":
        words += ["--processes", str(args.processes), "--seconds", "3" if cuda else "40"]
    if name == "plan":
        words += ["--seconds", "1" if cuda else "5"]
    if name == "collect":
        words += ["--num-envs", "1", "8", "16", "--qualities", "full", "--seconds", "2.5"]
    if name == "end_to_end":
        words += ["--env-steps", str(args.end_to_end_steps)] if args.end_to_end_steps else []
        words += ["--update-result", str(args.out / "update.json")] if (args.out / "update.json").exists() else []
        words += ["--run-dir", str(args.run_dir)] if args.run_dir else []
    return words + shlex.split(getattr(args, f"{name}_extra"))


def notes(results: targets.Results, args: argparse.Namespace, seconds: dict[str, float]) -> list[str]:
    """The heading of the table: machine, versions, date."""
    about = next((record for record in results.values() if "error" not in record), {})
    packages = about.get("packages", {})
    lines = [f"{about.get('device')}; CPU {about.get('cpu')}, {about.get('cpu_cores')} cores; {about.get('date')}"]
    versions = f"Python {about.get('python')}, torch {packages.get('torch')}, CUDA {about.get('cuda')}"
    lines.append(f"{versions}, commit {about.get('commit')}")
    lines.append(f"command: `python -m benchmarks {shlex.join(sys.argv[1:])}`")
    lines.append("medians; met: aim, yes (the floor), no; percentiles and rooflines: the JSON files beside")
    if args.end_to_end_result:
        lines.append("the whole run was made beside the others, on another GPU of the same machine")
    lines += [f"{name} {record['error']}" for name, record in results.items() if "error" in record]
    run = results.get("end_to_end", {}).get("rows", [{}])[0]
    if run and run["env_steps"] < targets.WHOLE_RUN:
        lines.append(
            f"the run that was made has {run['env_steps']:,} env steps: {run['wall_min']:.3g} min, "
            f"{run['updates_per_s'] or 0:.3g} updates/s; it is no whole run, so it meets nothing"
        )
    if args.table:
        lines.append("read from the JSON files beside, which say when and how each was made")
    else:
        lines.append("time of the parts: " + ", ".join(f"{name} {taken:.0f} s" for name, taken in seconds.items()))
    return lines


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--peer", type=Path, help="checkout of yusukeurakami/dreamer-pytorch")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[])
    parser.add_argument("--processes", type=int, default=4, help="on one GPU; a CPU runs one")
    parser.add_argument("--part-limit", type=float, default=600.0, help="seconds after which a part has failed")
    parser.add_argument("--end-to-end-steps", type=int, help="default: 1,000,000 on a GPU, 3,000 on a CPU")
    parser.add_argument("--end-to-end-result", type=Path, help="read it from here, do not run it")
    parser.add_argument("--run-dir", type=Path, help="keep the whole run here")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of the JSON files in --out")
    for name in PARTS:
        flag = f"--{name.replace('_', '-')}-extra"
        parser.add_argument(flag, default="", help=f"more words for {name}, in one string: {flag} '--x 1'")
    return parser


def main(argv: Sequence[str] | None = None) -> targets.Results:
    """Run, print, write."""
    words = sys.argv[1:] if argv is None else argv
    # The value of an --...-extra option may begin with dashes, which argparse would not accept as a value.
    joined = re.sub(r"(--[a-z-]+-extra)\0", r"\1=", "\0".join(words))
    args, rest = make_parser().parse_known_args(joined.split("\0"))
    cuda = choose_device(common.parse_settings(rest).device).type == "cuda"
    args.out, args.processes = args.out.absolute(), args.processes if cuda else 1
    args.out.mkdir(parents=True, exist_ok=True)
    files = {name: args.out / f"{name}.json" for name in PARTS}
    results, seconds = {}, {}
    if args.end_to_end_result:
        results["end_to_end"] = common.read(args.end_to_end_result)
    if args.table:
        results |= {name: common.read(file) for name, file in files.items() if file.exists()}
        cuda = any(record["cuda"] for record in results.values())
    else:
        for file in files.values():  # figures of another run
            file.unlink(missing_ok=True)
        for name, record in results.items():
            common.write(files[name], record)
    for name in () if args.table else PARTS:
        if name in args.skip or name in results or (name == "peers" and not args.peer):
            continue
        start = time.perf_counter()
        limit = LIMIT_S.get(name, args.part_limit)
        results[name] = run_part(name, words_for(name, args, rest, cuda), files[name], limit)
        seconds[name] = time.perf_counter() - start
        print(f"--- {name}: {results[name].get('error', 'done')}, {seconds[name]:.0f} s\n", flush=True)
    rows = targets.table(results, targets.GPU if cuda else targets.CPU)
    said = notes(results, args, seconds)
    common.print_table("Targets", {key: key for key in rows[0]}, rows, "\n".join(said))
    common.write_text(args.out / "table.md", targets.markdown(rows, "Speed: targets and what was measured", said))
    print(f"wrote {args.out / 'table.md'}")
    return results


if __name__ == "__main__":
    main()
