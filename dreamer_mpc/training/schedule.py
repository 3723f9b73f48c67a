"""What a run does when: steps, updates, records, evaluations and saves, from its counters alone."""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from dreamer_mpc.config import Config


class Due(Enum):
    """What a run does next."""

    SEED_STEP = "a step of the seed episodes"
    UPDATE = "an update before the next step"
    STEP = "a step, with the updates that go on beside it"
    RECORD = "the record of a round that is over"
    EVALUATION = "an evaluation"
    NOTHING = "the run is finished"


@dataclass(frozen=True)
class Pace:
    """How often a run does what; env steps, where nothing else is said."""

    end: int  # of the run
    updates: int  # a round
    every: int  # a round
    evaluate_every: int
    save_seconds: float
    in_flight: int  # of a step that updates go on beside; 0: steps and updates take turns

    @classmethod
    def of(cls, config: Config) -> "Pace":
        """One environment takes turns, as in the paper; several step while updates go on."""
        in_flight = config.num_envs * config.action_repeat if config.num_envs > 1 else 0
        train = config.train
        return cls(
            config.env_steps, train.updates, train.every, config.eval.every, train.checkpoint_seconds, in_flight
        )


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


@dataclass
class Schedule:
    """Where a run stands between two of the things it does, and which one comes next.

    After the seed episodes a run goes by rounds of `pace.every` env steps. Where steps and updates take turns, all
    updates of a round are owed at its start. Where they go on at once, those of the first round are, so that the run
    stays a round ahead, and later ones with each step.
    """

    pace: Pace
    seeding: bool = True  # the seed episodes are not over
    round_end: int = 0  # env steps
    updates_left: int = 0  # to make before the next step
    ratio: UpdateRatio | None = None  # once the seed episodes are over
    evaluated_at: int = 0  # env steps
    evaluation_due: bool = False
    finished: bool = False  # evaluated at its end

    def due(self, env_steps: int) -> Due:
        """What comes next in a run that stands at `env_steps`."""
        if self.finished:
            return Due.NOTHING
        if self.evaluation_due:
            return Due.EVALUATION
        if self.seeding:
            return Due.SEED_STEP
        if self.updates_left:
            return Due.UPDATE
        return Due.RECORD if env_steps >= min(self.round_end, self.pace.end) else Due.STEP

    def save_due(self, seconds: float) -> bool:
        """Whether `seconds` without a try to save are long enough."""
        return seconds >= self.pace.save_seconds

    def seeded(self, env_steps: int) -> None:
        """The seed episodes are over."""
        self.seeding, self.round_end = False, env_steps
        self.ratio = self._ratio_from(env_steps, lead=self.pace.updates)
        self.evaluation_due = env_steps >= self.pace.end
        self._begin_round(env_steps)
        if self.pace.in_flight:
            self.updates_left = self.ratio.issue(env_steps)

    def take_update(self) -> int:
        """One of the updates before the next step is made; how many there were to make, with this one."""
        self.updates_left -= 1
        return self.updates_left + 1

    def take_updates_beside(self, env_steps: int) -> int:
        """How many updates are made beside the step that was begun at `env_steps`."""
        return self.ratio.issue(env_steps + self.pace.in_flight) if self.pace.in_flight else 0

    def recorded(self, env_steps: int) -> None:
        """A round is on record; the next one begins, after an evaluation where the grid of those has been reached."""
        next_evaluation = (self.evaluated_at // self.pace.evaluate_every + 1) * self.pace.evaluate_every
        self.evaluation_due = env_steps >= min(next_evaluation, self.pace.end)
        self._begin_round(env_steps)

    def evaluated(self, env_steps: int) -> None:
        """The agent was evaluated."""
        self.evaluation_due, self.evaluated_at = False, env_steps
        self.finished = env_steps >= self.pace.end

    def resumed(self, env_steps: int) -> None:
        """The run goes on at `env_steps`, perhaps to another end or at another ratio than it was saved with."""
        self.finished &= env_steps >= self.pace.end
        if self.ratio:
            self.ratio.end = self.pace.end
            if (self.ratio.updates, self.ratio.every) != (self.pace.updates, self.pace.every):
                self.ratio = self._ratio_from(env_steps, lead=0)  # a lead was made before

    def state_dict(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name not in ("pace", "ratio")}
        return plain | {"ratio": None if self.ratio is None else asdict(self.ratio)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], pace: Pace) -> "Schedule":
        ratio = None if state["ratio"] is None else UpdateRatio(**state["ratio"])
        return cls(pace, **{**state, "ratio": ratio})

    def _ratio_from(self, env_steps: int, lead: int) -> UpdateRatio:
        return UpdateRatio(self.pace.updates, self.pace.every, env_steps, self.pace.end, lead=lead)

    def _begin_round(self, env_steps: int) -> None:
        self.round_end = min(self.round_end, env_steps) + self.pace.every  # the last one may have been shorter
        if self.pace.in_flight:
            self.round_end = max(self.round_end, env_steps + 1)  # updates come with steps: at least one step a round
        else:
            self.updates_left = self.pace.updates
