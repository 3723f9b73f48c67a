"""The typed schema of a run, and how YAML presets and the command line fill it."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.dreamer import OptimizerConfig
from dreamer_mpc.data.replay import ReplayConfig
from dreamer_mpc.planners import (
    CEM,
    MPPI,
    PLANNERS,
    DreamMPC,
    GradMPC,
    Planner,
    PolicyGradMPC,
    SampledPolicy,
    make_planner,
)
from dreamer_mpc.util.checks import check_most, check_ranges
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.world_model import WorldModelConfig
from envs import RENDER_QUALITIES

ALL = "all"  # planners
PRESETS = Path(__file__).resolve().parents[2] / "configs"
MOST_ENVS = 4096
MOST_YAML = 2**17  # characters
EARLIER = {"train": {"policy_action": "mode"}}  # what was done before there was such a setting
DEEPEST_YAML = 8  # collections in each other
PlannerName = Literal[tuple(PLANNERS)]
RenderQuality = Literal[tuple(RENDER_QUALITIES)]
T = TypeVar("T")


@dataclass(frozen=True)
class TrainConfig:
    """The loop: random episodes first, then rounds of collecting and updating."""

    seed_episodes: int = 5
    """Episodes of random actions before the first update (paper: 5)."""
    every: int = 1000
    """Env steps between rounds of updates (paper: 1000, one episode)."""
    updates: int = 100
    """Updates of a round (paper: 100)."""
    action_noise: float = 0.3
    """Standard deviation of the Gaussian noise on executed actions while collecting (paper: 0.3)."""
    policy_action: Literal["sample", "mode"] = "sample"
    """What the policy executes while collecting, before that noise: a sample of the actor (Dreamer and the paper's base
    code), or its mode (runs made before 2026-11-28). An evaluation always takes the mode."""
    keep_checkpoints: int = 3
    """Checkpoints kept in the run folder, beside the one with the best evaluation."""
    max_skipped_in_a_row: int = 100
    """Updates in a row whose loss or gradient is not finite, each skipped, after which the run ends."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, beside those before evaluations and on a stop: what a killed run loses at most."""

    def __post_init__(self):
        check_ranges(self, seed_episodes=(1, None), every=(1, None), updates=(0, None), action_noise=(0, None))
        check_ranges(self, keep_checkpoints=(1, None), checkpoint_seconds=(0, None), max_skipped_in_a_row=(1, None))


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation without noise, on a fixed grid of env steps and on seeds of its own."""

    every: int = 25_000
    """Env steps between evaluations; a checkpoint is written at each."""
    episodes: int = 10
    """Episodes of an evaluation (paper: 10)."""
    num_envs: int = 10
    """Environments stepped side by side; at most one a core."""
    seed: int = 10_000
    """Seed of the first evaluation episode; the next ones count up."""
    video: bool = True
    """Write a video and the picture of one decision at each evaluation."""
    video_steps: int = 250
    """Longest video, agent steps."""

    def __post_init__(self):
        check_ranges(self, every=(1, None), episodes=(1, None), num_envs=(1, None), seed=(0, None))
        check_most(self, MOST_ENVS, "num_envs")
        check_ranges(self, video_steps=(1, None))


@dataclass(frozen=True, kw_only=True)
class PlannerSettings:
    """A group of settings for each planner that has some, so that one command can set several."""

    dream_mpc: DreamMPC = DreamMPC()
    policy_grad_mpc: PolicyGradMPC = PolicyGradMPC()
    grad_mpc: GradMPC = GradMPC()
    cem: CEM = CEM()
    mppi: MPPI = MPPI()


@dataclass(frozen=True, kw_only=True)
class Config(PlannerSettings):
    """Train a Dreamer agent from pixels whose actions are chosen by a planner in latent imagination."""

    config: str = "default"
    """Preset: a name in configs/ (default, quick, ...) or a YAML file; several, joined by commas, add up."""
    env: str = "cheetah-run"
    """dm_control task as domain-task, or module:factory for your own gymnasium.Env."""
    planner: PlannerName = "dream-mpc"
    """What chooses actions, in training and in evaluation. cem trains PlaNet: no actor, no critic."""
    train_planner: PlannerName | None = None
    """What chooses actions in training alone; None is --planner. policy: plain Dreamer, evaluated with planning."""
    agent: Literal["auto", "dreamer", "planet"] = "auto"
    """dreamer: world model, actor, critic; planet: world model alone; auto: what the planners need."""
    seed: int = 0
    """Seed of networks, sampling and training episodes."""
    env_steps: int = 1_000_000
    """Length of the run in env steps, i.e. steps of the simulator (paper: 1M)."""
    num_envs: int = 8
    """Training environments, stepped in workers while updates run; 1: the paper's sequential algorithm, no workers."""
    action_repeat: int = 2
    """Env steps of one agent step; rewards are summed (paper: 2)."""
    camera: int | None = None
    """Camera of a dm_control task; None takes the usual one (2 for quadruped, else 0)."""
    max_env_steps: int | None = None
    """Longest episode in env steps; None is the task's own time limit."""
    render_quality: RenderQuality = "full"
    """full: dm_control's own; small-shadows: nearly the same, a quarter cheaper; fast: no shadows, no multisampling."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: Literal["auto", "off"] = "auto"
    """auto: on a GPU, replay acting and updates as CUDA graphs; off: eager."""
    kernels: Literal["auto", "off"] = "auto"
    """auto: the fast forms of recurrent cell and convolutions (Triton on a GPU); off: plain modules, the reference."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """On a GPU, convolutions, cell and hidden layers multiply bf16, or TF32; states, losses and weights are fp32."""
    run_dir: str | None = None
    """Where the run is written; None is runs/<env>-<planner>[-trained-by-<train planner>]-seed<seed>."""
    resume: str | None = None
    """Run folder to go on with, from its last checkpoint; its settings hold unless given again."""
    overwrite: bool = False
    """Start again in a run folder that exists, deleting the run in it."""
    profile: bool = False
    """Write a trace of a few updates and steps to profile/ in the run folder, for https://ui.perfetto.dev."""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Logger beside metrics.jsonl; wandb stays offline unless WANDB_MODE says otherwise."""
    train: TrainConfig = TrainConfig()
    eval: EvaluationConfig = EvaluationConfig()
    replay: ReplayConfig = ReplayConfig()
    world_model: WorldModelConfig = WorldModelConfig()
    behavior: BehaviorConfig = BehaviorConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        check_ranges(self, seed=(0, None), env_steps=(1, None), num_envs=(1, None), action_repeat=(1, None))
        check_most(self, MOST_ENVS, "num_envs")
        if self.max_env_steps is not None:
            check_ranges(self, max_env_steps=(1, None))
        if self.camera is not None:
            check_ranges(self, camera=(-1, None))

    @property
    def trained_by(self) -> PlannerName:
        """The planner that chooses actions in training."""
        return self.train_planner or self.planner


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings(PlannerSettings):
    """How episodes are played with a trained agent."""

    episodes: int = 10
    """Episodes for each planner and checkpoint."""
    video: bool = False
    """Write a video of the first episode and the picture of one decision, for each planner."""
    seed: int = 10_000
    """Seed of the first episode; the next ones count up."""
    num_envs: int = 10
    """Environments stepped side by side; at most one a core and one an episode."""
    render_quality: RenderQuality | None = None
    """Rendering; None is the checkpoint's."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: Literal["auto", "off"] = "auto"
    """auto: on a GPU, replay acting as CUDA graphs; off: eager."""

    def __post_init__(self):
        check_ranges(self, episodes=(1, None), num_envs=(1, None), seed=(0, None))
        check_most(self, MOST_ENVS, "num_envs")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(EpisodeSettings):
    """Evaluate one checkpoint under each named planner, on the same episode seeds, and print one table."""

    checkpoint: str
    """Checkpoint file, or a run folder, whose last one is taken."""
    planner: str | None = None
    """Planners, joined by commas; None is dream-mpc,policy, for a PlaNet checkpoint cem."""
    env: str | None = None
    """Environment; None is the checkpoint's."""
    out: str | None = None
    """Where eval.json and videos go; None is eval/ in the checkpoint's run folder."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(EpisodeSettings):
    """Evaluate checkpoints of one task under every planner on the same episode seeds: table, compare.csv, compare.png.

    Interrupted, the same command goes on where it stopped. Planner settings start from those of the first checkpoint.
    """

    checkpoint: tuple[str, ...]
    """Checkpoint files or run folders, of one task."""
    planners: str | None = None
    """Planners, joined by commas; all: those that the checkpoints can run. None is all, with --sweep only policy."""
    sweep: tuple[str, ...] = ()
    """Values of a setting to compare as well, e.g. dream-mpc.iterations=1,2,5,10; several with spaces between.
    A colon varies settings together: dream-mpc.uncertainty=0.01,0.1:penalty-gradient=false."""
    out: str | None = None
    """Where everything is written; None is compare/ in the first checkpoint's run folder."""
    overwrite: bool = False
    """Start again in a folder that holds a comparison."""

    def __post_init__(self):
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("checkpoint must name one checkpoint or more, got none")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train every planner in every environment with every seed, several runs at once, a process each.

    All other options are those of train and hold for all runs. Interrupted, the same command goes on where it stopped.
    """

    envs: str = "cheetah-run"
    """Environments, joined by commas."""
    planners: str = "dream-mpc,policy"
    """Planners, joined by commas, or all; each in training and evaluation."""
    seeds: str = "0"
    """Seeds, joined by commas."""
    jobs_per_gpu: int = 1
    """Runs at once on each GPU; without a GPU, on this machine."""
    restarts: int = 2
    """Times that a run which failed is started again from its checkpoint."""
    out: str = "runs"
    """Where the run folders go, and what the runs print, in logs/."""

    def __post_init__(self):
        check_ranges(self, jobs_per_gpu=(1, None), restarts=(0, None))
        check_most(self, MOST_ENVS, "jobs_per_gpu")


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Draw curves.csv and compare.csv of a folder, and of all folders below it, as pictures beside them.

    With --runs, gather the evaluations of those runs first, into curves.csv and final.csv of the folder.
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Where the CSV files are, and the pictures go."""
    runs: tuple[str, ...] = ()
    """Runs to gather: run folders, or folders of some; LABEL=FOLDER calls the method of those LABEL."""
    until: int | None = None
    """Env steps past which evaluations of --runs are left out; None is none."""

    def __post_init__(self):
        if self.until is not None:
            check_ranges(self, until=(1, None))


S = TypeVar("S", bound=PlannerSettings)


def load_presets(names: str) -> Config:
    """The presets `names`, merged in order over the defaults; UserError on an unknown preset, key or value."""
    merged = OmegaConf.structured(Config)
    for name in names.split(","):
        path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
        if not path.is_file():
            known = sorted(str(p.relative_to(PRESETS).with_suffix("")) for p in PRESETS.rglob("*.yaml"))
            raise UserError(f"no preset {name!r}: known are {', '.join(known)}, or give a YAML file")
        try:
            merged = OmegaConf.merge(merged, _read_yaml(path))
        except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{path}: {_first_lines(error)}") from error
    return _build(merged, names)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Settings from a file that may be a stranger's: plain values, no tags, aliases or words of OmegaConf."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: give a YAML file") from error
    if len(text) > MOST_YAML:
        raise UserError(f"{path} is too large for settings ({len(text):,} characters): give a YAML file of a run")
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{path} has an alias (*name): write the value out")  # a few could stand for gigabytes
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise UserError(f"{path} is not valid YAML for settings: it is nested too deeply")
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except OSError:  # OmegaConf's word for a file that holds one value
        values = None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path} is not valid YAML for settings: {_first_lines(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping, key: value")
    _refuse_words(_flatten(values), f"{path}: ")
    return values


def _refuse_words(values: dict[str, Any], where: str) -> None:
    """UserError where a value is one of OmegaConf's words, which would read the environment or other settings."""
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and ("${" in item or item == "???"):
                raise UserError(f"{where}{key}: {item[:80]!r} is no value: write it out")


def check_start(config: Config) -> None:
    """UserError for what can be known to be wrong with a training run before anything is made."""
    resolve(config)
    replay = config.replay
    if config.max_env_steps is not None:
        frames = -(-config.max_env_steps // config.action_repeat) + 1
        if frames < replay.sequence_length:
            raise UserError(
                f"--replay.sequence-length {replay.sequence_length} is longer than an episode of --max-env-steps "
                f"{config.max_env_steps}, {frames} frames: lower it, or raise that"
            )


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """A saved configuration; UserError where it does not fit this version's schema.

    Settings that it was saved without, because they are younger than it, are as the program was then.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), EARLIER, OmegaConf.create(values))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{source}: {_first_lines(error)}") from error
    return _build(merged, source)


def trained_config(payload: dict[str, Any], source: str) -> Config:
    """The configuration that a checkpoint was trained with; its weights say which agent it holds. UserError if none."""
    try:
        values, weights = payload["config"], payload["agent"]["model"]
        numbers = payload["action_dim"], payload["counters"]["env_steps"]
    except (KeyError, TypeError):
        values = weights = numbers = None
    if not (isinstance(values, dict) and isinstance(weights, dict) and all(isinstance(n, int) for n in numbers)):
        raise UserError(f"{source} holds no trained agent: name a checkpoint-*.safetensors of a run")
    holds_actor = any(name.startswith("actor.") for name in weights)
    config = config_from_dict(values, source)
    return dataclasses.replace(config, agent="dreamer" if holds_actor else "planet")


def _build(merged: Any, source: str) -> Config:
    try:
        return OmegaConf.to_object(merged)
    except ValueError as error:
        raise UserError(f"{source}: {_first_lines(error)}") from error


def to_yaml(config: Config) -> str:
    """`config` as YAML that `load_presets` reads back: single settings first, then the groups."""
    values = to_dict(config)
    return OmegaConf.to_yaml(dict(sorted(values.items(), key=lambda item: isinstance(item[1], dict))))


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as plain numbers, strings, lists and dicts."""
    return OmegaConf.to_container(OmegaConf.structured(config))


def parse(schema: type[T], args: Sequence[str], default: T | None = None, prog: str = "run.py") -> T:
    """`schema` from command-line arguments over `default`; UserError, one line, where they do not fit."""
    flags = [arg.partition("=")[0] for arg in args]
    for field in dataclasses.fields(schema):
        if field.type == tuple[str, ...] and flags.count(f"--{field.name}") > 1:  # the last alone would count
            raise UserError(f"--{field.name} is given twice: give it once, with all its values behind it")
    _refuse_words({f"argument {i}": arg for i, arg in enumerate(args, start=1)}, "")
    stderr = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(schema, args=list(args), prog=prog, **extra)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(stderr.getvalue())) from stop


def parse_some(schema: type[T], args: Sequence[str], prog: str) -> tuple[T, list[str]]:
    """`parse`, and the arguments that `schema` does not know."""
    known = {_flag(field.name) for field in dataclasses.fields(schema)} | {"-h", "--help"}
    own, rest, taking = [], [], False
    for arg in args:
        if arg.startswith("-"):
            taking = arg.partition("=")[0] in known
        (own if taking else rest).append(arg)
    return parse(schema, own, prog=prog), rest


def option(args: Sequence[str], name: str) -> str | None:
    """The value of `--name` in `args`, read ahead of the full parse; None where it is not given."""
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"--{name}="):
            return arg.split("=", 1)[1]
    return None


def differences(old: Config, new: Config) -> list[str]:
    """`key: old -> new` for every setting that differs."""
    a, b = (_flatten(dataclasses.asdict(config)) for config in (old, new))
    return [f"{key}: {a[key]} -> {b[key]}" for key in a if a[key] != b[key]]


def planner_from(config: PlannerSettings, name: str) -> Planner:
    """The planner `name` with its group of settings in `config`; UserError on an unknown name."""
    if name not in PLANNERS:
        raise UserError(f"unknown planner {name!r}: known are {', '.join(PLANNERS)}")
    group = getattr(config, name.replace("-", "_"), None)
    return make_planner(name) if group is None else group


def training_planner(config: Config) -> Planner:
    """What chooses actions while collecting: as in an evaluation, but for a policy that is to sample."""
    planner = planner_from(config, config.trained_by)
    samples = config.trained_by == "policy" and config.train.policy_action == "sample"
    return SampledPolicy() if samples else planner


def with_planners_of(trained: Config, config: S) -> S:
    """`config` with the planner settings of `trained`."""
    groups = {field.name: getattr(trained, field.name) for field in dataclasses.fields(PlannerSettings)}
    return dataclasses.replace(config, **groups)


def planner_names(text: str) -> list[str]:
    """The names in a list joined by commas, each once, `all` written out; UserError where there is none."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = list(dict.fromkeys(name for word in words for name in (PLANNERS if word == ALL else [word])))
    if not names:
        raise UserError(f"{text!r} names no planner: give one or more, joined by commas")
    return names


def with_setting(planner: Planner, name: str, setting: str, value: str) -> Planner:
    """`planner`, called `name`, with one setting changed to what `value` says; UserError on a wrong key or value."""
    known = [field.name for field in dataclasses.fields(planner)]
    key = setting.replace("-", "_")
    if key not in known:
        raise UserError(f"{name} has no setting {setting!r}: known are {', '.join(known) or 'none'}")
    if "${" in value or value == "???":  # words of OmegaConf
        raise UserError(f"{name}.{setting}={value}: give a value")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(planner), {key: value}))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{name}.{setting}={value}: {_first_lines(error)}") from error


def agent_of(config: Config) -> Literal["dreamer", "planet"]:
    """What `config` trains: with `agent: auto`, an actor and a critic where a planner needs one of them."""
    if config.agent != "auto":
        return config.agent
    names = [config.planner, config.trained_by]
    return "dreamer" if any(planner_from(config, name).requires for name in names) else "planet"


def resolve(config: Config) -> Config:
    """`config` with its agent decided; UserError where a planner needs what the agent does not have."""
    decided = dataclasses.replace(config, agent=agent_of(config))
    for name in (decided.planner, decided.trained_by):
        check_runs(name, planner_from(decided, name), decided, "this run trains")
    return decided


def missing_parts(planner: Planner, trained: Config) -> list[str]:
    """What `planner` needs and the agent of `trained` does not have."""
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


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _first_lines(error: Exception) -> str:
    """The message without OmegaConf's list of types; its full key if it names one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    message = " ".join(line for line in lines if not re.match(r"(full_key|reference_type|object_type)\b", line))
    return f"{keys[0]}: {message}" if keys else message


def _one_line(box: str) -> str:
    """tyro's boxed error as one line: its title and its pointers to --help left out, range errors with their flag."""
    # The title comes first; the frame may be box characters, ASCII or nothing, as the terminal allows.
    lines = [line.strip(" │|") for line in box.splitlines()]
    text = " ".join([line for line in lines if re.search(r"\w", line)][1:])
    text = re.sub(r"Argument helptext:.*|For full helptext,.*", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^Error parsing \w*Config: (\w+) must", lambda m: f"{_flag(m[1])} must", text)
    text = re.sub(r"^Error parsing ([\w-]+): (\w+) must", lambda m: f"{_flag(f'{m[1]}.{m[2]}')} must", text)
    return f"{text} (see --help)"


def _flag(key: str) -> str:
    """dream_mpc.step_size -> --dream-mpc.step-size, as tyro spells it."""
    return "--" + key.replace("_", "-").rstrip("-")
