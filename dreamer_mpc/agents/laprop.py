"""LaProp with adaptive gradient clipping, the optimizer of DreamerV3."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamer_mpc.util.checks import check_range

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import laprop_triton as kernels
except ImportError:
    kernels = None


class LaProp(torch.optim.Optimizer):
    """LaProp (Ziyin et al. 2020): gradients are divided by their root mean square first and averaged then.

    Update t = 1, 2, ... of a tensor p with gradient g, all constants as in DreamerV3:

        u = g / max(1, |g| / (clip max(clip_floor, |p|)))     adaptive clipping by norms of whole tensors, of all
        v = beta2 v + (1 - beta2) u^2
        m = beta1 m + (1 - beta1) u / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr min(1, (t - 1) / warmup) m / (1 - beta1^t)

    so the first update of a warm-up moves nothing; there is no weight decay. If the attribute `found_inf` is set, a
    tensor, a step where it is 1 changes neither parameters nor state, whatever the gradients hold. A step never waits
    for the device and can be captured in a CUDA graph. The tensors of a group share device, dtype and count of steps:
    all need a gradient in every step. On a GPU, kernels make the step of all of a group's tensors at once.
    """

    found_inf: Float[Tensor, ""] | None = None
    _measured: Any = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
        clip_floor: float = 1e-3,
        warmup: int = 1000,
    ):
        for name, value in dict(lr=lr, eps=eps, clip=clip, clip_floor=clip_floor, warmup=warmup).items():
            check_range(name, value, 0, None)
        settings = dict(lr=lr, betas=betas, eps=eps, clip=clip, clip_floor=clip_floor, warmup=warmup)
        # `capturable` makes load_state_dict put the count of steps on the parameters' device.
        super().__init__(params, settings | {"capturable": True})

    @torch.no_grad()
    def grad_norm(self) -> Float[Tensor, ""]:
        """The norm of all gradients, before any clipping.

        The next step may use norms of single tensors from here, so the gradients must stay as they are until then.
        """
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self._measured = [self._measure(group) for group in self.param_groups]
        if any(measured is None for measured in self._measured):
            return nn.utils.get_total_norm(grads)
        return torch.linalg.vector_norm(torch.cat([measured.norms for measured in self._measured]))

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameters' gradients, which stay as they are."""
        before, self._measured = self._measured or [None] * len(self.param_groups), None
        for group, measured in zip(self.param_groups, before, strict=True):
            measured = self._measure(group, measured)
            if measured is None:
                self._step_group(group)
                continue
            skipped = _flag(self.found_inf, measured.norms)
            settings = {name: group[name] for name in ("lr", "warmup", "betas", "eps")}
            self._fused(group["params"]).step(measured, skipped, **settings)

    def _measure(self, group: dict[str, Any], before: Any = None) -> Any:
        """Norms of a group's gradients, or those of `before` if it has them; None where the kernels do not fit."""
        params = group["params"]
        states = self._states(params)
        grads = [p.grad for p in params]
        if not fuses([*params, *grads, *itertools.chain(*states)]):
            return None
        if before is not None and before.addresses == tuple(g.data_ptr() for g in grads):
            return before
        return self._fused(params).measure(grads, group["clip"], group["clip_floor"])

    def _fused(self, params: Sequence[Tensor]) -> Any:
        """The kernels of tensors. They stay, as a CUDA graph may hold them."""
        steps, averages, squares = self._states(params)
        tensors = [*params, *averages, *squares, *steps]
        groups = self.__dict__.setdefault("_groups", {})  # a copy of an optimizer has none
        key = tuple((x.data_ptr(), x.numel()) for x in tensors)
        if key not in groups:
            groups[key] = kernels.Group(params, averages, squares, steps)
        return groups[key]

    def _step_group(self, group: dict[str, Any]) -> None:
        params = group["params"]
        steps, averages, squares = self._states(params)
        skipped = _flag(self.found_inf, steps[0])
        one = 1 - skipped.to(steps[0].dtype)
        torch._foreach_add_(steps, [one] * len(steps))  # adding a tensor to a list would wait for its value
        count = steps[0].to(params[0].dtype).clamp(min=1)  # 0 if the very first step is skipped

        beta1, beta2 = group["betas"]
        correction = _bias_correction(beta2, count).sqrt()
        rate = _learning_rate(group["lr"], group["warmup"], count) / _bias_correction(beta1, count)
        grads, clipping = [p.grad for p in params], (group["clip"], group["clip_floor"])
        updates = clip_by_norm(params, _zero_if(skipped, grads), *clipping)
        torch._foreach_mul_(squares, count.new_full((), beta2).masked_fill(skipped, 1))
        torch._foreach_addcmul_(squares, updates, updates, value=1 - beta2)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_div_(sizes, correction)
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_mul_(averages, count.new_full((), beta1).masked_fill(skipped, 1))
        torch._foreach_addcdiv_(averages, updates, sizes, value=1 - beta1)
        torch._foreach_sub_(params, torch._foreach_mul(averages, rate.masked_fill(skipped, 0)))

    def _states(self, params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Count of steps, m and v of each tensor."""
        if any(p.grad is None for p in params):
            raise ValueError("LaProp needs a gradient of every parameter in every step")
        for p in params:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] = dict(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        names = ("step", "exp_avg", "exp_avg_sq")
        return tuple([self.state[p][name] for p in params] for name in names)


def clip_by_norm(params: Sequence[Tensor], grads: Sequence[Tensor], clip: float, floor: float) -> list[Tensor]:
    """Gradients, each scaled so that its norm is at most `clip` times the larger of `floor` and its parameter's norm.

    Adaptive gradient clipping (Brock et al. 2021), by the norms of whole tensors.
    """
    return list(torch._foreach_mul(grads, clip_factors(params, grads, clip, floor).unbind()))


def clip_factors(params: Sequence[Tensor], grads: Sequence[Tensor], clip: float, floor: float) -> Float[Tensor, " N"]:
    """What `clip_by_norm` multiplies each gradient by, at most 1."""
    limits = clip * torch.stack(torch._foreach_norm(params)).clamp(min=floor)
    excess = torch.stack(torch._foreach_norm(grads)) / limits
    return excess.clamp(min=1).reciprocal()


def fuses(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels can make the step of tensors."""
    return kernels is not None and all(
        x.is_cuda and x.dtype == torch.float32 and x.is_contiguous() and x.numel() > 0 for x in tensors
    )


def _learning_rate(lr: float, warmup: int, count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The learning rate of update `count` = 1, 2, ...; it rises from 0 for `warmup` updates."""
    return lr * ((count - 1) / warmup).clamp(max=1) if warmup else torch.full_like(count, lr)


def _bias_correction(beta: float, count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1 - beta^count, in a form that keeps its precision where it is small."""
    return -torch.expm1(count * math.log(beta))


def _zero_if(skipped: Tensor, grads: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, or zeros if `skipped`, also in place of NaN: their bits are multiplied by 1 or by 0.

    One kernel does that for all of them; `masked_fill` would launch one for each.
    """
    bits = torch.int64 if grads[0].dtype == torch.float64 else torch.int32
    products = torch._foreach_mul([grad.view(bits) for grad in grads], (~skipped).to(bits))
    return [product.view(grad.dtype) for product, grad in zip(products, grads, strict=True)]


def _flag(found_inf: Tensor | None, like: Tensor) -> Tensor:
    """`found_inf` as a boolean tensor [] on the device of `like`."""
    if found_inf is None:
        return torch.zeros((), dtype=torch.bool, device=like.device)
    return found_inf.reshape(()).bool()
