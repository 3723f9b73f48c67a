"""The ensemble of value heads."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dreamer_mpc.networks.mlp import EnsembleLinear, full_precision, fuses

MASK_ROWS = 65_536


class Bootstrapped(nn.Module):
    """K heads that each learn from some of the frames: head k sees a frame of replay with probability `bootstrap`.

    That is drawn once for the frame's place in replay, with a period of 65,536 places (paper, Eq. 5 and 6 need heads
    that disagree where data is thin).
    """

    masks: Bool[Tensor, "M K"]

    def draw_masks(self, heads: int, bootstrap: float) -> None:
        """Draw which head learns from which place."""
        self.register_buffer("masks", torch.rand(MASK_ROWS, heads) < bootstrap)

    def mask(self, index: Int64[Tensor, "*b"]) -> Bool[Tensor, "K *b"]:
        """Which heads learn from the frames at `index` of replay; the same at every call."""
        return self.masks[index % len(self.masks)].movedim(-1, 0)


class Critic(Bootstrapped):
    """K value heads in one batched call: [*, S] -> [K, *]; each is trained on lambda-returns that begin with reward.

    The heads differ by initialisation and by the frames they learn from.
    """

    def __init__(self, state: int, heads: int = 5, layers: int = 3, hidden: int = 200, bootstrap: float = 0.8):
        super().__init__()
        sizes = [state] + [hidden] * layers + [1]
        self.layers = nn.ModuleList(EnsembleLinear(heads, i, o) for i, o in pairwise(sizes))
        self.draw_masks(heads, bootstrap)

    def forward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "K *b"]:
        first, *middle, last = self.layers
        x = first.shared(state.reshape(-1, state.shape[-1]))  # [K, M, hidden]
        for layer in middle:
            if layer is middle[-1] and fuses(x):
                return layer.hidden_dot(x, last).view(-1, *state.shape[:-1])
            x = layer.hidden(x)
        with full_precision(x):
            return last(x.to(last.weight.dtype)).view(-1, *state.shape[:-1])
