"""Write only the networks of a checkpoint, in bf16, as in `pretrained/`: a sixth of the checkpoint's size.

    python -m scripts.export_weights RUN pretrained/cheetah-run

RUN is a checkpoint file or a run folder, of any readable format; a file of `pretrained/` itself is rewritten in the
newest format with identical tensors. The result can be evaluated and compared, but training cannot be resumed from it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dreamer_mpc.runs.checkpoint import Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint
from dreamer_mpc.util.owner import alone_in


def weights_of(checkpoint: Checkpoint) -> Checkpoint:
    """The part of a checkpoint that evaluation needs, with floating-point numbers in bf16."""
    weights = checkpoint.agent["model"].items()
    model = {name: x.bfloat16() if x.is_floating_point() else x for name, x in weights}
    config = {**checkpoint.config, "logger": "none"}
    return replace(checkpoint.agent_alone(), config=config, agent={"model": model})


def main(argv: Sequence[str] | None = None) -> Path:
    """Read, write, print the file's name and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    checkpoint = weights_of(load_checkpoint(args.checkpoint))
    path = checkpoint_path(args.folder, checkpoint.counters.env_steps)
    with alone_in(args.folder, "wait for it, or name another folder"):
        save_checkpoint(path, checkpoint)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
    return path


if __name__ == "__main__":
    main()
