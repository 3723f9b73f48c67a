"""Starting a run from the weights of a checkpoint: fine-tuning."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config import Config, resolve
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.report.rows import drawn_by
from dreamer_mpc.util.errors import UserError

PARTS = {"world_model": "world model", "actor": "actor", "critic": "critic"}  # first words of the names of weights
OWN = ".masks"  # which frames of its replay a critic learns from is a run's own
NAMED = 3  # tensors that a line names


@dataclass(frozen=True)
class Initial:
    """The checkpoint that a run starts from."""

    subject: Subject
    sha256: str  # of its file

    @classmethod
    def of(cls, config: Config) -> "Initial | None":
        """That of `config.init_from`; UserError where there is none, or its agent is of another kind."""
        if config.init_from is None:
            return None
        config, subject = resolve(config), Subject.load(config.init_from)
        trained = subject.trained
        for name in ("agent", "world_model.kind", "behavior.kind"):
            theirs, ours = _of(trained, name), _of(config, name)
            if theirs != ours and (name != "behavior.kind" or config.agent == "dreamer"):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"--init-from: {subject.path} was trained with {flag} {theirs}, this run has {ours}: "
                    "give both the same, or leave --init-from out"
                )
        return cls(subject, _digest(subject.path))

    def record(self) -> dict[str, Any]:
        """The entry in versions.json."""
        return {
            "checkpoint": str(self.subject.path),
            "sha256": self.sha256,
            "env": self.subject.trained.env,
            "env_steps": self.subject.checkpoint.counters.env_steps,
        }

    def load_into(self, agent: Agent) -> str:
        """Load the weights that fit; optimizers and counters stay those of a new agent. Returns a line for the user.

        Actor and critic start anew, each as a whole, where they have other shapes. UserError where the world model has,
        as with another number of actions.
        """
        own = agent.state_dict()["model"]
        theirs = {name: x for name, x in self.subject.checkpoint.agent["model"].items() if not name.endswith(OWN)}
        wrong = {name: x for name, x in theirs.items() if name in own and own[name].shape != x.shape}
        if misfits := [name for name in wrong if _part(name) == "world_model"]:
            raise UserError(
                f"--init-from: weights of {self.subject.path}, trained on {self.subject.trained.env}, do not fit: "
                f"{_described(misfits, theirs, own)}: the environments must have as many actions, and the world models "
                "the same --world-model settings"
            )
        anew = {_part(name) for name in wrong}
        fitting = {name: x for name, x in theirs.items() if name in own and _part(name) not in anew}
        agent.load_state_dict({"model": own | fitting})
        return self._line(own, fitting, wrong, theirs)

    def _line(
        self, own: dict[str, Tensor], fitting: dict[str, Tensor], wrong: dict[str, Tensor], theirs: dict[str, Tensor]
    ) -> str:
        loaded = dict.fromkeys(PARTS[_part(name)] for name in fitting)
        trained = f"{self.subject.trained.env}, {self.subject.checkpoint.counters.env_steps:,} env steps"
        trained += drawn_by(self.subject.trained.render_quality)
        line = f"weights of {', '.join(loaded)} from {self.subject.path} ({trained})"
        fresh = [name for name in own if name not in fitting and not name.endswith(OWN)]
        if not fresh:
            return line
        if wrong:
            return f"{line}; new, as shapes differ: {_described(list(wrong), theirs, own)}"
        return f"{line}; new, as it has none: {_first(fresh)}"


def _digest(path: Path) -> str:
    """SHA-256 of a file, taken when it is loaded: the run that wrote it may remove it at any later time."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--init-from: cannot read {path} ({error.strerror}): check the file") from error


def _of(config: Config, name: str) -> Any:
    value: Any = config
    for word in name.split("."):
        value = getattr(value, word)
    return value


def _part(name: str) -> str:
    return name.partition(".")[0]


def _described(names: list[str], theirs: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    words = [f"{name} is {list(theirs[name].shape)} and should be {list(own[name].shape)}" for name in names]
    return _first(words)


def _first(words: list[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return f"{', '.join(words[:NAMED])}{more}"
