"""How far a run has come."""

from dataclasses import dataclass


@dataclass
class Counters:
    """Where a run stands. env_steps = agent_steps x action repeat, but for steps that an episode's end cut short."""

    env_steps: int = 0  # steps of the simulator
    agent_steps: int = 0  # actions executed
    updates: int = 0  # gradient steps
    episodes: int = 0  # training episodes finished
