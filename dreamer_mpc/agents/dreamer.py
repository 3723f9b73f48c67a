"""Dreamer: owns the networks and their optimizers; observes, acts, updates."""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from dreamer_mpc.agents.behavior import Behavior, BehaviorConfig, Learned
from dreamer_mpc.agents.cut import Cut
from dreamer_mpc.agents.dynamics import DynamicsBehavior
from dreamer_mpc.agents.latents import make_latents
from dreamer_mpc.agents.optimizers import OptimizerConfig, make_optimizers
from dreamer_mpc.agents.protocol import Act, AgentKind, Carry, SkippedUpdates, Update
from dreamer_mpc.agents.reinforce import ReinforceBehavior
from dreamer_mpc.kernels.cell import has_triton
from dreamer_mpc.kernels.choice import Forms, choose_forms
from dreamer_mpc.kernels.graphs import Aside, Captured
from dreamer_mpc.planners import Planner, Policy
from dreamer_mpc.planners.protocol import fitting
from dreamer_mpc.world_model import Batch, ImageForm, WorldModelConfig, WorldModelKind, make_world_model

PLAIN_CONVOLUTIONS = "convolutions run as plain layers, slower: their fast forms are for one color image of 64x64"
THREADED_ROWS = 512  # a plan on a CPU gains from several threads if it steps at least so many latent states at once


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Use one thread on a CPU. A small plan is hundreds of tiny operations; waking threads costs more than it saves.

    Where the cores are shared it costs far more: every operation waits for a thread that is not running.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SkippedUpdateCounter:
    """Counts skipped updates and keeps the frames of the first, on the device; only reading them synchronises."""

    def __init__(self, device: torch.device):
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._caught = torch.zeros((), dtype=torch.bool, device=device)
        self._index: Tensor | None = None

    def note(self, skipped: Bool[Tensor, ""], index: Int64[Tensor, "T B"]) -> None:
        """One more update, in place, so that a CUDA graph can hold it."""
        if self._index is None or self._index.shape != index.shape:
            self._index = torch.zeros_like(index)
        self.in_a_row.copy_(torch.where(skipped, self.in_a_row + 1, 0))
        self._index.copy_(torch.where(skipped & ~self._caught, index, self._index))
        self._caught.logical_or_(skipped)

    def read(self) -> SkippedUpdates:
        """The count and the frames, which are then reset. Waits for the device."""
        in_a_row, caught = torch.stack([self.in_a_row, self._caught.long()]).tolist()
        index = self._index.clone() if caught else None
        self._caught.zero_()
        return SkippedUpdates(in_a_row, index)


class Dreamer:
    """The agent: the paper's (Dreamer, Hafner et al. 2020; its Table 18) or DreamerV3, by the kinds of its settings.

    Everything is on one device. Without `behavior` it is PlaNet (Hafner et al. 2019): it has neither actor nor critic
    and learns the world model alone. With `capture`, acting and updating are replayed as CUDA graphs of the same
    functions that run eagerly otherwise. With `kernels`, the recurrent model runs over whole sequences in
    `kernels/cell.py` or `kernels/block_scan.py`, and the paper's convolutions in the layouts of `kernels/blocks.py`;
    without, they are plain modules under autograd.
    """

    def __init__(
        self,
        action_dim: int,
        world_model: WorldModelConfig = WorldModelConfig(),
        behavior: BehaviorConfig | None = BehaviorConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        device: torch.device | str = "cpu",
        capture: bool = True,
        bf16: bool = True,
        kernels: bool = True,
        images: ImageForm = ImageForm(),
    ):
        self.behavior, self.optimizer = behavior, optimizer
        self.kind: AgentKind = "planet" if behavior is None else "dreamer"
        self.device = torch.device(device)
        self.forms = self._choose_forms(action_dim, world_model, kernels, bf16, capture)
        self.bf16, self.kernels = self.forms.bf16, self.forms.kernels
        world = make_world_model(world_model, action_dim, kernels, self.bf16, images)
        self.world_model_kind: WorldModelKind = world.kind
        self.state_dim = world.state_dim
        self.model = make_latents(behavior, world, action_dim, kernels)
        self.model.to(self.device)
        self.learner = None if behavior is None else self._make_learner(behavior)
        parts = {"world_model": world}
        if behavior is not None:
            parts |= {"actor": self.model.actor, "critic": self.model.critic}
        self.optimizers = make_optimizers(optimizer, parts, self.device)
        self._skipped = SkippedUpdateCounter(self.device)
        self.capture = self.forms.graphs
        self.update = Captured(self._update) if self.capture else self._update
        self._acts: dict[tuple[Planner | int, float], Any] = {}

    def _choose_forms(
        self, action_dim: int, world_model: WorldModelConfig, kernels: bool, bf16: bool, capture: bool
    ) -> Forms:
        """Kernels are those of the Gaussian world model, and of the paper's actor where there is one."""
        sizes = {name: getattr(world_model, name) for name in ("deter", "stoch", "hidden")}
        paper_s = self.behavior is not None and self.behavior.kind == "dreamer"
        units = self.behavior.actor_hidden if paper_s else 0
        kernels = kernels and world_model.kind == "gaussian"
        return choose_forms(self.device, kernels, bf16, capture, has_triton(), action=action_dim, units=units, **sizes)

    def _make_learner(self, behavior: BehaviorConfig) -> Behavior:
        if behavior.kind == "v3":
            return ReinforceBehavior(behavior, self.model, self._amp, self.bf16)
        amp = partial(self._amp, self.kernels or self.world_model_kind != "gaussian")  # its plain form is the reference
        return DynamicsBehavior(behavior, self.model, amp, bf16=self.bf16 and self.kernels)

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons why a fast form cannot be used, one line each; empty if all can."""
        plain = self.device.type == "cuda" and self.kernels and self.model.world_model.images != ImageForm()
        return (*self.forms.reasons, PLAIN_CONVOLUTIONS) if plain else self.forms.reasons

    def initial(self, batch: int) -> Carry:
        """The carry before the first step."""
        state = self.model.world_model.initial(batch).detach()
        return Carry(state, state.new_zeros(batch, self.model.action_dim), None)

    def act(
        self,
        planner: Planner,
        carry: Carry,
        image: UInt8[Tensor, "B H W C"],
        is_first: Bool[Tensor, " B"],
        action_noise: float = 0.0,
    ) -> Act:
        """Observe an image and plan.

        `action_noise` is the standard deviation of Gaussian exploration noise on the executed action; with
        `exploration: policy` that of the policy takes its place, unless it is 0; samples of the policy stay as they
        are. Where `is_first`, an episode starts and the carry of the last one is dropped.
        """
        key = (_known_by(planner), action_noise)
        if key not in self._acts:
            function = partial(self._act, planner, action_noise)
            self._acts[key] = Captured(function) if self.capture else function
        candidates = getattr(planner, "candidates", 1)
        rows = len(image) * (candidates if isinstance(candidates, int) else 1)
        with one_thread(self.device) if rows < THREADED_ROWS else contextlib.nullcontext():
            return self._acts[key](carry, image, is_first)

    @torch.no_grad()
    def _act(
        self,
        planner: Planner,
        action_noise: float,
        carry: Carry,
        image: UInt8[Tensor, "B H W C"],
        is_first: Bool[Tensor, " B"],
    ) -> Act:
        carry = carry.reset(is_first)
        state = self.model.world_model.observe_step(carry.state, carry.action, image, is_first, self._amp())
        plan = fitting(planner, planner.plan(self.model, state, carry.memory), state, self.model.action_dim)
        action = self._explore(planner, state, plan.action, action_noise) if action_noise > 0 else plan.action
        return Act(action, Carry(state, action, plan.memory), plan.model_evaluations, plan.value)

    def _explore(
        self, planner: Planner, state: Float[Tensor, "B S"], action: Float[Tensor, "B A"], action_noise: float
    ) -> Float[Tensor, "B A"]:
        if self.behavior is not None and self.behavior.exploration == "policy":
            return action if planner == Policy(sample=True) else self.model.policy(state).around(action)
        return (action + action_noise * torch.randn_like(action)).clamp(-1, 1)

    def _update(self, batch: Batch) -> Update:
        """One gradient step on world model and, with behavior, actor and critic; metrics stay on the device.

        A step in which any loss or gradient is not finite changes no parameter and counts as `skipped`: see
        `skipped_updates`.
        """
        world = self.model.world_model
        aside = Aside(self.device, "beside" if self.learner is None else self.learner.lane)
        early = Aside(self.device, "later")
        if self.learner is not None:
            with early:
                prepared = self.learner.prepare(batch)
        inference = world.infer(batch, self._amp())
        cut, modelled = Cut(inference, world), Aside(self.device, "loss")
        with modelled:
            model_loss, metrics = world.loss(batch, cut.copy, self._amp())
            metrics["model_loss"] = model_loss.detach()
            cut.back(model_loss)
        learned, norms = Learned({}, {}), {}
        aside.follow()
        if self.learner is not None:
            with aside:  # it needs only the posterior states, not the world model's gradients
                early.join()
                learned = self.learner.learn(inference.states, batch, prepared)
                norms = self._take(learned.gradients)
        modelled.join()
        if learned.states_gradient is not None:
            (learned.ready or aside).join()
        world_grads = cut.through(inference.states, learned.states_gradient)
        norms = self._take({"world_model": world_grads}) | norms
        aside.join()
        metrics |= learned.metrics
        losses = torch.stack([value for name, value in metrics.items() if name.endswith("_loss")])
        metrics |= norms | self._descend(losses, norms, batch.index, aside)
        return Update(metrics, inference.states.detach())

    def _take(self, gradients: dict[str, tuple[Tensor, ...]]) -> dict[str, Float[Tensor, ""]]:
        """Give the gradients of parts to their parameters, clipped; their norms before."""
        norms = {}
        for name, grads in gradients.items():
            for parameter, grad in zip(self._parameters(name), grads, strict=True):
                parameter.grad = grad.contiguous()  # fused Adam wants the parameter's strides
            norms[f"{name}_grad_norm"] = self._clip(name)
        return norms

    def _descend(
        self,
        losses: Float[Tensor, " L"],
        norms: dict[str, Float[Tensor, ""]],
        index: Int64[Tensor, "T B"],
        aside: Aside,
    ) -> dict[str, Float[Tensor, ""]]:
        """Apply gradients; all steps are skipped together where a loss or gradient is not finite. No sync.

        Actor and critic make theirs in `aside`, beside the world model.
        """
        skipped = ~torch.cat([losses, torch.stack(list(norms.values()))]).isfinite().all()
        flag = skipped.float()  # fused Adam leaves parameters and moments alone where this is 1
        aside.follow()
        for name, optimizer in self.optimizers.items():
            with contextlib.nullcontext() if name == "world_model" else aside:
                optimizer.found_inf = flag
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if self.learner is not None:
            with aside:
                self.learner.commit(skipped)
        self._skipped.note(skipped, index)
        aside.join()
        return {"skipped": flag}

    def _clip(self, name: str) -> Float[Tensor, ""]:
        """Clip the gradient of a part, unless its optimizer clips by itself; its norm before."""
        if self.optimizer.kind == "adam":
            return nn.utils.clip_grad_norm_(self._parameters(name), self.optimizer.grad_clip)
        return self.optimizers[name].grad_norm()

    def _parameters(self, name: str) -> Iterable[nn.Parameter]:
        return self.optimizers[name].param_groups[0]["params"]

    def _amp(self, wanted: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16 and wanted)

    def skipped_updates(self) -> SkippedUpdates:
        """Updates that were skipped since the last call; waits for the device."""
        return self._skipped.read()

    def state_dict(self) -> dict[str, Any]:
        """State of the networks, the optimizers and the count of skipped updates."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        skipped = self._skipped.in_a_row.clone()
        behavior = {} if self.learner is None else self.learner.state_dict()
        state = {"model": self.model.state_dict(), "optimizers": optimizers, "skipped_in_a_row": skipped}
        return state | ({"behavior": behavior} if behavior else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; without optimizers (a checkpoint for acting only) they keep their initial state."""
        self.model.load_state_dict(state["model"])
        if self.learner is not None:
            behavior = state.get("behavior", {})
            if not isinstance(behavior, dict):
                raise TypeError(f"the state of the behavior is {type(behavior).__name__}, not a dict")
            self.learner.load_state_dict(behavior)
        self._skipped.in_a_row.copy_(state.get("skipped_in_a_row", torch.tensor(0)))
        for name, optimizer in state.get("optimizers", {}).items():
            own = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizers[name].param_groups]
            self.optimizers[name].load_state_dict(copy.deepcopy(optimizer))
            for group, settings in zip(self.optimizers[name].param_groups, own, strict=True):
                group.update(settings)  # keep this agent's learning rates and device, not the saved ones


def _known_by(planner: Planner) -> Planner | int:
    """What its captured step is found by: equal planners share one; a planner without a hash is known by identity.

    The step holds the planner, so that no other one can get its identity.
    """
    try:
        hash(planner)
    except TypeError:
        return id(planner)
    return planner
