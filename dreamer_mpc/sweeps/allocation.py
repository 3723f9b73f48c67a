"""What a SLURM job of a sweep does: start its runs, restart those that fail, and requeue itself before its end.

submitit pickles an `Allocation` and calls it on the node. Imports no torch: that would take each job seconds.
"""

import signal
import sys
import time
from dataclasses import dataclass

from dreamer_mpc.sweeps.local import LocalLauncher, choose_gpus
from dreamer_mpc.sweeps.run import GIVEN_UP, Run
from dreamer_mpc.sweeps.sweep import Sweep
from dreamer_mpc.util import slurm
from dreamer_mpc.util.stop import Stop, Stopped

ASKED, ASK_AGAIN_S = 3, 5  # how often SLURM is asked for the state of this job, and the pause between


@dataclass(frozen=True)
class Allocation:
    """The runs of one job."""

    runs: tuple[Run, ...]
    jobs_per_gpu: int
    gpus: int
    cores: int
    restarts: int

    def __call__(self) -> None:
        """Exit code 0 where all runs are complete or the job was cancelled, 1 where a run failed too often."""
        gpus = choose_gpus(self.runs[0].device) if self.gpus else []
        sweep = Sweep(self.runs, LocalLauncher(self.jobs_per_gpu, gpus, self.cores), self.restarts)
        with Stop() as stop:
            try:
                sweep.work(stop, lambda: None)
            except Stopped:
                print("the runs have saved and ended", flush=True)
        if any(entry.state == "waiting" for entry in sweep.entries):
            if _goes_on():
                signal.raise_signal(signal.SIGUSR1)  # submitit requeues the job, with `checkpoint`, and exits
            return
        for entry in sweep.failed:
            with entry.run.log.open("a") as log:
                log.write(f"{GIVEN_UP}{entry.starts} starts: {entry.reason}\n")
        if sweep.failed:
            sys.exit(1)

    def checkpoint(self) -> object:
        """What the requeued job does: the same, as the runs go on from their own checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _goes_on() -> bool:
    """Whether SLURM still counts this job as running: a cancelled one must not be requeued.

    One that SLURM preempts, or that has reached its time limit, is still running while it has time to save.
    """
    for _ in range(ASKED):
        state = slurm.state(slurm.own_job())
        if state is not None:
            return state == "RUNNING"
        time.sleep(ASK_AGAIN_S)
    return False
