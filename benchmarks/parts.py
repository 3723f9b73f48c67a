"""The parts of `python -m benchmarks`: what each is called with, and the lane that it runs in."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common
from dreamer_mpc.config import option

QUALITIES = ("full", "small-shadows", "fast", "warp")
MARGIN_S = 20.0  # for the record of a peer that did not compile in time
EVALUATIONS = 20  # of a whole run, as in `phases`


@dataclass(frozen=True)
class Part:
    """`python -m benchmarks.<module>`, whose record is <name>.json."""

    name: str
    module: str
    lane: int = 0  # what it runs in turn with, where there are several GPUs
    v3: bool = False  # of the second agent
    asked: bool = False  # only if it is asked for
    least_s: float = 5.0  # it is not begun with less time


# In the order in which they run on one GPU: what the deadline cuts off stands last.
PARTS = (
    Part("ceilings", "ceilings"),
    Part("peers", "peers"),
    Part("update", "update"),
    Part("update_v3", "update", v3=True),
    Part("plan", "plan"),
    Part("plan_v3", "plan", v3=True),
    Part("r2dreamer", "r2dreamer"),
    Part("rendering", "rendering", lane=2),
    Part("phases", "phases", lane=2),
    Part("phases_v3", "phases", lane=2, v3=True, least_s=60),
    Part("r2dreamer_compiled", "r2dreamer", lane=1, least_s=30),
    Part("collect", "collect", lane=2, asked=True),
    Part("end_to_end", "end_to_end", lane=2, asked=True),
)
NAMES = [part.name for part in PARTS]


NEEDS = {"peers": "peer", "r2dreamer": "r2dreamer", "r2dreamer_compiled": "r2dreamer", "end_to_end": "env_steps"}
SLOW_ON_CPUS = ("phases", "phases_v3", "r2dreamer_compiled")  # tens of minutes: there only if they are named


def chosen(args: argparse.Namespace, cuda: bool) -> list[Part]:
    """The parts that the options ask for; SystemExit where --only names one that lacks an option."""
    lacking = {name: option for name, option in NEEDS.items() if not getattr(args, option)}
    for name in args.only or ():
        if name in lacking:
            raise SystemExit(f"error: --only {name} needs --{lacking[name].replace('_', '-')}")
    wanted = args.only or [part.name for part in PARTS if not part.asked]
    if args.env_steps and not args.only:
        wanted = [*wanted, "end_to_end"]
    if not (cuda or args.only):
        lacking |= dict.fromkeys(SLOW_ON_CPUS, "only")
    return [part for part in PARTS if part.name in wanted and part.name not in {*args.skip, *lacking}]


def words_for(
    part: Part, args: argparse.Namespace, rest: Sequence[str], out: Path, cuda: bool, left: float, quiet: Path | None
) -> list[str]:
    """The command line of a part, which has `left` seconds; `quiet` is there when its GPU is its own."""
    name, words = part.module, list(rest)
    device = option(rest, "device")
    on = ["--device", device] if device else []
    if part.v3:
        words = common.overlay(words, config=args.v3_config)
    if name in ("update", "plan"):
        words += ["--ceilings", str(out / "ceilings.json")] if (out / "ceilings.json").exists() else []
    if name == "peers":
        words = [str(args.peer.resolve()), *on, "--seconds", "2.5" if cuda else "40"]
    elif name == "update":
        words += ["--ways", "default", "--processes", str(args.processes if cuda else 1)]
        words += ["--seconds", "3" if cuda else "40"]
    elif name == "plan":
        planners = ["policy", "dream-mpc", "dream-mpc-paper"]
        planners += [] if part.v3 else ["cem" if cuda else "dream-mpc-cpu"]
        words += ["--planners", *planners, "--kernels-off", "--batches", *("1", "8", "16")[: None if cuda else 1]]
        words += ["--seconds", "1" if cuda else "5"]
    elif name == "r2dreamer":
        compiled = part.name == "r2dreamer_compiled"
        limit = min(args.peer_limit or left, left - MARGIN_S)
        words = [str(args.r2dreamer.resolve()), *on, "--only", "compiled" if compiled else "plain"]
        words += ["--limit", str(limit)] if compiled and limit < float("inf") else []
        words += ["--after", str(quiet)] if compiled and quiet else []
    elif name == "rendering":
        words = [*on, *(["--env", found] if (found := option(rest, "env")) else []), "--quality", *QUALITIES]
        words += ["--num-envs", *("1", "8", "16")[: None if cuda else 1], "--seconds", "2"]
    elif name == "phases":
        words += ["--beside", "on", *(["--every", "5500"] if cuda else [])] if part.v3 else []
    elif name == "collect":
        words += ["--num-envs", "1", "8", "16", "--qualities", "full", "--seconds", "2.5"]
    elif name == "end_to_end":
        words = common.overlay(words, eval__every=str(max(args.env_steps // EVALUATIONS, 1)))
        words += ["--env-steps", str(args.env_steps)]
        words += ["--update-result", str(out / "update.json")] if (out / "update.json").exists() else []
        words += ["--run-dir", str(args.run_dir)] if args.run_dir else []
    return words + shlex.split(getattr(args, f"{part.name}_extra"))
