"""Planning with pixel world models: a Dreamer agent whose actions are refined by Dream-MPC.

    agent = dreamer_mpc.load("pretrained/cheetah-run")
    player = agent.player("dream-mpc", horizon=10)
    action = player(image)

Importing the package loads nothing else: torch comes with the first use of a name below. docs/library.md says more.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamer_mpc.library import Dream, Player, TrainedAgent, load
    from dreamer_mpc.planners import make_planner
    from dreamer_mpc.util.errors import UserError

__version__ = "0.1.0"
__all__ = ["Dream", "Player", "TrainedAgent", "UserError", "load", "make_planner"]

_MODULES = {"make_planner": "dreamer_mpc.planners", "UserError": "dreamer_mpc.util.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "dreamer_mpc.library")), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__])
