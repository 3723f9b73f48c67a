"""Updates in step with env steps, while both go on at once."""

from dataclasses import dataclass


@dataclass
class UpdateRatio:
    """Says how many updates are owed, so that they never leave the ratio of `updates` to `every` env steps.

    It counts from env step `start`, where `lead` updates are owed at once, as the sequential algorithm makes a round of
    them before its first step; from then on it is that much ahead. Env steps past `end` are owed none.
    """

    updates: int
    every: int
    start: int
    end: int
    issued: int = 0
    lead: int = 0  # runs that were begun before 2026-11-28 had none

    def due(self, env_steps: int) -> int:
        """Updates that a run at `env_steps` has made since `start`, if none is missing: rounded down, exact."""
        if self.end <= self.start:
            return 0
        return self.lead + max(self.updates * (min(env_steps, self.end) - self.start) // self.every, 0)

    def issue(self, env_steps: int) -> int:
        """Updates missing at `env_steps`; they count as issued.

        None where `env_steps` was overestimated before, by an episode that ended early, until the run has caught up.
        """
        missing = max(self.due(env_steps) - self.issued, 0)
        self.issued += missing
        return missing
