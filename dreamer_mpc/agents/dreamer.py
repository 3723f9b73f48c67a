"""Dreamer: owns the networks and their optimizers; observes, acts, updates."""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from dreamer_mpc.agents.behavior import BehaviorConfig, make_behavior
from dreamer_mpc.agents.imagination import actor_loss, arrival, critic_loss, own_returns
from dreamer_mpc.agents.latents import Latents, LatentWorld, UnrolledLatents, UnrolledWorld
from dreamer_mpc.agents.protocol import Act, AgentKind, Carry, SkippedUpdates, Update
from dreamer_mpc.kernels.cell import has_triton
from dreamer_mpc.kernels.choice import choose_forms
from dreamer_mpc.kernels.graphs import Aside, Captured
from dreamer_mpc.planners import Planner
from dreamer_mpc.planners.protocol import predicts_ends
from dreamer_mpc.planners.rollout import imagine
from dreamer_mpc.util.checks import check_ranges
from dreamer_mpc.util.returns import lambda_return
from dreamer_mpc.world_model import Batch, GaussianWorldModel, WorldModelConfig, WorldModelKind

THREADED_ROWS = 512  # a plan on a CPU gains from several threads if it steps at least so many latent states at once


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam for world model, actor and critic."""

    world_model_lr: float = 1e-3
    """Learning rate of the world model (paper: 1e-3)."""
    actor_lr: float = 8e-5
    """Learning rate of the actor (paper: 8e-5)."""
    critic_lr: float = 8e-5
    """Learning rate of the critic (paper: 8e-5)."""
    eps: float = 1e-7
    """Adam's epsilon (paper: 1e-7)."""
    grad_clip: float = 100.0
    """Largest gradient norm of world model, actor and critic, each clipped alone (paper: 100)."""

    def __post_init__(self):
        rates = ("world_model_lr", "actor_lr", "critic_lr", "eps", "grad_clip")
        check_ranges(self, **dict.fromkeys(rates, (0, None)))


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
    """The agent (Dreamer, Hafner et al. 2020; the paper's Table 18). Everything on one device.

    Without `behavior` it is PlaNet (Hafner et al. 2019): it has neither actor nor critic and learns the world model
    alone. With `capture`, acting and updating are replayed as CUDA graphs of the same functions that run eagerly
    otherwise. With `kernels`, the recurrent cell runs over whole sequences in `kernels/cell.py`, and the convolutions
    run in the layouts of `kernels/blocks.py`; without, both are plain modules under autograd.
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
    ):
        self.behavior, self.optimizer = behavior, optimizer
        self.kind: AgentKind = "planet" if behavior is None else "dreamer"
        self.device = torch.device(device)
        sizes = {name: getattr(world_model, name) for name in ("deter", "stoch", "hidden")}
        units = behavior.actor_hidden if behavior else 0
        self.forms = choose_forms(
            self.device, kernels, bf16, capture, has_triton(), action=action_dim, units=units, **sizes
        )
        self.bf16, self.kernels = self.forms.bf16, self.forms.kernels
        world = GaussianWorldModel(world_model, action_dim, kernels, self.bf16)
        self.world_model_kind: WorldModelKind = world.kind
        self.state_dim = world.state_dim
        learners = [("world_model", world, optimizer.world_model_lr)]
        if behavior is None:
            self.model = (UnrolledWorld if kernels else LatentWorld)(world, action_dim)
        else:
            actor, critic = make_behavior(behavior, world.state_dim, action_dim)
            self.model = (UnrolledLatents if kernels else Latents)(world, actor, critic, action_dim)
            learners += [("actor", actor, optimizer.actor_lr), ("critic", critic, optimizer.critic_lr)]
        self.model.to(self.device)
        self.optimizers = {
            name: torch.optim.Adam(
                part.parameters(), lr=rate, eps=optimizer.eps, fused=True, capturable=self.device.type == "cuda"
            )
            for name, part, rate in learners
        }
        self._skipped = SkippedUpdateCounter(self.device)
        self.capture = self.forms.graphs
        self.update = Captured(self._update) if self.capture else self._update
        self._acts: dict[tuple[Planner, float], Any] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons why a fast form cannot be used, one line each; empty if all can."""
        return self.forms.reasons

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

        `action_noise` is the standard deviation of Gaussian exploration noise on the executed action. Where `is_first`,
        an episode starts and the carry of the last one is dropped.
        """
        key = (planner, action_noise)
        if key not in self._acts:
            function = partial(self._act, planner, action_noise)
            self._acts[key] = Captured(function) if self.capture else function
        rows = len(image) * getattr(planner, "candidates", 1)
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
        plan = planner.plan(self.model, state, carry.memory)
        action = plan.action
        if action_noise > 0:
            action = (action + action_noise * torch.randn_like(action)).clamp(-1, 1)
        return Act(action, Carry(state, action, plan.memory), plan.model_evaluations, plan.value)

    def _update(self, batch: Batch) -> Update:
        """One gradient step on world model and, with behavior, actor and critic; metrics stay on the device.

        A step in which any loss or gradient is not finite changes no parameter and counts as `skipped`: see
        `skipped_updates`.
        """
        world, gradients, learned = self.model.world_model, {}, {}
        inference = world.infer(batch, self._amp())
        start = inference.states.detach().flatten(0, 1)
        aside = Aside(self.device)
        model_loss, metrics = world.loss(batch, inference, self._amp())
        metrics["model_loss"] = model_loss.detach()
        if self.behavior is not None:
            with aside:  # it needs only the posterior states, not the world model's gradients
                gradients, learned = self._behavior_gradients(
                    start, batch.index.flatten(), batch.is_terminal.flatten()
                )
        gradients = {"world_model": torch.autograd.grad(model_loss, list(world.parameters())), **gradients}
        aside.join()
        metrics |= learned
        losses = torch.stack([value for name, value in metrics.items() if name.endswith("_loss")])
        metrics |= self._descend(gradients, losses, batch.index)
        return Update(metrics, inference.states.detach())

    def _behavior_gradients(
        self, start: Float[Tensor, "M S"], index: Int64[Tensor, " M"], is_terminal: Bool[Tensor, " M"]
    ) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, Float[Tensor, ""]]]:
        """Gradients of actor and critic in imagination from `start`, frames `index` of replay; and metrics.

        Where the world model predicts continuation, returns stop where it expects an end, and each imagined state
        counts with the probability of reaching it: not at all from a frame that `is_terminal`.
        """
        model, behavior = self.model, self.behavior
        states = imagine(model, start, behavior.horizon)  # [H, M, S]
        seen = states.bfloat16() if self.bf16 and self.kernels else states  # once for all heads
        with self._amp(self.kernels):
            rewards, values = model.reward(seen), model.value(seen)  # [H, M], [K, H, M]
            continues = model.continues(seen[:-1]) if predicts_ends(model) else None  # [H-1, M]
        weight = None if continues is None else arrival(continues, is_terminal)  # [H-1, M]
        # Returns, like their weights: [H-1, M].
        returns = lambda_return(rewards[:-1], values.mean(0)[1:], behavior.discount, behavior.return_lambda, continues)
        policy_loss = actor_loss(returns, weight)
        targets = returns
        if behavior.head_targets == "own":  # [K, H-1, M]; their mean over heads is `returns`
            targets = own_returns(rewards[:-1], values[:, 1:], behavior.discount, behavior.return_lambda, continues)
        value_loss = critic_loss(values[:, :-1], targets, model.critic.mask(index), weight)
        actor_grads = torch.autograd.grad(policy_loss, list(model.actor.parameters()), retain_graph=True)
        # The value graph reaches back through the imagined states; asking for the critic's parameters stops there.
        critic_grads = torch.autograd.grad(value_loss, list(model.critic.parameters()))
        with torch.no_grad():
            metrics = {
                "actor_loss": policy_loss.detach(),
                "critic_loss": value_loss.detach() / len(values),
                "value_mean": values.mean(),
                "value_spread": values.std(0, correction=0).mean(),
                "imagined_reward": rewards.mean(),
                "actor_std": model.policy(states[-1]).std.mean(),
            }
            if continues is not None:
                metrics["imagined_continue"] = continues.mean()
        return {"actor": actor_grads, "critic": critic_grads}, metrics

    def _descend(
        self, gradients: dict[str, tuple[Tensor, ...]], losses: Float[Tensor, " L"], index: Int64[Tensor, "T B"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Clip and apply gradients; all steps are skipped together where a loss or gradient is not finite. No sync."""
        norms = {}
        for name, grads in gradients.items():
            for parameter, grad in zip(self._parameters(name), grads, strict=True):
                parameter.grad = grad.contiguous()  # fused Adam wants the parameter's strides
            norms[f"{name}_grad_norm"] = nn.utils.clip_grad_norm_(self._parameters(name), self.optimizer.grad_clip)
        skipped = ~torch.cat([losses, torch.stack(list(norms.values()))]).isfinite().all()
        self._skipped.note(skipped, index)
        for optimizer in self.optimizers.values():
            optimizer.found_inf = skipped.float()  # fused Adam leaves parameters and moments alone where this is 1
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norms | {"skipped": skipped.float()}

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
        return {"model": self.model.state_dict(), "optimizers": optimizers, "skipped_in_a_row": skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; without optimizers (a checkpoint for acting only) they keep their initial state."""
        self.model.load_state_dict(state["model"])
        self._skipped.in_a_row.copy_(state.get("skipped_in_a_row", torch.tensor(0)))
        for name, optimizer in state.get("optimizers", {}).items():
            own = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizers[name].param_groups]
            self.optimizers[name].load_state_dict(copy.deepcopy(optimizer))
            for group, settings in zip(self.optimizers[name].param_groups, own, strict=True):
                group.update(settings)  # keep this agent's learning rates and device, not the saved ones
