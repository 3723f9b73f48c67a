"""The agent's latent states of the frames in replay."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dreamer_mpc.util.device import to_device


class StoredStates:
    """A latent state [S] for each slot of a replay, so that a sequence can start from the state before it (DreamerV3).

    Kept in bf16 on the replay's device: one-hot parts are exact, the others rounded to 8 bits of precision. A slot
    whose frame has no state yet is unknown, and gives zeros.
    """

    def __init__(self, capacity: int, size: int, device: torch.device | str = "cpu"):
        self.state = torch.zeros(capacity, size, dtype=torch.bfloat16, device=device)
        self.known = torch.zeros(capacity, dtype=torch.bool, device=device)

    def forget(self, slots: Int64[Tensor, " N"]) -> None:
        """The slots have new frames."""
        self.known[slots] = False

    def store(self, slots: Int64[Tensor, "*n B"], states: Float[Tensor, "*n B S"]) -> None:
        """Store states of frames. Of a frame that is in several columns, the last column's state stays."""
        states = to_device(states.detach().to(self.state.dtype), self.state.device)
        slots, states = slots.movedim(-1, 0).flatten(), states.movedim(-2, 0).flatten(0, -2)  # column after column
        # On a GPU, which of several writes to one slot comes last is not known: so all of them write the last state.
        order = torch.arange(len(slots), device=slots.device)
        last = slots.new_zeros(len(self.state)).scatter_reduce_(0, slots, order, "amax")
        self.state[slots] = states[last[slots]]
        self.known[slots] = True

    def look_up(self, slots: Int64[Tensor, " B"], exists: Bool[Tensor, " B"]) -> Float[Tensor, "B S"]:
        """States in fp32; zeros where they are unknown or do not exist.

        Also where one is not finite, of an update that was skipped: it would make that of every update from it.
        """
        states = self.state[slots].float()
        valid = exists & self.known[slots] & states.isfinite().all(-1)
        return torch.where(valid[:, None], states, 0.0)


def state_bytes(size: int) -> int:
    """Bytes of the stored state of one frame; 0 where none is stored."""
    return 2 * size + 1 if size else 0
