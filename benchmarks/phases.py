"""The phases of a short run, with evaluations that training waits for (`off`) and beside it (`on`), and a whole run.

    python -m benchmarks.phases [--config v3] [--beside off on] [--out phases.json]

`run.py --env cheetah-run --planner dream-mpc`, in processes of its own, a few rounds long. Rates are medians of rounds.
A whole run of 1,000,000 env steps with 20 evaluations of 10 episodes is an extrapolation from them: set-up and seed
episodes, the remaining env steps at the rate of a round, the evaluations as the later ones here took them, and the end.
With `on`, training goes on during all of them but the last, at the rate that rounds had then. No update runs during
set-up, seed episodes, checkpoints, evaluations that training waits for, and the end (the bare policy's evaluation, and
closing): `idle` is their share of the whole run. Within rounds, updates share the GPU with rendering and planning; the
table of `python -m benchmarks` says which part of a round its updates alone would take. The first run begins with an
empty Triton cache, the second one has the first's.
"""

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import common
from benchmarks.end_to_end import start_run
from dreamer_mpc.util.device import choose_device

WHOLE_RUN, EVALUATIONS, EPISODES = 1_000_000, 20, 10
# Evaluations of a run: the first one sets up, and training does not go on during the last.
EVALUATED = {"off": 2, "on": 3}
Record = dict[str, Any]


def phases(records: Sequence[Record], printed: dict[str, float]) -> Record:
    """Rates and seconds of the phases of a run, from its metrics and the figures that it printed (`LINES`).

    An evaluation's seconds are those from the record before it to its own; one that was played beside training, from
    the end of the round at which it began. Its first one, which sets up environments and planner, is left out where
    there are others.
    """
    rounds, evaluations, ends = [], [], {}
    for before, record in zip([None, *records], records, strict=False):
        if "train/env_steps_per_s" in record:
            began = before["time_s"] if before else 0.0
            rounds.append({"from": began, "to": record["time_s"], **record})
            ends[record["env_steps"]] = record["time_s"]
        elif "eval/return_mean" in record:
            began = ends.get(record["env_steps"], before["time_s"] if before else 0.0)
            evaluations.append((began, record["time_s"]))
    # Until the first evaluation is over, the process that plays them is being set up.
    free = [r for r in rounds if not evaluations or r["from"] >= evaluations[0][1]] or rounds
    beside = [r for r in rounds if any(a <= r["from"] and r["to"] <= b for a, b in evaluations)]
    alone = [r for r in free if not any(a < r["to"] and r["from"] < b for a, b in evaluations)]
    took = [end - began for began, end in evaluations]
    checkpoint = printed["saving_s"] / printed["checkpoints"] if printed.get("checkpoints") else 0.0
    return {
        "env_steps_per_s": _median(alone, "train/env_steps_per_s"),
        "updates_per_s": _median(alone, "train/updates_per_s"),
        "beside_env_steps_per_s": _median(beside, "train/env_steps_per_s"),
        "beside_updates_per_s": _median(beside, "train/updates_per_s"),
        "evaluation_s": statistics.median(took[1:-1] or took[1:] or took) if took else None,
        "last_evaluation_s": took[-1] if took else None,
        "checkpoint_s": checkpoint,
        "seed_env_steps": records[0]["env_steps"] if records else 0,
        **{key: printed[key] for key in ("set_up_s", "seed_episodes_s", "memory_gib") if key in printed},
    }


def _median(rounds: Sequence[Record], key: str) -> float | None:
    return statistics.median(record[key] for record in rounds) if rounds else None


def whole_run(row: Record, beside: bool, env_steps: int = WHOLE_RUN, evaluations: int = EVALUATIONS) -> Record:
    """Minutes of a run with these phases, and the share in which no update runs; None where a rate is unknown."""
    alone, during, one = row["env_steps_per_s"], row["beside_env_steps_per_s"], row["evaluation_s"]
    if not alone or one is None:
        return {"whole_run_min": None, "idle": None}
    idle = sum(row.get(key, 0.0) for key in ("set_up_s", "seed_episodes_s", "end_s"))
    steps = env_steps - row["seed_env_steps"]
    if beside and during:
        idle += evaluations * row["checkpoint_s"] + row["last_evaluation_s"]
        shared = min((evaluations - 1) * one * during, steps)
        # Checkpoints are within the rounds that `during` was taken from.
        total = idle - evaluations * row["checkpoint_s"] + shared / during + (steps - shared) / alone
    else:
        idle += evaluations * one  # each with its checkpoint
        total = idle + steps / alone
    return {"whole_run_min": total / 60, "idle": idle / total}


def measure(beside: str, every: int, words: Sequence[str], folder: Path | None) -> Record:
    """The row of a run with `--eval.beside` as given and an evaluation every so many env steps."""
    env_steps = EVALUATED[beside] * every
    words = common.overlay(words, eval__video=None, eval__no_video=(), eval__beside=beside, eval__every=str(every))
    wall, printed, records = start_run(common.overlay(words, env_steps=str(env_steps)), folder)
    row = {"beside": beside, "env_steps": env_steps, "wall_s": wall, **phases(records, printed)}
    row["end_s"] = wall - printed.get("trained_s", wall)
    return row


def main(argv: Sequence[str] | None = None) -> Record:
    """Measure, print, write."""
    parser = common.parser(__doc__)
    parser.add_argument("--beside", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--every", type=int, help="env steps between evaluations; default: 7,000 on a GPU")
    args, rest = parser.parse_known_args(argv)
    device = choose_device(common.parse_settings(rest).device)
    every = args.every or (7000 if device.type == "cuda" else 2000)
    defaults = {"--env": "cheetah-run", "--planner": "dream-mpc", "--eval.episodes": str(EPISODES)}
    words = [word for name, value in defaults.items() if name not in rest for word in (name, value)] + rest
    beside_out = args.out.absolute().parent if args.out else None
    rows = []
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache):
        for beside in args.beside:
            rows.append(row := measure(beside, every, words, beside_out))
            if len(rows) > 1:  # the rate without evaluations is that of the run that has none beside
                row |= {key: rows[0][key] for key in ("env_steps_per_s", "updates_per_s") if rows[0][key]}
            row |= whole_run(row, beside == "on")
            print(f"--eval.beside {beside}: {common.show(row['env_steps_per_s'])} env steps/s", flush=True)
    record = {"benchmark": "phases", **common.describe(device), "rows": rows}
    record |= {"every": every, "whole_run": {"env_steps": WHOLE_RUN, "evaluations": EVALUATIONS}}
    columns = {"beside": "--eval.beside", "set_up_s": "set-up, s", "env_steps_per_s": "env steps/s"}
    columns |= {"updates_per_s": "updates/s", "beside_env_steps_per_s": "env steps/s during an evaluation"}
    columns |= {"evaluation_s": "evaluation, s", "idle": "idle, whole run"}
    columns |= {"whole_run_min": "whole run, min (extrapolated)", "memory_gib": "memory, GiB"}
    footer = f"{WHOLE_RUN:,} env steps with {EVALUATIONS} evaluations: an extrapolation from a few rounds"
    common.print_table(f"Phases of a run: {record['device']}", columns, rows, footer)
    common.write(args.out, record)
    return record


if __name__ == "__main__":
    main()
