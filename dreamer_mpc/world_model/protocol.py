"""The interface of a world model for agents, independent of its latent state."""

from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

WorldModelKind = Literal["gaussian", "categorical"]


class ImageForm(NamedTuple):
    """The form of images: height and width, channels of a frame (1: gray), and frames side by side, the newest last."""

    size: int = 64
    channels: int = 3
    frames: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C."""
        return self.size, self.size, self.channels * self.frames


class Batch(NamedTuple):
    """Sequences from replay. action[t] led into image[t]; reward[t] was paid on arriving there.

    is_terminal[t]: the environment terminated the episode there, so that nothing follows. It is false where an episode
    was truncated or continues.
    """

    image: UInt8[Tensor, "T B H W C"]
    action: Float[Tensor, "T B A"]
    reward: Float[Tensor, "T B"]
    is_first: Bool[Tensor, "T B"]
    is_terminal: Bool[Tensor, "T B"]
    index: Int64[Tensor, "T B"]  # the frame's place in replay, which identifies it for the bootstrap masks
    state: Float[Tensor, "B S"] | None = None  # the latent state before image[0], where the replay keeps states


@runtime_checkable
class WorldModelProtocol(Protocol):
    """Maps images and actions to latent states [*, S], and predicts from them.

    `kind` is the name in a checkpoint. `infer` gives the states of a batch, from which imagination starts; `loss` takes
    what `infer` returned and gives the scalar to minimise and the mean of each of its terms by name. Where
    `continuation` is False, every episode is taken to go on: `continues` is 1 and imagination does not ask for it.
    """

    kind: ClassVar[WorldModelKind]
    images: ImageForm  # of the images that it sees and decodes
    state_dim: int  # S
    noise_dim: int  # Z, size of the noise of one step
    continuation: bool  # whether it predicts where episodes end

    def initial(self, batch: int) -> Float[Tensor, "B S"]:
        """The state before an episode's first image."""

    def observe_step(
        self,
        state: Float[Tensor, "B S"],
        action: Float[Tensor, "B A"],
        image: UInt8[Tensor, "B H W C"],
        is_first: Bool[Tensor, " B"],
        amp: torch.autocast,
        noise: Float[Tensor, "B Z"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """The posterior after `action` led from `state` to `image`; where `is_first`, both are ignored.

        `noise` is standard normal, drawn here if None; zeros give the most likely state.
        """

    def step(
        self, state: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"], noise: Float[Tensor, "*b Z"] | None = None
    ) -> Float[Tensor, "*b S"]:
        """One step without an image."""

    def noise(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b Z"]:
        """Standard normal draws for `step`."""

    def reward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Mean of the reward received on arriving in `state`."""

    def continues(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Probability that the episode goes on after `state`."""

    def decode(self, state: Float[Tensor, "*b S"]) -> UInt8[Tensor, "*b H W C"]:
        """Mean images of latent states."""

    def infer(self, batch: Batch, amp: torch.autocast) -> Any:
        """The inference on a batch that begins after `batch.state`, by default after the initial state.

        A named tuple of tensors (or of tuples of them) with all that the loss needs of it; `.states` [T, B, S] are
        posterior samples.
        """

    def loss(
        self, batch: Batch, inference: Any, amp: torch.autocast
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss and its terms."""
