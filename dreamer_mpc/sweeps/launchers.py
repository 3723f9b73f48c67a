"""The launchers by name; those that have settings get options of their own, --NAME.OPTION."""

import dataclasses

from dreamer_mpc.config import SweepConfig
from dreamer_mpc.sweeps.local import LocalLauncher
from dreamer_mpc.sweeps.slurm import SlurmLauncher

LAUNCHERS = {"local": LocalLauncher, "slurm": SlurmLauncher}

SweepCommandConfig = dataclasses.make_dataclass(
    "SweepCommandConfig",
    [(name, kind.Settings, kind.Settings()) for name, kind in LAUNCHERS.items() if kind.Settings],
    bases=(SweepConfig,),
    frozen=True,
    kw_only=True,
)
SweepCommandConfig.__doc__ = SweepConfig.__doc__
