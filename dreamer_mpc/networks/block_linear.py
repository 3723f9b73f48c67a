"""Linear layers whose weight matrix is block-diagonal."""

from jaxtyping import Float
from torch import Tensor, nn

from dreamer_mpc.networks.mlp import EnsembleLinear
from dreamer_mpc.networks.norm_mlp import init_weight


class BlockLinear(EnsembleLinear):
    """A block-diagonal linear layer in one batched product: [*, blocks, inputs] -> [*, blocks, outputs].

    Each block has a weight matrix [inputs, outputs] and a bias of its own. Weights are initialised as in DreamerV3, by
    the fan-in of the whole layer, blocks * inputs, although an output sees `inputs` numbers; biases are 0.
    """

    def __init__(self, blocks: int, inputs: int, outputs: int):
        super().__init__(blocks, inputs, outputs)
        init_weight(self.weight, blocks * inputs)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*b G I"]) -> Float[Tensor, "*b G O"]:
        rows = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)  # [G, M, I]
        y = super().forward(rows).transpose(0, 1)
        return y.reshape(*x.shape[:-1], y.shape[-1])
