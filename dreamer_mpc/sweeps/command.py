"""`run.py sweep`."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dreamer_mpc import config as settings
from dreamer_mpc.report.console import table_console
from dreamer_mpc.report.words import plural
from dreamer_mpc.sweeps.collect import collect
from dreamer_mpc.sweeps.jobs import Jobs
from dreamer_mpc.sweeps.launcher import Launcher
from dreamer_mpc.sweeps.launchers import LAUNCHERS, SweepCommandConfig
from dreamer_mpc.sweeps.progress import SweepProgress
from dreamer_mpc.sweeps.run import Run
from dreamer_mpc.sweeps.runs import list_runs
from dreamer_mpc.sweeps.sweep import Sweep
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import output_path
from dreamer_mpc.util.owner import alone_in
from dreamer_mpc.util.program import program
from dreamer_mpc.util.stop import STOPPING, Stop, Stopped

DETACHING = "detaching: the jobs go on without this command"
ANOTHER = {
    False: "wait for it, or choose another --out",
    True: "press Ctrl-C there, which its jobs outlive, or choose another --out",
}


def main(args: Sequence[str]) -> int:
    """Train every planner in every environment with every seed, in parallel; returns 1 if a run failed."""
    config, rest = settings.parse_some(SweepCommandConfig, args, prog=program("sweep"))
    kind = _launcher_kind(config, args)
    config = dataclasses.replace(config, out=str(output_path(config.out)))
    out = Path(config.out)
    if config.collect is not None:
        with alone_in(out, ANOTHER[False]):
            print(*collect(config.collect, out), sep="\n")
        return 0
    runs = list_runs(config, rest)
    with alone_in(out, ANOTHER[kind.lasting]):
        Jobs.open(out, config.launcher)
        launcher = kind.open(config, getattr(config, config.launcher, None), runs[0].device)
        if config.cancel is not None:
            print(*launcher.cancel(config.cancel), "the same command without --cancel goes on from there", sep="\n")
            return 0
        return _work(runs, launcher, config.restarts, out)


def _launcher_kind(config: settings.SweepConfig, args: Sequence[str]) -> type:
    """UserError for a name that is none, and for settings of another launcher."""
    if config.launcher not in LAUNCHERS:
        raise UserError(f"no launcher {config.launcher!r}: known are {', '.join(LAUNCHERS)}")
    for flag in settings.flag_names(args):
        group = flag.partition(".")[0] if "." in flag else ""
        if group in LAUNCHERS and group != config.launcher:
            raise UserError(f"--{flag} does not go with --launcher {config.launcher}: add --launcher {group}")
    return LAUNCHERS[config.launcher]


def _work(runs: Sequence[Run], launcher: Launcher, restarts: int, out: Path) -> int:
    sweep = Sweep(runs, launcher, restarts)
    console = table_console(160)
    stop = Stop(DETACHING if launcher.lasting else STOPPING)
    with stop, SweepProgress(sweep.entries, console=console, stop=stop) as progress:
        try:
            sweep.work(stop, progress.update)
        except Stopped as stopped:
            progress.line(str(stopped))
            return stop.code
    for entry in sweep.failed:
        print(f"failed: {entry.run.name} ({entry.reason}); what it printed: {entry.run.log}", file=sys.stderr)
    print(f"{plural(len(runs) - len(sweep.failed), 'run')} of {len(runs)} complete in {out}")
    folder = shlex.quote(str(out))
    print(f"curves: {program('plot')} {folder} --runs {folder}")
    return 1 if sweep.failed else 0
