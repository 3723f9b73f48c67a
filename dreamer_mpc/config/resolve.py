"""Settings that depend on each other: planners by name, the agent to train, and combinations that are refused."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamer_mpc.agents.protocol import AgentKind
from dreamer_mpc.config.load import PRESETS, config_from_dict, first_lines, flag_names, load_presets, whole
from dreamer_mpc.config.schema import Config, PlannerSettings
from dreamer_mpc.envs.names import is_factory
from dreamer_mpc.envs.scene import WARP
from dreamer_mpc.planners import PLANNERS, Ascent, Planner, Policy, make_planner
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.world_model import WorldModelKind

ALL = "all"  # planners
NEARLY_FULL = {"full", "small-shadows"}  # render qualities
S = TypeVar("S", bound=PlannerSettings)


@runtime_checkable
class Trained(Protocol):
    """What a checkpoint says about its agent."""

    config: dict[str, Any]
    action_dim: int
    agent_kind: AgentKind
    world_model_kind: WorldModelKind
    agent: dict[str, Any]


def planner_presets() -> list[str]:
    """Names of the presets of single planners: the planner's name followed by a suffix."""
    return sorted(path.stem for path in (PRESETS / "planner").glob("*.yaml"))


def preset_kind(name: str) -> str:
    """The planner that a preset of `planner_presets` has settings for."""
    return max((kind for kind in PLANNERS if name.startswith(kind)), key=len)


def planner_from(config: PlannerSettings, name: str) -> Planner:
    """The planner `name` with its group of settings in `config`, or that of a preset; UserError on an unknown name.

    A preset takes the discount from that group: it is the agent's, by which the values were learned.
    """
    if name in PLANNERS:
        group = getattr(config, name.replace("-", "_"), None)
        return make_planner(name) if group is None else group
    presets = planner_presets()
    if name not in presets:
        known = f"{', '.join(PLANNERS)}; and the presets {', '.join(presets)}"
        raise UserError(f"unknown planner {name!r}: known are {known}")
    kind = preset_kind(name)
    discount = planner_from(config, kind).discount
    return dataclasses.replace(planner_from(load_presets(f"planner/{name}"), kind), discount=discount)


def training_planner(config: Config) -> Planner:
    """The planner for collecting: the same as in an evaluation, except that `train.policy_action` is the bare policy's.

    With `exploration: policy` nothing is added to its samples, and without action noise there are none.
    """
    planner = planner_from(config, config.trained_by)
    if config.trained_by != "policy":
        return planner
    explores = config.behavior.exploration == "noise" or config.train.action_noise > 0
    return dataclasses.replace(planner, sample=config.train.policy_action == "sample" and explores)


def with_planners_of(trained: PlannerSettings, config: S) -> S:
    """`config` with the planner settings of `trained`."""
    groups = {field.name: getattr(trained, field.name) for field in dataclasses.fields(PlannerSettings)}
    return dataclasses.replace(config, **groups)


def planner_names(text: str) -> list[str]:
    """The names in a comma-separated list, without repeats and with `all` expanded; UserError if the list is empty."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = list(dict.fromkeys(name for word in words for name in (PLANNERS if word == ALL else [word])))
    if not names:
        raise UserError(f"{text!r} names no planner: give one or more, joined by commas")
    return names


def with_setting(planner: Planner, name: str, setting: str, value: str) -> Planner:
    """`planner`, called `name`, with one setting changed to `value`; UserError on a wrong key or value."""
    known = [field.name for field in dataclasses.fields(planner)]
    key = setting.replace("-", "_")
    if key not in known:
        raise UserError(f"{name} has no setting {setting!r}: known are {', '.join(known) or 'none'}")
    if "${" in value or value == "???":  # OmegaConf expressions
        raise UserError(f"{name}.{setting}={value}: give a value")
    given: Any = value
    if isinstance(getattr(planner, key), int) and not isinstance(getattr(planner, key), bool):
        with contextlib.suppress(ValueError):  # what is no number is named below
            given = whole(value)
    if isinstance(getattr(planner, key), tuple):  # several values, which a command joins by +
        given = [] if value == "none" else value.split("+")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(planner), {key: given}))
    except (OmegaConfBaseException, ValueError) as error:
        remedy = "; give true or false" if isinstance(getattr(planner, key), bool) else ""
        raise UserError(f"{name}.{setting}={value}: {first_lines(error)}{remedy}") from error


def completed_settings(settings: Any) -> Any:
    """A planner's settings from a file of results, with those that gradient planners and the policy got after it."""
    if not isinstance(settings, dict):
        return settings
    younger: dict[str, Any] = {}
    if not settings:  # the policy's had none
        younger = dataclasses.asdict(Policy())
    elif "step_size" in settings:
        younger = dataclasses.asdict(Ascent())
    return json.loads(json.dumps(younger | settings))


def agent_of(config: Config) -> AgentKind:
    """The kind of agent that `config` trains; `agent: auto` adds actor and critic if a planner needs one of them."""
    if config.agent != "auto":
        return config.agent
    names = [config.planner, config.trained_by]
    return "dreamer" if any(planner_from(config, name).requires for name in names) else "planet"


def resolve(config: Config) -> Config:
    """`config` with `agent: auto` resolved; UserError where a planner needs a part that the agent lacks.

    Also where sequences have no next frame, whose reward the values of v3 learn from, where either training or
    evaluation alone is in pictures by warp, and where warp is to draw on another GPU than it does.
    """
    if _in_two_worlds(config):
        raise UserError(
            f"--eval.render-quality {config.eval.render_quality} does not go with --render-quality "
            f"{config.render_quality}, as pictures by warp are a world of their own: give both {WARP}, or neither"
        )
    if config.render_quality == WARP and config.render_device != "same":
        raise UserError(f"--render-quality {WARP} draws on --device: leave --render-device out")
    decided = dataclasses.replace(config, agent=agent_of(config))
    if decided.agent == "dreamer" and config.behavior.kind == "v3" and config.replay.sequence_length < 2:
        raise UserError("--replay.sequence-length must be at least 2 with --behavior.kind v3, got 1")
    for name in (decided.planner, decided.trained_by):
        check_runs(name, planner_from(decided, name), decided, "this run trains")
    return decided


def _in_two_worlds(config: Config) -> bool:
    return WARP in _qualities(config) and _qualities(config) != {WARP}


def _qualities(config: Config) -> set[str]:
    """The render qualities that are asked for training and for evaluations, whatever draws the environment."""
    return {config.render_quality, config.eval.render_quality or config.render_quality}


def evaluated_alike(config: Config, args: Sequence[str]) -> Config:
    """`config` of the command line `args`, with evaluations drawn as training is where they give --render-quality alone
    and its presets draw evaluations in a quality that looks different: what is given wins over presets.
    """
    given = flag_names(args)
    if _qualities(config) <= NEARLY_FULL or "render-quality" not in given or "eval.render-quality" in given:
        return config
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, render_quality=None))


def missing_parts(planner: Planner, trained: Config) -> list[str]:
    """The parts (actor, critic) that `planner` needs and the agent of `trained` lacks."""
    words = {"policy": "an actor", "value": "a critic"}
    return [] if agent_of(trained) == "dreamer" else [words[part] for part in sorted(planner.requires)]


def check_runs(name: str, planner: Planner, trained: Config, subject: str) -> None:
    """UserError where `planner` needs an actor or a critic that `subject` (words) does not have."""
    missing = missing_parts(planner, trained)
    if missing:
        raise UserError(
            f"{name} needs {' and '.join(missing)}, but {subject} a PlaNet agent, which has neither actor nor critic: "
            "use cem, give grad-mpc --grad-mpc.objective rewards, or train with --agent dreamer"
        )


def check_start(config: Config) -> None:
    """UserError for errors in a training run's settings that can be found before anything is built."""
    resolve(config)
    # Before this was refused it had no effect: a run that has it can still go on.
    if config.camera is not None and is_factory(config.env) and config.resume is None:
        raise UserError(
            f"--camera {config.camera} does not go with {config.env}, which draws itself: leave it out, or give your "
            "factory an argument for it (--env-args)"
        )
    replay = config.replay
    if config.max_env_steps is not None and not replay.across_episodes:
        frames = -(-config.max_env_steps // config.action_repeat) + 1
        if frames < replay.sequence_length:
            raise UserError(
                f"--replay.sequence-length {replay.sequence_length} is longer than an episode of --max-env-steps "
                f"{config.max_env_steps}, {frames} frames: lower it, raise that, or let sequences go on into the next "
                "episode (--replay.across-episodes)"
            )


def trained_config(checkpoint: Trained, source: str) -> Config:
    """The configuration that a checkpoint was trained with, and its kind of agent. UserError if it fits none."""
    config = dataclasses.replace(config_from_dict(checkpoint.config, source), agent=checkpoint.agent_kind)
    stated, configured = checkpoint.world_model_kind, config.world_model.kind
    if stated != configured:
        raise UserError(
            f"{source} holds a {stated} world model, but its settings are those of a {configured} one: name another"
        )
    return config
