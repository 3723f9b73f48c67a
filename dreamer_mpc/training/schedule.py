"""The schedule of a run: when to step, update, record, evaluate and save, from its counters alone."""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from dreamer_mpc.config import Config


class Due(Enum):
    """The next action of a run."""

    SEED_STEP = "a step of the seed episodes"
    UPDATE = "an update before the next step"
    STEP = "a step, with the updates that go on beside it"
    RECORD = "the record of a round that is over"
    EVALUATION = "an evaluation"
    RESULT = "the result of the last evaluation, which is played beside"
    NOTHING = "the run is finished"


@dataclass(frozen=True)
class Pace:
    """The intervals of a run's actions; in env steps unless said otherwise."""

    end: int  # length of the run
    updates: int  # per round
    every: int  # length of a round
    evaluate_every: int
    save_seconds: float
    in_flight: int  # env steps of a step with concurrent updates; 0: steps and updates take turns

    @classmethod
    def of(cls, config: Config) -> "Pace":
        """One environment: steps and updates take turns, as in the paper; several environments step during updates."""
        in_flight = config.num_envs * config.action_repeat if config.num_envs > 1 else 0
        train = config.train
        return cls(
            config.env_steps, train.updates, train.every, config.eval.every, train.checkpoint_seconds, in_flight
        )


@dataclass
class UpdateRatio:
    """Computes how many updates are due, so that they keep the ratio of `updates` to `every` env steps.

    It counts from env step `start`, where `lead` updates are due at once, as the sequential algorithm makes a round of
    them before its first step; after that, updates stay `lead` ahead. Env steps after `end` add no updates.
    """

    updates: int
    every: int
    start: int
    end: int
    issued: int = 0
    lead: int = 0  # 0 in runs that began before 2026-11-28

    def due(self, env_steps: int) -> int:
        """Total number of updates due from `start` to `env_steps`, rounded down, exact."""
        if self.end <= self.start:
            return 0
        return self.lead + max(self.updates * (min(env_steps, self.end) - self.start) // self.every, 0)

    def issue(self, env_steps: int) -> int:
        """Number of updates missing at `env_steps`, which then count as issued.

        It is 0 after `env_steps` was overestimated, because an episode ended early, until the run has caught up.
        """
        missing = max(self.due(env_steps) - self.issued, 0)
        self.issued += missing
        return missing


@dataclass
class Schedule:
    """The position of a run in its schedule, and its next action.

    After the seed episodes a run proceeds in rounds of `pace.every` env steps. If steps and updates take turns, all
    updates of a round are due at its start. If they are concurrent, those of the first round are due at its start,
    so that the run stays a round ahead, and later ones with each step.
    """

    pace: Pace
    seeding: bool = True  # the seed episodes are still running
    round_end: int = 0  # env steps
    updates_left: int = 0  # number of updates before the next step
    ratio: UpdateRatio | None = None  # set after the seed episodes
    evaluated_at: int = 0  # env steps
    evaluation_due: bool = False
    evaluating: dict[str, int] | None = None  # counters of the snapshot that is played beside training
    finished: bool = False  # the evaluation at the end is done

    def due(self, env_steps: int) -> Due:
        """The next action of a run at `env_steps`."""
        if self.finished:
            return Due.NOTHING
        if self.evaluation_due:
            return Due.EVALUATION
        if self.evaluating and self.evaluated_at >= self.pace.end:
            return Due.RESULT
        if self.seeding:
            return Due.SEED_STEP
        if self.updates_left:
            return Due.UPDATE
        return Due.RECORD if env_steps >= min(self.round_end, self.pace.end) else Due.STEP

    def save_due(self, seconds: float) -> bool:
        """Whether a checkpoint is due, `seconds` after the last attempt to save."""
        return seconds >= self.pace.save_seconds

    def seeded(self, env_steps: int) -> None:
        """Record that the seed episodes are over."""
        self.seeding, self.round_end = False, env_steps
        self.ratio = self._ratio_from(env_steps, lead=self.pace.updates)
        self.evaluation_due = env_steps >= self.pace.end
        self._begin_round(env_steps)
        if self.pace.in_flight:
            self.updates_left = self.ratio.issue(env_steps)

    def take_update(self) -> int:
        """Count one update before the next step; returns how many there were to make, this one included."""
        self.updates_left -= 1
        return self.updates_left + 1

    def take_updates_beside(self, env_steps: int) -> int:
        """Number of updates to make concurrently with the step that began at `env_steps`."""
        return self.ratio.issue(env_steps + self.pace.in_flight) if self.pace.in_flight else 0

    def recorded(self, env_steps: int) -> None:
        """End a recorded round and begin the next, with an evaluation in between if the evaluation grid was reached."""
        next_evaluation = (self.evaluated_at // self.pace.evaluate_every + 1) * self.pace.evaluate_every
        self.evaluation_due = env_steps >= min(next_evaluation, self.pace.end)
        self._begin_round(env_steps)

    def evaluated(self, env_steps: int) -> None:
        """Record that the agent was evaluated."""
        self.evaluation_due, self.evaluated_at = False, env_steps
        self.finished = env_steps >= self.pace.end

    def evaluation_begun(self, counters: dict[str, int]) -> None:
        """Record that the agent at `counters` is evaluated beside training from now on."""
        self.evaluation_due, self.evaluated_at = False, counters["env_steps"]
        self.evaluating = counters

    def evaluation_ended(self) -> None:
        """Record that the result of that evaluation is there."""
        self.evaluating, self.finished = None, self.evaluated_at >= self.pace.end

    def evaluation_lost(self) -> None:
        """Record that its snapshot is lost. If it was the last, it is due again: the agent has not changed since."""
        self.evaluating, self.evaluation_due = None, self.evaluation_due or self.evaluated_at >= self.pace.end

    def resumed(self, env_steps: int) -> None:
        """Resume the run at `env_steps`, possibly with another length or another ratio than before."""
        self.finished &= env_steps >= self.pace.end
        if self.ratio:
            self.ratio.end = self.pace.end
            if (self.ratio.updates, self.ratio.every) != (self.pace.updates, self.pace.every):
                self.ratio = self._ratio_from(env_steps, lead=0)  # the lead was made in the first round

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
        self.round_end = min(self.round_end, env_steps) + self.pace.every  # the interrupted round may have been shorter
        if self.pace.in_flight:
            self.round_end = max(self.round_end, env_steps + 1)  # a round has at least one step, as updates need one
        else:
            self.updates_left = self.pace.updates
