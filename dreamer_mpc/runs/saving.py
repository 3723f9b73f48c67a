"""Writing a run's checkpoints, each after the replay files that belong to it."""

from dataclasses import replace

from dreamer_mpc.data.replay import Replay
from dreamer_mpc.data.storage import ReplayFiles
from dreamer_mpc.runs.checkpoint import Checkpoint, checkpoint_path, list_checkpoints, prune, save_checkpoint
from dreamer_mpc.runs.folder import RunFolder


class Saver:
    """Writes the checkpoints of one run; keeps the last `keep` with their replay files, removes the others."""

    def __init__(self, folder: RunFolder, replay: Replay, keep: int):
        self._folder, self._keep = folder.checkpoints, keep
        self._files = ReplayFiles(folder.replay, replay)
        self._needs: dict[str, int] = {}  # env steps of a kept checkpoint -> the first replay file that it needs

    def save(self, checkpoint: Checkpoint) -> None:
        """Write replay's new frames, then `checkpoint` with the list of their files. UserError on a disk error."""
        self._files.write()
        env_steps = checkpoint.counters.env_steps
        needs = self._needs | {str(env_steps): self._files.needed()}
        files = self._files.state_dict()
        save_checkpoint(
            checkpoint_path(self._folder, env_steps), replace(checkpoint, replay_files=files, replay_needs=needs)
        )
        own = {checkpoint_path(self._folder, int(key)): key for key in needs}
        for file in set(list_checkpoints(self._folder)) - own.keys():  # the run was resumed from an older checkpoint
            file.unlink(missing_ok=True)
        prune(self._folder, self._keep)
        self._needs = {key: needs[key] for file, key in own.items() if file.exists()}
        self._files.forget(min(self._needs.values()))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Read replay's frames, and continue the files of the run that wrote `checkpoint`."""
        self._files.load_state_dict(checkpoint.replay_files)
        self._needs = dict(checkpoint.replay_needs)
