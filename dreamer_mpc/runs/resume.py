"""Opening a run to resume it: its newest undamaged checkpoint, and the settings that may not change."""

from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

from dreamer_mpc.config import Config, differences, load_saved, trained_config
from dreamer_mpc.data.files import check_files
from dreamer_mpc.envs.scene import WARP
from dreamer_mpc.runs.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_newest
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util.errors import UserError

# Frames in replay and the episodes in progress depend on the first eight; on the others names and shapes of weights, of
# what optimizers keep, or of latent states. The masks that bootstrap describes are drawn once, and saved with weights.
FIXED = (
    "env", "env_args", "num_envs", "action_repeat", "camera", "image_size", "grayscale", "frame_stack",
    "world_model.kind", "behavior.kind", "optimizer.kind",
    "replay.states", "behavior.bootstrap",
    "world_model.continuation", "world_model.deter", "world_model.stoch", "world_model.classes", "world_model.blocks",
    "world_model.hidden", "world_model.encoder_channels", "world_model.downsampling", "world_model.decoder_dense",
    "world_model.decoder_channels", "world_model.reward_layers", "world_model.reward_hidden",
    "world_model.representation",
    "behavior.actor_layers", "behavior.actor_hidden", "behavior.value_heads", "behavior.value_layers",
    "behavior.value_hidden",
)  # fmt: skip

# A change of any other setting is marked in the metrics, which are then of two kinds. These alter no result: how long
# and where a run goes on (rounding apart), what it writes, and when it is evaluated.
NEUTRAL = (
    "config", "run_dir", "resume", "overwrite", "profile", "init_from", "logger", "env_steps",
    "device", "render_device", "compile", "kernels",
    "train.keep_checkpoints", "train.checkpoint_seconds", "train.max_skipped_in_a_row",
    "eval.every", "eval.beside", "eval.video", "eval.video_steps", "replay.storage",
)  # fmt: skip


def changes_of_settings(checkpoint: Checkpoint, config: Config) -> dict[str, str]:
    """What `config` changes of the run of `checkpoint`: `old -> new` by setting."""
    before = replace(trained_config(checkpoint, "the checkpoint"), resume=config.resume)
    return {key: values for key, _, values in (line.partition(": ") for line in differences(before, config))}


def changing_results(changes: dict[str, str]) -> dict[str, str]:
    """Those of `changes_of_settings` that may change the results of the run."""
    return {key: values for key, values in changes.items() if key not in NEUTRAL}


@dataclass(frozen=True)
class SavedRun:
    """A run that can be resumed: from `checkpoint`, or from its start if it was killed before its first checkpoint."""

    folder: RunFolder
    config: Config
    checkpoint: Checkpoint | None
    notes: list[str] = field(default_factory=list)  # lines for the user

    def check(self, config: Config) -> None:
        """UserError where the run cannot be resumed with `config`."""
        path = self.folder.path
        if config.agent != self.config.agent:
            raise UserError(f"{path} holds a {self.config.agent} agent: leave --agent out, or start another run")
        for name in FIXED:
            before, now = attrgetter(name)(self.config), attrgetter(name)(config)
            if before != now:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{flag} of {path} is {before} and cannot become {now}: leave it out, or start another run"
                )
        if (config.render_quality == WARP) != (self.config.render_quality == WARP):
            raise UserError(
                f"--render-quality of {path} is {self.config.render_quality} and cannot become "
                f"{config.render_quality}, as pictures by warp are a world of their own: leave it out, or start "
                "another run"
            )
        self._check_seed_episodes(config)
        if self.is_complete(config) and config.env_steps < self.config.env_steps:
            done = self.checkpoint.counters.env_steps
            raise UserError(f"{path} has reached {done:,} env steps: give more with --env-steps, or leave it out")

    def is_complete(self, config: Config) -> bool:
        """Whether nothing of it is left to do with `config`."""
        saved = self.checkpoint
        return saved is not None and saved.counters.env_steps >= config.env_steps and saved.training["finished"]

    def _check_seed_episodes(self, config: Config) -> None:
        """Until the first update more of them may be asked for; after it their number would have no effect."""
        before, now = self.config.train.seed_episodes, config.train.seed_episodes
        if before == now or self.checkpoint is None or self.checkpoint.training["seeding"]:
            return
        if self.checkpoint.counters.updates or now < before:
            raise UserError(
                f"--train.seed-episodes of {self.folder.path} is {before} and cannot become {now}, as these episodes "
                "are over: leave it out, or start another run"
            )


def open_run(path: str) -> SavedRun:
    """The run in the folder `path` with its newest undamaged checkpoint, whose replay is undamaged too.

    UserError where there is no run, or none of its checkpoints can be resumed from.
    """
    folder = RunFolder.open(path)

    def read(file: Path) -> tuple[Checkpoint, Config]:
        checkpoint = load_checkpoint(file)
        if not checkpoint.resumable:
            raise UserError(f"{file} holds an agent but no state of a training: evaluate it, or start another run")
        try:
            check_files(folder.replay, checkpoint.replay_files, checkpoint.replay["oldest"].tolist())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} names no files of a replay: use an earlier checkpoint, or a new run") from error
        return checkpoint, trained_config(checkpoint, str(file))

    if list_checkpoints(folder.checkpoints):
        _, (checkpoint, config), notes = load_newest(folder.checkpoints, read)
        return SavedRun(folder, config, checkpoint, notes)
    if not folder.config.exists():
        raise UserError(f"{path} was claimed by a run that had not begun: start that one again, with its own command")
    note = f"{path} has no checkpoint yet: it starts again from its beginning"
    return SavedRun(folder, load_saved(folder.config), None, [note])
