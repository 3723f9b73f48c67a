"""The counters of a run."""

from dataclasses import dataclass


@dataclass
class Counters:
    """Counters of a run. env_steps = agent_steps x action repeat, minus repeats that the end of an episode cut off."""

    env_steps: int = 0  # steps of the simulator
    agent_steps: int = 0  # actions executed
    updates: int = 0  # gradient steps
    episodes: int = 0  # training episodes finished
