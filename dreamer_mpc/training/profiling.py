"""A trace of a few updates and steps of a training run, for a trace viewer."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dreamer_mpc.util.errors import in_one_line

WARM = 10  # updates and steps before the trace begins, so that CUDA graphs are already recorded
UPDATES = 3
STEPS = 3
MOST_STEPS = 10  # limit on the steps in a trace, for runs with rare updates


class Profiler:
    """Traces `UPDATES` updates and `STEPS` steps of a run once it is warm, if `wanted`: `folder`/trace.json.gz.

    The loop calls `before_update` and `after_step`; `say` takes a line for the user.
    """

    def __init__(self, folder: Path, device: torch.device, wanted: bool, say: Callable[[str], None]):
        self.path = folder / "trace.json.gz"
        self._device, self._wanted, self._say = device, wanted, say
        self._updates = self._steps = 0  # counted from the start of the run, or of the trace while one is recorded
        self._trace: profile | None = None

    def before_update(self, left: int) -> None:
        """An update follows; `left` updates, with this one, come before the environments step or are waited for."""
        if self._wanted and self._trace is None and min(self._updates, self._steps) >= WARM and left <= UPDATES:
            self._start()
        self._updates += 1

    def after_step(self) -> None:
        """The planner has acted and the environments have stepped."""
        self._steps += 1
        enough = self._updates >= UPDATES and self._steps >= STEPS
        if enough or self._steps >= MOST_STEPS:
            self.finish()

    def finish(self) -> None:
        """Write the trace if one is being recorded, complete or not."""
        if self._trace is None:
            return
        self._wait()
        trace, self._trace, self._wanted = self._trace, None, False
        try:
            trace.stop()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(self.path))
        except Exception as error:  # a full disk, a tracer that is in use elsewhere: it costs the trace
            self._say(f"no profile: {in_one_line(error)}")
            return
        self._say(
            f"profile of {self._updates} updates and {self._steps} steps: {self.path} "
            f"(open it in https://ui.perfetto.dev)"
        )

    def close(self) -> None:
        """The run has ended."""
        self.finish()
        if self._wanted:
            self._say(f"no profile: it begins after {WARM} updates and {WARM} planned steps, and this run ended before")

    def _start(self) -> None:
        self._wait()
        self._updates = self._steps = 0
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
        trace = profile(activities=kinds)
        try:
            trace.start()
        except Exception as error:
            self._wanted = False
            self._say(f"no profile: {in_one_line(error)}")
            return
        self._trace = trace

    def _wait(self) -> None:
        """Synchronise, so that the trace contains exactly the device work that was requested within it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
