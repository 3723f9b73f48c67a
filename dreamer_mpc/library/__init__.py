"""The program as a library: load a trained agent, play, imagine, decode and export; docs/library.md."""

from dreamer_mpc.library.player import Player
from dreamer_mpc.library.trained import Dream, TrainedAgent, load

__all__ = ["Dream", "Player", "TrainedAgent", "load"]
