"""The typed schema of every command's settings; presets and the command line fill it."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.data.replay import ReplayConfig
from dreamer_mpc.envs import RENDER_QUALITIES
from dreamer_mpc.envs.frames import MOST_STACKED
from dreamer_mpc.envs.names import draws_itself
from dreamer_mpc.planners import PLANNERS
from dreamer_mpc.util.arguments import read_env_args
from dreamer_mpc.util.checks import check_kinds, check_most, check_ranges
from dreamer_mpc.world_model import ImageForm, WorldModelConfig

MOST_ENVS = 4096
PlannerName = Literal[tuple(PLANNERS)]
RenderQuality = Literal[tuple(RENDER_QUALITIES)]


@dataclass(frozen=True)
class TrainConfig:
    """The training loop: random episodes first, then rounds of collecting and updating."""

    seed_episodes: int = 5
    """Episodes of random actions before the first update (paper: 5); more are played until there is a
    sequence for it."""
    every: int = 1000
    """Env steps between rounds of updates (paper: 1000, one episode)."""
    updates: int = 100
    """Updates in each round (paper: 100)."""
    action_noise: float = 0.3
    """Standard deviation of the Gaussian noise on executed actions while collecting (paper: 0.3). With
    --behavior.exploration policy the policy's own takes its place; 0: none in either case."""
    policy_action: Literal["sample", "mode"] = "sample"
    """What the policy executes while collecting, before that noise: a sample of the actor (Dreamer and the paper's base
    code), or its mode (runs made before 2026-11-28). In evaluations --policy.sample decides."""
    keep_checkpoints: int = 3
    """Checkpoints kept in the run folder, beside the one with the best evaluation."""
    max_skipped_in_a_row: int = 100
    """Number of consecutive skipped updates (loss or gradient not finite) after which the run ends."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, the most that a killed run loses; evaluations and a stop also write checkpoints."""

    def __post_init__(self):
        check_ranges(self, seed_episodes=(1, None), every=(1, None), updates=(0, None), action_noise=(0, None))
        check_ranges(self, keep_checkpoints=(1, None), checkpoint_seconds=(0, None), max_skipped_in_a_row=(1, None))


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation without exploration noise, on a fixed grid of env steps and with separate seeds."""

    every: int = 25_000
    """Env steps between evaluations; a checkpoint is written at each."""
    episodes: int = 10
    """Episodes of an evaluation (paper: 10)."""
    num_envs: int = 10
    """Environments stepped in parallel; at most one per CPU core."""
    seed: int = 10_000
    """Seed of the first evaluation episode; the next ones count up."""
    render_quality: RenderQuality | None = None
    """Rendering of a run's evaluations, and of `eval` and `compare` on its checkpoints; None is that of its training.
    warp goes with warp alone."""
    beside: Literal["auto", "on", "off"] = "auto"
    """on: in a process of its own, which plays the checkpoint while training goes on; off: training waits for each
    evaluation; auto: on with several training environments on a GPU. Returns are the same; on a CPU bit for bit."""
    video: bool = True
    """Write a video and the picture of one decision at each evaluation."""
    video_steps: int = 5000
    """Longest video, agent steps; a shorter episode is shown whole."""

    def __post_init__(self):
        check_ranges(self, every=(1, None), episodes=(1, None), num_envs=(1, None), seed=(0, None))
        check_most(self, MOST_ENVS, "num_envs")
        check_ranges(self, video_steps=(1, None))


# One group of settings for each planner that has settings, so that one command can configure several planners.
PlannerSettings = dataclasses.make_dataclass(
    "PlannerSettings",
    [(name.replace("-", "_"), kind, kind()) for name, kind in PLANNERS.items() if dataclasses.fields(kind)],
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class Config(PlannerSettings):
    """Train a Dreamer agent from pixels whose actions are chosen by a planner in latent imagination."""

    config: str = "default"
    """Preset: a name in configs/ (default, quick, ...) or a YAML file; several, joined by commas, are merged."""
    env: str = "cheetah-run"
    """dm_control task as domain-task, an id of gymnasium such as HalfCheetah-v5, or module:factory for your own
    gymnasium.Env; `envs` lists the first two."""
    env_args: tuple[str, ...] = ()
    """Arguments of the environment as name=value: of the task, of gymnasium.make, or of your factory."""
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
    camera: int | str | None = None
    """Camera of a MuJoCo environment, by number or name; None takes the usual one (dm_control: 2 for quadruped, else
    0)."""
    image_size: Literal[64, 84, 96, 128] = 64
    """Height and width of images (paper: 64)."""
    grayscale: bool = False
    """See the brightness of images alone."""
    frame_stack: int = 1
    """Number of last frames that an image consists of, each an agent step apart."""
    max_env_steps: int | None = None
    """Longest episode in env steps; None is the task's own time limit."""
    render_quality: RenderQuality = "full"
    """full: dm_control's own; small-shadows: nearly the same in 0.6 to 0.7 of the time; fast: no shadows, no
    multisampling; warp: dm_control's tasks in nearly the same pictures, drawn on --device for all environments at
    once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    render_device: str = "same"
    """The GPU on which environments are drawn with EGL. same: that of --device; cuda:N; idle: another one of its kind
    that nothing uses, if there is one."""
    compile: Literal["auto", "off"] = "auto"
    """auto: on a GPU, replay acting and updates as CUDA graphs; off: eager."""
    kernels: Literal["auto", "off"] = "auto"
    """auto: the fast forms of recurrent cell and convolutions (Triton on a GPU); off: plain modules, the reference."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """On a GPU, convolutions, cell and hidden layers multiply bf16, or TF32; states, losses and weights are fp32."""
    run_dir: str | None = None
    """Where the run is written; None is
    runs/<env>-<planner>[-trained-by-<train planner>][-<family>][-warp][-quick]-seed<seed>."""
    resume: str | None = None
    """Run folder to continue from its last checkpoint; its settings are kept unless given again."""
    init_from: str | None = None
    """Checkpoint or run folder whose weights a new run starts from (fine-tuning): world model, and actor and critic
    where they fit. Counters, optimizers and replay start anew."""
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
        check_kinds(self)
        check_ranges(self, seed=(0, None), env_steps=(1, None), num_envs=(1, None), action_repeat=(1, None))
        check_most(self, MOST_ENVS, "num_envs")
        if self.max_env_steps is not None:
            check_ranges(self, max_env_steps=(1, None))
        if isinstance(self.camera, int):
            check_ranges(self, camera=(-1, None))
        check_ranges(self, frame_stack=(1, MOST_STACKED))
        if not re.fullmatch(r"same|idle|cuda:\d{1,4}", self.render_device):
            raise ValueError(f"render_device must be same, idle or cuda:N, got {self.render_device[:80]!r}")
        read_env_args(self.env_args)

    @property
    def images(self) -> ImageForm:
        """The form of the images that environments give and agents see."""
        return ImageForm(self.image_size, 1 if self.grayscale else 3, self.frame_stack)

    @property
    def trained_by(self) -> PlannerName:
        """The planner that chooses actions in training."""
        return self.train_planner or self.planner

    @property
    def evaluated_in(self) -> RenderQuality:
        """The render quality of the evaluations of a run; for what draws itself there is one alone."""
        other = None if draws_itself(self.env) else self.eval.render_quality
        return other or self.render_quality


@dataclass(frozen=True, kw_only=True)
class PlaySettings(PlannerSettings):
    """How episodes are played with a trained agent."""

    episodes: int = 10
    """Episodes for each planner and checkpoint."""
    seed: int = 10_000
    """Seed of the first episode; the next ones count up."""
    num_envs: int = 10
    """Environments stepped in parallel; at most one per CPU core and one per episode."""
    render_quality: RenderQuality | None = None
    """Rendering; None is the checkpoint's: in comparisons that of its run's evaluations, in analyses of training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: Literal["auto", "off"] = "auto"
    """auto: on a GPU, replay acting as CUDA graphs; off: eager."""

    def __post_init__(self):
        check_ranges(self, episodes=(1, None), num_envs=(1, None), seed=(0, None))
        check_most(self, MOST_ENVS, "num_envs")


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings(PlaySettings):
    """The same, with videos."""

    video: bool = False
    """Write a video of the first episode and the picture of one decision, for each planner."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(EpisodeSettings):
    """Evaluate one checkpoint under each named planner, on the same episode seeds, and print one table."""

    checkpoint: str
    """Checkpoint file, or a run folder, whose last checkpoint is used."""
    planner: str | None = None
    """Planners, joined by commas; None is dream-mpc,policy, for a PlaNet checkpoint cem."""
    env: str | None = None
    """Environment; None is the checkpoint's."""
    env_args: tuple[str, ...] = ()
    """Arguments of --env, or in place of those that the checkpoint was trained with."""
    out: str | None = None
    """Where eval.json and videos go; None is eval/ in the checkpoint's run folder."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(EpisodeSettings):
    """Evaluate checkpoints of one task under every planner on the same episode seeds: table, compare.csv, compare.png.

    After an interruption, the same command continues. Planner settings start from those of the first checkpoint.
    """

    checkpoint: tuple[str, ...]
    """Checkpoint files or run folders, of one task."""
    planners: str | None = None
    """Planners, joined by commas; all: those that the checkpoints can run. None is all, with --sweep only policy."""
    sweep: tuple[str, ...] = ()
    """Values of a setting to compare as well, e.g. dream-mpc.iterations=1,2,5,10; several with spaces between.
    A colon varies settings together: dream-mpc.uncertainty=0.01,0.1:penalty-gradient=false. A plus joins the values of
    one setting: dream-mpc.line-search=0.1,0.3+0.1, or none."""
    out: str | None = None
    """Where everything is written; None is compare/ in the first checkpoint's run folder."""
    overwrite: bool = False
    """Start again in a folder that holds a comparison."""

    def __post_init__(self):
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("checkpoint must name one checkpoint or more, got none")


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(PlaySettings):
    """Measure what a planner's gradient is worth on trained agents: rows.csv, summary.csv, table, picture.

    After an interruption, the same command continues. Checkpoints may be of several tasks; a planner has the discount
    of each. docs/analysis.md defines every measure; a setting that some of them alone read says so.
    """

    checkpoint: tuple[str, ...]
    """Checkpoint files or run folders."""
    what: Literal["gradient-snr", "model-error", "true-gain", "finite-differences", "bad-model", "ablate"]
    """What is measured."""
    out: str | None = None
    """Where everything is written; None is analysis/<what>/ in the first checkpoint's run folder. Processes with
    different checkpoints may share a folder: the command with all of them then draws all."""
    overwrite: bool = False
    """Start again in a folder that holds an analysis."""
    planners: str | None = None
    """Planners that are measured, joined by commas; None is those of docs/analysis.md."""
    states: int = 8
    """States of each episode from which is planned. Not of bad-model and ablate."""
    every: int = 25
    """Agent steps from one of these states to the next."""
    depth: int | None = None
    """Longest horizon (gradient-snr), or depth (model-error, finite-differences); None is 20 and 15."""
    draws: int = 256
    """Draws of the model's noise behind each expectation. gradient-snr: at least four times the most of --averaged."""
    averaged: tuple[int, ...] = (1, 4, 16, 64)
    """Draws that a gradient is the mean of; gradient-snr."""
    weights: tuple[float, ...] = (0.0, 0.1, 1.0, 3.0)
    """Weights of the penalty; model-error."""
    epsilon: float = 0.05
    """Half the distance of a central difference, in units of an action; finite-differences."""
    steps: int = 100
    """Agent steps of an episode of the control that plans on the simulator, 0: without it; finite-differences."""
    lookahead: int = 3
    """Steps of its plans; finite-differences."""
    levels: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Noise on the world model's weights, relative to the root mean square of each tensor; bad-model."""
    models: tuple[str, ...] = ()
    """Other checkpoints whose world models are planned with as well: earlier ones, or another task's; bad-model."""

    def __post_init__(self):
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("checkpoint must name one checkpoint or more, got none")
        check_ranges(self, states=(1, None), every=(1, None), draws=(1, None), averaged=(1, None), weights=(0, None))
        check_ranges(self, epsilon=(1e-4, 1), steps=(0, None), lookahead=(1, None), levels=(0, None))
        if self.depth is not None:
            check_ranges(self, depth=(1, None))
        for name in ("averaged", "weights", "levels"):
            if len(set(getattr(self, name))) < max(len(getattr(self, name)), 1):
                raise ValueError(f"{name} must hold one value or more, each once")
        if self.what == "gradient-snr" and self.draws < 4 * max(self.averaged):
            raise ValueError(f"draws must be at least {4 * max(self.averaged)}, four times the most of averaged")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the policy of a checkpoint for other programs: (image, action, state, noise) to (action, state).

    The file is checked against the agent before it is kept. docs/library.md shows how it is used.
    """

    checkpoint: str
    """Checkpoint file, or a run folder, whose last checkpoint is used."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx: for onnxruntime and others (pip install 'dreamer-mpc[onnx]'); torch: a program of torch.export."""
    out: str | None = None
    """The file; None is policy.onnx or policy.pt2 in the checkpoint's run folder."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train every planner in every environment with every seed, several runs in parallel, each in its own process.

    All other options are those of train and apply to all runs. After an interruption, the same command continues.
    With --launcher slurm the runs are jobs of a cluster (docs/cluster.md): they go on when the command ends, and the
    same command finds them again.
    """

    envs: str = "cheetah-run"
    """Environments, joined by commas."""
    planners: str = "dream-mpc,policy"
    """Planners, joined by commas, or all; each in training and evaluation."""
    seeds: str = "0"
    """Seeds, joined by commas."""
    jobs_per_gpu: int = 1
    """Runs in parallel on each GPU; without a GPU, on this machine."""
    restarts: int = 2
    """How many times a failed run is started again from its checkpoint."""
    out: str = "runs"
    """Where the run folders go, and what the runs print, in logs/. With --launcher slurm the nodes must share it."""
    launcher: str = "local"
    """What starts the runs: local, processes on this machine; slurm, jobs of a cluster."""
    cancel: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[NAME ...]")] = None
    """Start nothing, but let these runs, or all if none is named, save and end; for runs that go on by themselves."""
    collect: str | None = None
    """Start nothing, but copy settings, metrics and last weights of a sweep's runs to --out, from this folder or
    HOST:FOLDER."""

    def __post_init__(self):
        check_ranges(self, jobs_per_gpu=(1, None), restarts=(0, None))
        check_most(self, MOST_ENVS, "jobs_per_gpu")


@dataclass(frozen=True, kw_only=True)
class EnvsConfig:
    """List the environments that --env takes, or say what one of them takes and gives: actions, cameras, images."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """The environment to describe; None lists all."""
    env_args: tuple[str, ...] = ()
    """Its arguments, as name=value."""

    def __post_init__(self):
        read_env_args(self.env_args)


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Draw curves.csv and compare.csv of a folder, and of all folders below it, as pictures in the same folder.

    With --runs, gather the evaluations of those runs first, into curves.csv and final.csv of the folder.
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the CSV files, where the pictures are written too."""
    runs: tuple[str, ...] = ()
    """Runs to gather: run folders, or folders that contain runs; LABEL=FOLDER names the method of those runs LABEL."""
    until: int | None = None
    """Evaluations of --runs after this number of env steps are left out; None keeps all."""

    def __post_init__(self):
        if self.until is not None:
            check_ranges(self, until=(1, None))


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one HTML page of runs, comparisons, evaluations and analyses: to be sent, and opened without a network."""

    folders: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Run folders, folders of comparisons, evaluations or analyses, or folders that contain such."""
    out: str | None = None
    """The file; None is report.html in the first folder."""
    title: str | None = None
    """Title of the page; None names the environments."""
    max_mb: float = 25.0
    """Megabytes of pictures and videos inside the page; those that do not fit are named in it."""

    def __post_init__(self):
        check_ranges(self, max_mb=(0, None))
