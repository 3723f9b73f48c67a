"""Draw evaluation curves of runs beside the paper's own: curve.csv and curve.png.

    python benchmarks/learning_curve.py results/cheetah-run RUN [RUN ...] --task cheetah-run --methods dream-mpc dreamer

A RUN is a folder with metrics.jsonl; the methods are the paper's to stand beside.
"""

import argparse
import csv
from pathlib import Path

from dreamer_mpc.logger import read_metrics
from dreamer_mpc.video import learning_curve_picture

LABELS = {"dream-mpc": "Dream-MPC (Dreamer)", "dreamer": "Dreamer", "planet": "PlaNet", "sac-ae": "SAC+AE"}
REFERENCE = Path(__file__).resolve().parent.parent / "results/reference/dream_mpc_paper_dreamer_curves.csv"


def run_curve(run: Path) -> list[tuple[int, float, float]]:
    """(env steps, mean, standard deviation over episodes) of each evaluation."""
    records = [record for record in read_metrics(run / "metrics.jsonl") if "eval/return_mean" in record]
    return [(r["env_steps"], r["eval/return_mean"], r["eval/return_std"]) for r in records]


def paper_curve(task: str, method: str, until: int) -> list[tuple[int, float]]:
    """(env steps, mean return), digitised from the paper's figure."""
    with REFERENCE.open() as file:
        rows = [row for row in csv.DictReader(file) if (row["task"], row["method"]) == (task, method)]
    return [(int(r["env_steps"]), float(r["mean_return"])) for r in rows if int(r["env_steps"]) <= until]


def main() -> None:
    """Read, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--task", required=True)
    parser.add_argument("--methods", nargs="*", choices=LABELS, default=["dream-mpc", "dreamer"])
    parser.add_argument("--name", default="curve", help="of the two files")
    parser.add_argument("--title", help="of the picture")
    parser.add_argument("--labels", nargs="+", help="of the runs; default: their folders' names")
    parser.add_argument("--until", type=int, help="env steps drawn; default: all")
    args = parser.parse_args()
    labels = args.labels or [run.name for run in args.runs]
    curves = {label: run_curve(run) for label, run in zip(labels, args.runs, strict=True)}
    until = args.until or max(steps for curve in curves.values() for steps, *_ in curve)
    curves = {label: [point for point in curve if point[0] <= until] for label, curve in curves.items()}
    with (args.out / f"{args.name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "env_steps", "return_mean", "return_std"])
        writer.writerows([name, *point] for name, curve in curves.items() for point in curve)
        for method in args.methods:
            writer.writerows([f"paper {method}", *point, ""] for point in paper_curve(args.task, method, until))
    drawn = {f"ours, {name}": tuple(zip(*[p[:2] for p in curve], strict=True)) for name, curve in curves.items()}
    for method in args.methods:
        drawn[f"paper, {LABELS[method]}"] = tuple(zip(*paper_curve(args.task, method, until), strict=True))
    title = args.title or f"{args.task} from pixels"
    learning_curve_picture(args.out / f"{args.name}.png", drawn, title=title)


if __name__ == "__main__":
    main()
