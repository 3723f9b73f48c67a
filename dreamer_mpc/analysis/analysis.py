"""An analysis: units of work on every checkpoint, kept in a folder, and what is written of them."""

import hashlib
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dreamer_mpc.analysis.ablate import Ablate
from dreamer_mpc.analysis.bad_model import BadModel
from dreamer_mpc.analysis.bench import Bench
from dreamer_mpc.analysis.finite_differences import FiniteDifferences
from dreamer_mpc.analysis.gradient_snr import GradientSNR
from dreamer_mpc.analysis.groups import group_of
from dreamer_mpc.analysis.ledger import Ledger
from dreamer_mpc.analysis.measure import Line, Measure, name_of, planners_of
from dreamer_mpc.analysis.model_error import ModelError
from dreamer_mpc.analysis.true_gain import TrueGain
from dreamer_mpc.config import AnalyzeConfig
from dreamer_mpc.config.make import load_agent, make_envs, side_by_side_envs
from dreamer_mpc.envs.snapshot import not_restorable
from dreamer_mpc.evaluation.record import AFRESH
from dreamer_mpc.evaluation.subject import Subject, one_world
from dreamer_mpc.report.found import PICTURE, TABLE
from dreamer_mpc.report.panels import panels_picture
from dreamer_mpc.report.rows import device_now, drawn_by
from dreamer_mpc.report.words import duration, plural
from dreamer_mpc.util.device import choose_device, device_name
from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.files import output_path, to_csv

MEASURES: dict[str, type[Measure]] = {
    "gradient-snr": GradientSNR,
    "model-error": ModelError,
    "true-gain": TrueGain,
    "finite-differences": FiniteDifferences,
    "bad-model": BadModel,
    "ablate": Ablate,
}
SUMMARY = "summary.csv"


@dataclass
class Analysis:
    """The checkpoints by their names in the record, with the measure of each."""

    config: AnalyzeConfig
    subjects: dict[str, Subject]
    measures: dict[str, Measure]
    ledger: Ledger
    device: torch.device
    begun: bool = field(default=False)

    @classmethod
    def of(cls, config: AnalyzeConfig, subjects: list[Subject]) -> "Analysis":
        """The analysis of the command, of the subjects at `config.checkpoint`.

        UserError where its settings do not fit, or its folder holds another.
        """
        device, kind = choose_device(config.device), MEASURES[config.what]
        one_world(subjects, config.render_quality)
        by_content = {hashlib.sha256(s.path.read_bytes()).hexdigest(): s for s in reversed(subjects)}
        by_content = {sha256: by_content[sha256] for sha256 in reversed(by_content)}  # each once, in their order
        folder = output_path(config.out or subjects[0].run.path / "analysis" / config.what)
        config = replace(config, out=str(folder))
        known = dict(zip(config.checkpoint, subjects, strict=True))
        models = {path: known.get(path) or Subject.load(path) for path in config.models} if kind.reads_models else {}
        made = {
            sha256: kind.make(config, subject, planners_of(config, kind, subject, subjects[0]), models)
            for sha256, subject in by_content.items()
        }
        checkpoints = {str(subject.path): sha256 for sha256, subject in by_content.items()}
        ledger = Ledger(folder, _made_with(config, made, by_content), checkpoints, config.overwrite)
        named = {ledger.names[sha256]: subject for sha256, subject in by_content.items()}
        measures = {ledger.names[sha256]: measure for sha256, measure in made.items()}
        return cls(config, named, measures, ledger, device)

    def missing(self, name: str) -> list[tuple[str, int, int]]:
        """Units of a checkpoint that are not done: part, first episode, number of episodes."""
        units = []
        for part in self.measures[name].parts:
            there = self._episodes(name, part)
            batch = self._rows
            units += [
                (part, first, min(batch, self.config.episodes - first))
                for first in range(there, self.config.episodes, batch)
            ]
        return units

    def play(self) -> None:
        """Do the units that are missing, checkpoint by checkpoint."""
        todo = {name: self.missing(name) for name in self.subjects}
        total, started, number = sum(map(len, todo.values())), time.monotonic(), 0
        done = len(self.ledger.done)
        if total:
            self._check_device()
        if done and total:
            print(f"{plural(done, 'unit')} of work {'is' if done == 1 else 'are'} there already")
        for name, units in todo.items():
            if not units:
                continue
            bench = None if self.measures[name].plays_itself else self._bench(name)
            try:
                self._begin()
                for part, first, count in units:
                    number += 1
                    words = ", ".join(filter(None, (name_of(name), part, _episodes(first, count))))
                    seconds = self._do(bench, name, part, first, count)
                    left = (time.monotonic() - started) * (total - number) / number
                    print(f"{number} of {total}: {words}: {duration(seconds)}, ETA {duration(left)}", flush=True)
            finally:
                if bench is not None:
                    bench.envs.close()
        self._begin()
        if total:
            print(f"{plural(total, 'unit')} in {duration(time.monotonic() - started)}")

    def _check_device(self) -> None:
        """UserError where units were done on another device, whose numbers differ. Drawing them again needs none."""
        others = {device_now(unit["device"]) for unit in self.ledger.done.values()} - {device_name(self.device)}
        if others:
            raise UserError(
                f"{self.ledger.folder} holds another analysis, with other device ({min(others)}): {AFRESH}"
            )

    def summary(self) -> list[Line]:
        """What is written to summary.csv and shown, of these checkpoints."""
        asked = {self._unit(name, part, "") for name, measure in self.measures.items() for part in measure.parts}
        units = {done["number"] for unit, done in self.ledger.done.items() if unit.rsplit(": ", 1)[0] + ": " in asked}
        rows = [row for row in self.ledger.rows if row["unit"] in units and row["episode"] < self.config.episodes]
        return self._measure.summary(rows)

    def write(self, summary: list[Line]) -> list[Path]:
        """Write summary, the table that is shown, and picture."""
        self.ledger.write(SUMMARY, to_csv(summary))
        self.ledger.write(TABLE, to_csv(self._measure.table(summary)))
        path = self.ledger.folder / PICTURE
        try:
            panels_picture(path, self._measure.panels(summary), self.title())
        except OSError as error:
            raise cannot_write(path, error, "name another folder with --out") from error
        return [self.ledger.folder / name for name in ("rows.csv", SUMMARY, TABLE, PICTURE)]

    def title(self) -> str:
        """Of the picture: the measure, and of what."""
        tasks = list(dict.fromkeys(subject.trained.env for subject in self.subjects.values()))
        counts = f"{plural(len(self.subjects), 'checkpoint')}, {plural(self.config.episodes, 'episode')} each"
        return f"{self.config.what}: {', '.join(tasks)}; {counts}{self.world()}"

    def world(self) -> str:
        """What drew the episodes, if warp did or another quality was asked for; as the end of a line."""
        own = [subject.trained.render_quality for subject in self.subjects.values()]
        asked = self.config.render_quality  # else each plays in its own: all by warp, or none
        return drawn_by(asked, *own) if asked else drawn_by(own[0])

    @property
    def _measure(self) -> Measure:
        return next(iter(self.measures.values()))

    @property
    def _rows(self) -> int:
        """Episodes of a unit."""
        if self._measure.plays_itself:
            return self.config.episodes
        return side_by_side_envs(self.config.num_envs, self.config.episodes)

    def _unit(self, name: str, part: str, first: int | str) -> str:
        return f"{name}: {part}: {first}"

    def _episodes(self, name: str, part: str) -> int:
        """How many episodes of a part are done, without a gap."""
        there = 0
        while (done := self.ledger.done.get(self._unit(name, part, there))) is not None:
            there += done["episodes"]
        return there

    def _begin(self) -> None:
        if not self.begun:
            self.ledger.begin()
            self.begun = True

    def _bench(self, name: str) -> Bench:
        """Agent and environments of a checkpoint; UserError or EnvError where they do not fit the measure."""
        subject, config = self.subjects[name], self.config
        quality = config.render_quality or subject.trained.render_quality
        trained = replace(subject.trained, render_quality=quality, compile=config.compile)
        envs = make_envs(trained, self._rows, self.device)
        try:
            if self.measures[name].copies_states and not envs.restorable:
                raise not_restorable(trained.env)
            size = envs.single_action_space.shape[0]
            return Bench(load_agent(subject.checkpoint, trained, size, self.device), envs)
        except BaseException:
            envs.close()
            raise

    def _do(self, bench: Bench | None, name: str, part: str, first: int, count: int) -> float:
        started, seed = time.monotonic(), self.config.seed + first
        task = self.subjects[name].trained.env
        rows = self.measures[name].measure(bench, part, count, seed)
        if not rows:
            print(f"{name_of(name)}: nothing to measure in these episodes: they end too early")
        added = {"checkpoint": name, "task": task, "group": group_of(task)}
        rows = [added | row | {"episode": first + row["episode"], "env_seed": seed + row["episode"]} for row in rows]
        seconds = time.monotonic() - started
        about = {"episodes": count, "num_envs": self._rows, "seconds": round(seconds, 1)}
        self.ledger.add(self._unit(name, part, first), rows, device_name(self.device), **about)
        return seconds


def _episodes(first: int, count: int) -> str:
    return f"episode {first + 1}" + (f" to {first + count}" if count > 1 else "")


def _made_with(config: AnalyzeConfig, measures: dict[str, Measure], subjects: dict[str, Subject]) -> dict[str, Any]:
    """What measurements depend on; groups may grow when more checkpoints or planners are added."""
    measure, planners, discounts, quality = next(iter(measures.values())), {}, {}, {}
    for sha256, each in measures.items():
        path = str(subjects[sha256].path)
        quality[path] = config.render_quality or subjects[sha256].trained.render_quality
        for label, planner in each.planners.items():
            planners[label] = asdict(planner)
            if "discount" in planners[label]:
                discounts[f"{label} on {path}"] = planners[label].pop("discount")
    return {
        "what": config.what, "seed": config.seed, **measure.settings(),
        "planners": planners, "discounts": discounts, "render_quality": quality,
    }  # fmt: skip
