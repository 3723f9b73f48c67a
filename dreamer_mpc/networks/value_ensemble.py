"""The ensemble of value heads of DreamerV3."""

from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from dreamer_mpc.networks.critic import Bootstrapped
from dreamer_mpc.networks.norm_mlp import NormEnsemble
from dreamer_mpc.networks.two_hot import Readout, TwoHot, symexp_bins


class TwoHotCritic(Bootstrapped):
    """K value heads in one batched call, each a distribution over bins: [*, S] -> [K, *].

    All predict 0 at first; they differ by the initialisation of their hidden layers and by the frames they learn from.
    """

    bins: Float[Tensor, " N"]

    def __init__(
        self,
        state: int,
        heads: int = 5,
        layers: int = 3,
        hidden: int = 256,
        bootstrap: float = 0.8,
        bins: int = 255,
        readout: Readout = "real",
    ):
        super().__init__()
        self.layers = NormEnsemble(state, hidden, layers, bins, heads, scale=0.0, filled=True)
        self.readout: Readout = readout
        self.register_buffer("bins", symexp_bins(bins), persistent=False)
        self.draw_masks(heads, bootstrap)

    def forward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "K *b"]:
        """The values."""
        return self.predict(state).mean

    def predict(self, state: Float[Tensor, "*b S"], constant: bool = False) -> TwoHot:
        """The distributions; their logits are [K, *, N], on a GPU perhaps with more numbers in a row.

        With `constant` weights, gradients go back to `state` alone, without those of the weights on their way.
        """
        if constant:
            weights = {name: weight.detach() for name, weight in self.layers.named_parameters()}
            return TwoHot(functional_call(self.layers, weights, (state,)), self.bins, self.readout)
        return TwoHot(self.layers(state), self.bins, self.readout)
