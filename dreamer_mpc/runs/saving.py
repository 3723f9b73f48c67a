"""Writing a run's checkpoints, each after the replay files that belong to it."""

from dataclasses import replace

from dreamer_mpc.data.files import ReplayFiles
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.runs.checkpoint import Checkpoint, checkpoint_path, list_checkpoints, prune, save_checkpoint
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util.files import discard


class Saver:
    """Writes the checkpoints of one run; keeps the last `keep` with their replay files, removes the others."""

    def __init__(self, folder: RunFolder, replay: Replay, keep: int):
        self._folder, self._keep = folder.checkpoints, keep
        self._replay, self._files = replay, ReplayFiles(folder.replay, replay)
        self._needs: dict[str, int] = {}  # env steps of a kept checkpoint -> the first replay file that it needs

    def save(self, checkpoint: Checkpoint, last: bool = False) -> None:
        """Write replay's new frames, then `checkpoint` with the list of their files. UserError on a disk error.

        `last`: the process ends after it, so that everything that a resumed run can use is written.
        """
        self._files.write()
        states = self._files.write_states(last)
        replay = checkpoint.replay | ({"states": states} if states else {})
        env_steps = checkpoint.counters.env_steps
        needs = self._needs | {str(env_steps): self._files.needed()}
        files = self._files.state_dict()
        whole = replace(checkpoint, replay=replay, replay_files=files, replay_needs=needs)
        save_checkpoint(checkpoint_path(self._folder, env_steps), whole)
        own = {checkpoint_path(self._folder, int(key)): key for key in needs}
        for file in set(list_checkpoints(self._folder)) - own.keys():  # the run was resumed from an older checkpoint
            discard(file)
        prune(self._folder, self._keep)
        self._needs = {key: needs[key] for file, key in own.items() if file.exists()}
        self._files.forget(min(self._needs.values()))
        self._files.forget_states(states)

    def restore(self, checkpoint: Checkpoint) -> bool:
        """Read replay's frames, and continue the files of the run that wrote `checkpoint`.

        False where replay keeps latent states and those of this checkpoint were not written or are damaged.
        """
        self._files.load_state_dict(checkpoint.replay_files)
        known = self._replay.states is None or self._files.read_states(checkpoint.replay.get("states", {}))
        self._needs = dict(checkpoint.replay_needs)
        return known
