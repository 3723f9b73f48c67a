"""Bias, activation and rearrangement after a product, in one pass over memory on a GPU; the same in torch elsewhere."""

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import fused_triton as kernels
except ImportError:
    kernels = None

Activation = Literal["none", "relu", "elu"]
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu_, "elu": F.elu_}


class Layout(NamedTuple):
    """Layout of the output pixels [M, H, W, C]: unchanged, in blocks of side x side, or out of such blocks, cropped."""

    kind: Literal["same", "to_blocks", "from_blocks"] = "same"
    height: int = 1
    width: int = 1
    side: int = 1
    crop: int = 1

    def shape(self, channels: int) -> tuple[int, int, int]:
        """Shape of an image in this layout, for `channels` of the product."""
        if self.kind == "to_blocks":
            return self.height // self.side, self.width // self.side, channels * self.side**2
        if self.kind == "from_blocks":
            return self.crop, self.crop, channels // self.side**2
        return self.height, self.width, channels

    def apply(self, x: Tensor) -> Tensor:
        """[M, H, W, C] in this layout."""
        if self.kind == "to_blocks":
            return to_blocks(x, self.side)
        if self.kind == "from_blocks":
            return from_blocks(x, self.side)[:, : self.crop, : self.crop]
        return x

    def geometry(self) -> tuple[int, int, int, int, int]:
        """For the kernels."""
        kinds = {"same": kernels.SAME, "to_blocks": kernels.TO_BLOCKS, "from_blocks": kernels.FROM_BLOCKS}
        return kinds[self.kind], self.height, self.width, self.side, self.crop


SAME = Layout()


def to_blocks(x: Float[Tensor, "M h w C"], side: int = 2) -> Float[Tensor, "M hs ws Css"]:
    """Pixels of a block side by side: channels (row in block, column in block, C)."""
    return rearrange(x, "m (h p) (w q) c -> m h w (p q c)", p=side, q=side)


def from_blocks(x: Float[Tensor, "M hs ws Css"], side: int = 2) -> Float[Tensor, "M h w C"]:
    """The pixels of blocks."""
    return rearrange(x, "m h w (p q c) -> m (h p) (w q) c", p=side, q=side)


def bias_act(
    y: Float[Tensor, "K R C"], bias: Float[Tensor, "K C"], act: Activation, layout: Layout = SAME
) -> Float[Tensor, "..."]:
    """The activation of a fresh product plus its bias, K of them: [K, R, C], or with a layout [M, *layout.shape].

    `y` is overwritten: nothing else may read it. It is contiguous, or has the members of a row beside each other (a
    product [R, K * C]); the result is contiguous.
    """
    if on_gpu(y):
        return _BiasActKernel.apply(y, bias, act, layout)
    x = _BiasAct.apply(y, bias, act)
    return x if layout is SAME else layout.apply(x.view(-1, layout.height, layout.width, x.shape[-1]))


def bias_act_dot(
    y: Float[Tensor, "K R C"],
    bias: Float[Tensor, "K C"],
    act: Activation,
    weight: Float[Tensor, "K C"],
    offset: Float[Tensor, " K"],
) -> Float[Tensor, "K R"]:
    """`bias_act` and a layer of one output on it, in the weights' precision: a head's last two layers."""
    if on_gpu(y):
        return _BiasActDotKernel.apply(y, bias, act, weight, offset)
    x = bias_act(y, bias, act).to(weight.dtype)
    return (x @ weight[..., None])[..., 0] + offset[:, None]


class ImageLayer(torch.autograd.Function):
    """A convolution's product and ReLU on images, for a GPU, without the patches in memory; no gradient of images.

    apply(images [M, H, H, I], weight [C, 64] of each output's 4 rows of 4 I numbers, filled up to 16, bias [C])
    -> blocks of 2x2 outputs [M, h, h, 4 C], in the precision of the weight. I is at most 4.
    """

    @staticmethod
    def forward(ctx, image, weight, bias):
        ctx.dtypes = weight.dtype, bias.dtype
        out = kernels.image_layer(image, weight.detach().contiguous(), bias.detach())
        ctx.save_for_backward(out, image)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        grads = kernels.image_layer_backward(g.contiguous(), *ctx.saved_tensors)
        return None, *(grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True))


def on_gpu(x: Tensor) -> bool:
    """Whether the kernels can run on the device of `x`."""
    return kernels is not None and x.is_cuda


class _BiasActKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, bias, act, layout):
        ctx.shape, ctx.beside, ctx.layout = tuple(y.shape), not y.is_contiguous(), layout
        ctx.act = _number(act)
        y = y.detach()  # not marked as changed in place: for a view, autograd would make an extra copy of its gradient
        if layout.kind == "same":
            out = y.new_empty(y.shape) if ctx.beside else y
        else:
            out = y.new_empty(_images(y, layout), *layout.shape(y.shape[-1]))
        kernels.bias_act(y, bias.detach().contiguous(), out, ctx.act, layout.geometry())
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (out,) = ctx.saved_tensors
        settings = (ctx.shape, ctx.beside, ctx.act, ctx.layout.geometry())
        dy, db = kernels.bias_act_backward(g.contiguous(), out, *settings)
        return dy.view(ctx.shape), db, None, None


class _BiasActDotKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, bias, act, weight, offset):
        ctx.beside, ctx.act = not y.is_contiguous(), _number(act)
        weight = weight.detach().contiguous()
        out, value = kernels.bias_act_dot(y.detach(), bias.detach().contiguous(), weight, offset.detach(), ctx.act)
        ctx.save_for_backward(out, weight)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        out, weight = ctx.saved_tensors
        dy, db, dw = kernels.bias_act_dot_backward(g.contiguous(), weight, out, ctx.beside, ctx.act)
        return dy, db, None, dw, g.sum(1)


def _number(act: Activation) -> int:
    return {"none": kernels.NONE, "relu": kernels.RELU, "elu": kernels.ELU}[act]


def _images(y: Tensor, layout: Layout) -> int:
    return y.shape[0] * y.shape[1] // (layout.height * layout.width)


class _BiasAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, bias, act):
        ctx.act = act
        out = ACTIVATIONS[act](y.detach().add_(bias[:, None]))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (out,) = ctx.saved_tensors
        if ctx.act == "relu":
            g = torch.ops.aten.threshold_backward(g, out, 0)
        elif ctx.act == "elu":
            g = torch.ops.aten.elu_backward(g, 1.0, 1, 1, True, out)
        return g, g.sum(1), None
