"""All benchmarks in one run of at most ten minutes on a GPU, each in its own process, and the table of the card.

    python -m benchmarks [--peer CHECKOUT] [--r2dreamer CHECKOUT] [--gpus 0 1] [--out results/benchmarks]

Writes <card>/<part>.json for each part and <card>/table.md; records that are measured anew go to <card>/earlier/. With
several GPUs, parts run on all of them at the same time (`lanes.py`): runs and rendering, and the peer's torch.compile,
on the second and third. A part that fails, or whose turn comes after `--minutes`, is named in the table, and the others
continue. Settings of a run (`--device cpu`, `--config quick`) are passed to every part but the peers.
"""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import common, lanes, tables, targets
from benchmarks.parts import NAMES, Part, chosen, words_for
from dreamer_mpc.util.device import choose_device, device_name


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--out", type=Path, default=Path("results/benchmarks"), help="holds a folder for each card")
    add("--peer", type=Path, help="checkout of yusukeurakami/dreamer-pytorch")
    add("--r2dreamer", type=Path, help="checkout of NM512/r2dreamer")
    add("--peer-limit", type=float, help="seconds for r2dreamer's torch.compile; default: what is left of the time")
    add("--only", nargs="+", choices=NAMES, help="these parts alone")
    add("--skip", nargs="+", choices=NAMES, default=[])
    add("--minutes", type=float, help="default: 10 on a GPU, no limit on a CPU or with --env-steps")
    add("--part-limit", type=float, default=600.0, help="seconds after which a part has failed")
    add("--gpus", nargs="+", help="indices of the GPUs to use, as in CUDA_VISIBLE_DEVICES; default: all, at most three")
    add("--processes", type=int, default=2, help="runs on one GPU whose updates are counted together; a CPU runs one")
    add("--env-steps", type=int, help="also measure a whole run of so many env steps, with 20 evaluations")
    add("--run-dir", type=Path, help="keep the whole run here")
    add("--v3-config", default="v3", help="preset of the second agent")
    add("--table", action="store_true", help="run nothing: the tables of the JSON files in --out")
    for name in NAMES:
        flag = f"--{name.replace('_', '-')}-extra"
        add(flag, default="", help=f"more words for {name}, in one string: {flag} '--x 1'")
    return parser


def visible_gpus(asked: Sequence[str] | None, cuda: bool, device: str) -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them; none where the parts shall not be told."""
    if not cuda or ":" in device:  # --device cuda:1 says which
        return []
    there = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = there.split(",") if there else [str(i) for i in range(torch.cuda.device_count())]
    return list(asked or names[:3])


def main(argv: Sequence[str] | None = None) -> targets.Results:
    """Run, print, write; the records of the card."""
    words = list(sys.argv[1:] if argv is None else argv)
    # The value of an --...-extra option may begin with dashes, which argparse would not accept as a value.
    joined = re.sub(r"(--[a-z0-9-]+-extra)\0", r"\1=", "\0".join(words))
    args, rest = make_parser().parse_known_args(joined.split("\0"))
    args.out = args.out.absolute()
    if args.table:
        folders = [path for path in sorted(args.out.glob("*/")) if any(path.rglob("*.json"))]
        for folder in folders:
            tables.write(folder)
        return {folder.name: tables.read(folder) for folder in folders}
    asked = common.parse_settings(rest).device
    device = choose_device(asked)
    cuda = device.type == "cuda"
    folder = args.out / tables.card(device_name(device))
    folder.mkdir(parents=True, exist_ok=True)
    parts, gpus = chosen(args, cuda), visible_gpus(args.gpus, cuda, asked)
    tables.put_aside(folder, [part.name for part in parts])
    minutes = args.minutes or (10.0 if cuda and not args.env_steps else float("inf"))

    def words_of(part: Part, left: float, quiet: Path | None) -> list[str]:
        return words_for(part, args, rest, folder, cuda, left, quiet)

    results, seconds = lanes.run_all(parts, gpus, words_of, folder, minutes, args.part_limit)
    run = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks {shlex.join(words)}".strip(),
        "gpus": max(len(gpus), 1),
        "seconds": {name: round(taken, 1) for name, taken in seconds.items()},
        "failed": {name: record["error"] for name, record in results.items() if "error" in record},
    }
    common.write(folder / f"{tables.RUN}.json", run)
    tables.write(folder)
    return results


if __name__ == "__main__":
    main()
