"""`run.py sweep`."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence

from dreamer_mpc import config as settings
from dreamer_mpc.report.progress import SweepProgress, plural, table_console
from dreamer_mpc.sweeps.launch import LocalLauncher, choose_gpus
from dreamer_mpc.sweeps.sweep import Sweep, list_runs
from dreamer_mpc.util.files import output_path
from dreamer_mpc.util.owner import alone_in
from dreamer_mpc.util.stop import Stop, Stopped


def main(args: Sequence[str]) -> int:
    """Train every planner in every environment with every seed, in parallel; returns 1 if a run failed."""
    config, rest = settings.parse_some(settings.SweepConfig, args, prog="run.py sweep")
    out = output_path(config.out)
    config = dataclasses.replace(config, out=str(out))
    runs = list_runs(config, rest)
    launcher = LocalLauncher(config.jobs_per_gpu, choose_gpus(runs[0].config.device))
    sweep = Sweep(runs, launcher, out / "logs", config.restarts)
    console = table_console(160)
    alone = alone_in(out, "wait for it, or choose another --out")
    with alone, Stop() as stop, SweepProgress(sweep.entries, console=console, stop=stop) as progress:
        try:
            sweep.work(stop, progress.update)
        except Stopped as stopped:
            progress.line(str(stopped))
            return 0
    for entry in sweep.failed:
        print(f"failed: {entry.run.name} ({entry.reason}); what it printed: {sweep.log(entry)}", file=sys.stderr)
    print(f"{plural(len(runs) - len(sweep.failed), 'run')} of {len(runs)} complete in {out}")
    folder = shlex.quote(str(out))
    print(f"curves: python run.py plot {folder} --runs {folder}")
    return 1 if sweep.failed else 0
