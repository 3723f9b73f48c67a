"""An independent implementation of one update, from the equations: float64, and loops over time, rows and heads.

No function of the package is called, and only the types of its settings are imported: weights and random draws are
passed in as numbers. autograd differentiates the resulting scalars; `test_reference_update.py` checks it by central
differences.

A `Family` has what differs between families of agents: dynamics, rewards, heads, and the losses of actor and critic.
Imagination, returns, bootstrap masks, clipping and Adam are shared loops below it. `DreamerFamily` is Dreamer's;
another family (REINFORCE, two-hot critics) would be another such class.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.world_model import Batch, WorldModelConfig

Scalar = Float[Tensor, ""]
Vector = Float[Tensor, " X"]
Weights = dict[str, Tensor]  # by the names of the agent's parameters
HeadTargets = Literal["shared", "own"]

TORCH_CLIP_EPS = 1e-6  # torch divides by the norm plus this
LEVELS = 32  # of an image's 5 bits
MEAN_SCALE, ACTOR_MIN_STD = 5.0, 1e-4  # Dreamer, Table 18


# the parts of one family of agents


class Family(Protocol):
    """The parts that belong to one family of agents. Every function speaks of one row: state [S], action [A]."""

    def act(self, state: Vector, noise: Vector) -> Vector:
        """The policy's sample in `state`, a function of the actor's weights."""

    def step(self, state: Vector, action: Vector, noise: Vector) -> Vector:
        """The state that `action` leads to."""

    def reward(self, state: Vector) -> Scalar:
        """The reward on arriving in `state`."""

    def goes_on(self, state: Vector) -> Scalar | float:
        """The probability that the episode does not end in `state`."""

    def values(self, state: Vector) -> list[Scalar]:
        """The value of `state` by each head."""

    def actor_loss(self, trajectories: Sequence["Trajectory"]) -> Scalar:
        """The scalar that the actor minimises."""

    def head_error(self, trajectory: "Trajectory", k: int, t: int) -> Scalar:
        """The error of head k at step t of a trajectory; its targets are constants."""

    def model_loss(self, batch: Batch, draws: "Draws") -> tuple[Scalar, dict[str, float], list[list[Vector]]]:
        """The scalar that the world model minimises, metrics, and the states [T][B] from which imagination starts."""

    def metrics(self, trajectories: Sequence["Trajectory"]) -> dict[str, float]:
        """The logged metrics of the actor."""


@dataclass
class Trajectory:
    """One imagined trajectory: H states and values computed from them. Index 0 of each list is the first state, s_1."""

    start: Vector
    root: float = 1.0  # the probability that the episode goes on after `start`
    actions: list[Vector] = field(default_factory=list)  # a_0 .. a_{H-1}; actions[t] led into states[t]
    states: list[Vector] = field(default_factory=list)  # s_1 .. s_H
    rewards: list[Scalar] = field(default_factory=list)
    continues: list[Scalar | float] = field(default_factory=list)  # the probability that the episode goes on there
    weights: list[float] = field(default_factory=list)  # the probability that the state is reached, a constant
    values: list[list[Scalar]] = field(default_factory=list)  # [H][K]
    returns: list[Scalar] = field(default_factory=list)  # [H - 1], maximised by the actor
    targets: list[list[float]] = field(default_factory=list)  # [K][H - 1], regression targets of the heads


def number(x: Scalar | float) -> float:
    """Its value as a number, without its graph."""
    return float(torch.as_tensor(x).detach())


# shared loops: imagination, returns, masks, losses


def imagine(
    family: Family,
    start: Vector,
    action_noise: Float[Tensor, "H A"],
    state_noise: Float[Tensor, "H Z"],
    shown: Sequence[Vector] | None = None,
    root: float = 1.0,
) -> Trajectory:
    """Follow the policy for H steps. Its inputs are detached states: `shown`, or those that it reaches."""
    path, state = Trajectory(start, root), start
    for t in range(len(action_noise)):
        action = family.act(state.detach() if shown is None else shown[t], action_noise[t])
        state = family.step(state, action, state_noise[t])
        path.actions.append(action)
        path.states.append(state)
    return path


def lambda_returns(
    rewards: Sequence[Scalar], discounts: Sequence[Scalar | float], values: Sequence[Scalar], lambda_: float
) -> list[Scalar]:
    """R_t = r_t + d_t ((1 - lambda) v_{t+1} + lambda R_{t+1}) for all t but the last, where R_T is v_T.

    All three sequences are of the same T states; each R_t is found by walking forward from t to the end.
    """
    returns = []
    last = len(rewards) - 1
    for t in range(last):
        total, weight = 0.0, 1.0
        for k in range(t, last):
            # With probability lambda^(k - t) the sum reaches this step; then it either stops at v_{k+1} or continues.
            total = total + weight * rewards[k]
            weight = weight * discounts[k]
            stops = 1.0 if k + 1 == last else 1 - lambda_
            total = total + weight * stops * values[k + 1]
            weight = weight * lambda_
        returns.append(total)
    return returns


def evaluate_trajectory(
    family: Family, path: Trajectory, discount: float, lambda_: float, head_targets: HeadTargets
) -> None:
    """Fill in rewards, values, continuations, weights, returns and the heads' targets of a trajectory.

    The actor maximises returns that bootstrap from the mean over heads; so do all heads if targets are "shared", and
    each from its own values if they are "own".
    """
    alive = path.root
    for state in path.states:
        path.rewards.append(family.reward(state))
        path.continues.append(family.goes_on(state))
        path.values.append(family.values(state))
        path.weights.append(alive)  # the episode has gone on after every state before, not necessarily after this one
        alive = alive * number(path.continues[-1])
    discounts = [discount * goes_on for goes_on in path.continues]
    heads = len(path.values[0])
    means = [sum(values) / heads for values in path.values]
    path.returns = lambda_returns(path.rewards, discounts, means, lambda_)
    for k in range(heads):
        own = [values[k] for values in path.values]
        returns = lambda_returns(path.rewards, discounts, own, lambda_) if head_targets == "own" else path.returns
        path.targets.append([number(value) for value in returns])


def learns_from(masks: Bool[Tensor, "P K"], frame: int, k: int) -> bool:
    """Whether head k learns from the frame of replay numbered `frame`."""
    return bool(masks[frame % len(masks), k])


def critic_losses(
    family: Family, paths: Sequence[Trajectory], frames: Sequence[int], masks: Bool[Tensor, "P K"]
) -> list[Scalar]:
    """For each head: the mean weighted error over the trajectories that begin in its frames, and over their steps."""
    losses = []
    for k in range(len(paths[0].targets)):
        errors = []
        for path, frame in zip(paths, frames, strict=True):
            if not learns_from(masks, frame, k):
                continue
            for t in range(len(path.targets[k])):
                errors.append(path.weights[t] * family.head_error(path, k, t))
        losses.append(sum(errors) / len(errors) if errors else torch.zeros((), dtype=torch.float64))
    return losses


# shared loops: clipping and Adam


def clip(gradients: Weights, largest: float) -> tuple[Weights, float]:
    """Scale all gradients of a part by one factor, so that their common norm is at most `largest`; and that norm."""
    norm = math.sqrt(sum(float((gradient * gradient).sum()) for gradient in gradients.values()))
    factor = min(1.0, largest / (norm + TORCH_CLIP_EPS))
    return {name: factor * gradient for name, gradient in gradients.items()}, norm


@dataclass
class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1) for one part of an agent."""

    rate: float
    eps: float
    beta1: float = 0.9
    beta2: float = 0.999
    steps: int = 0
    first: Weights = field(default_factory=dict)
    second: Weights = field(default_factory=dict)

    def step(self, weights: Weights, gradients: Weights) -> Weights:
        """The weights after one more step."""
        self.steps += 1
        after = {}
        for name, gradient in gradients.items():
            zero = torch.zeros_like(gradient)
            self.first[name] = self.beta1 * self.first.get(name, zero) + (1 - self.beta1) * gradient
            self.second[name] = self.beta2 * self.second.get(name, zero) + (1 - self.beta2) * gradient**2
            mean = self.first[name] / (1 - self.beta1**self.steps)
            square = self.second[name] / (1 - self.beta2**self.steps)
            after[name] = weights[name].detach() - self.rate * mean / (square**0.5 + self.eps)
        return after


# Dreamer's networks, one row at a time


def linear(weights: Weights, name: str, x: Vector) -> Vector:
    """W x + b."""
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def elu(x: Vector) -> Vector:
    """x where it is positive, exp(x) - 1 elsewhere."""
    return torch.where(x > 0, x, torch.exp(torch.clamp(x, max=0.0)) - 1)


def softplus(x: Vector) -> Vector:
    """log(1 + exp(x))."""
    return torch.log1p(torch.exp(x))


def perceptron(weights: Weights, name: str, layers: int, x: Vector) -> Vector:
    """`layers` hidden layers with ELU and a linear one; the activations are counted among the layers' names."""
    for i in range(layers):
        x = elu(linear(weights, f"{name}.{2 * i}", x))
    return linear(weights, f"{name}.{2 * layers}", x)


def gru(weights: Weights, name: str, x: Vector, h: Vector) -> Vector:
    """A gated recurrent unit (Cho et al. 2014, in torch's form)."""
    from_x = (weights[f"{name}.weight_ih"] @ x + weights[f"{name}.bias_ih"]).chunk(3)
    from_h = (weights[f"{name}.weight_hh"] @ h + weights[f"{name}.bias_hh"]).chunk(3)
    reset = torch.sigmoid(from_x[0] + from_h[0])
    keep = torch.sigmoid(from_x[1] + from_h[1])
    candidate = torch.tanh(from_x[2] + reset * from_h[2])
    return (1 - keep) * candidate + keep * h


def gaussian(statistics: Vector, min_std: float) -> tuple[Vector, Vector]:
    """Mean and standard deviation."""
    mean, std = statistics.chunk(2)
    return mean, softplus(std) + min_std


def kl(p: tuple[Vector, Vector], q: tuple[Vector, Vector]) -> Scalar:
    """KL(p || q) of diagonal Gaussians: one dimension after another."""
    total = 0.0
    for p_mean, p_std, q_mean, q_std in zip(*p, *q, strict=True):
        total = total + torch.log(q_std / p_std) + (p_std**2 + (p_mean - q_mean) ** 2) / (2 * q_std**2) - 0.5
    return total


class DreamerFamily:
    """Dreamer: gradients through the world model, a Tanh-Normal actor, heads that regress on returns."""

    def __init__(self, weights: Weights, world: WorldModelConfig, behavior: BehaviorConfig):
        self.weights, self.world, self.behavior = weights, world, behavior

    # the world

    def recur(self, state: Vector, action: Vector) -> Vector:
        """The deterministic part that follows."""
        deter, stoch = state[: self.world.deter], state[self.world.deter :]
        x = elu(linear(self.weights, "world_model.rssm.input", torch.cat([stoch, action])))
        return gru(self.weights, "world_model.rssm.cell", x, deter)

    def prior(self, deter: Vector) -> tuple[Vector, Vector]:
        """The prior."""
        hidden = elu(linear(self.weights, "world_model.rssm.prior_hidden", deter))
        return gaussian(linear(self.weights, "world_model.rssm.prior_out", hidden), self.world.min_std)

    def posterior(self, deter: Vector, embed: Vector) -> tuple[Vector, Vector]:
        """The posterior."""
        hidden = elu(linear(self.weights, "world_model.rssm.posterior_hidden", torch.cat([deter, embed])))
        return gaussian(linear(self.weights, "world_model.rssm.posterior_out", hidden), self.world.min_std)

    def encode(self, image: Float[Tensor, "C H W"]) -> Vector:
        """Four convolutions of stride 2 with ReLU."""
        x = image[None]
        for i in range(4):
            name = f"world_model.encoder.layers.{2 * i}"
            x = F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride=2).clamp(min=0)
        return x.flatten()

    def decode(self, state: Vector) -> Float[Tensor, "C H W"]:
        """A linear layer, then four transposed convolutions of stride 2, ReLU between them."""
        x = linear(self.weights, "world_model.decoder.dense", state)[None, :, None, None]
        for i in range(4):
            name = f"world_model.decoder.layers.{i}"
            x = F.conv_transpose2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride=2)
            x = x.clamp(min=0) if i < 3 else x
        return x[0]

    # what imagination needs

    def distribution(self, state: Vector) -> tuple[Vector, Vector]:
        """Mean and standard deviation before the tanh."""
        mean, std = perceptron(self.weights, "actor.layers", self.behavior.actor_layers, state).chunk(2)
        start = math.log(math.exp(self.behavior.actor_init_std) - 1)
        return MEAN_SCALE * torch.tanh(mean / MEAN_SCALE), softplus(std + start) + ACTOR_MIN_STD

    def act(self, state: Vector, noise: Vector) -> Vector:
        """A reparameterised sample."""
        mean, std = self.distribution(state)
        return torch.tanh(mean + std * noise)

    def step(self, state: Vector, action: Vector, noise: Vector) -> Vector:
        """A sample of the prior."""
        deter = self.recur(state, action)
        mean, std = self.prior(deter)
        return torch.cat([deter, mean + std * noise])

    def reward(self, state: Vector) -> Scalar:
        """The reward head's mean."""
        return perceptron(self.weights, "world_model.reward_head", self.world.reward_layers, state)[0]

    def goes_on(self, state: Vector) -> Scalar | float:
        """The continue head's probability; without one, Dreamer's episodes do not end."""
        if not self.world.continuation:
            return 1.0
        return 1 / (1 + torch.exp(-self._log_odds(state)))

    def _log_odds(self, state: Vector) -> Scalar:
        return perceptron(self.weights, "world_model.continue_head", self.world.reward_layers, state)[0]

    def values(self, state: Vector) -> list[Scalar]:
        """Each head is a separate network."""
        return [self._head(k, state) for k in range(self.behavior.value_heads)]

    def _head(self, k: int, x: Vector) -> Scalar:
        layers = self.behavior.value_layers
        for i in range(layers + 1):
            x = x @ self.weights[f"critic.layers.{i}.weight"][k] + self.weights[f"critic.layers.{i}.bias"][k, 0]
            x = elu(x) if i < layers else x
        return x[0]

    def actor_loss(self, trajectories: Sequence[Trajectory]) -> Scalar:
        """Minus the mean return over all steps and rows (Dreamer, Eq. 7), each times the probability of its state."""
        returns = [path.weights[t] * value for path in trajectories for t, value in enumerate(path.returns)]
        return -sum(returns) / len(returns)

    def head_error(self, trajectory: Trajectory, k: int, t: int) -> Scalar:
        """Half the squared distance to the target (Dreamer, Eq. 8)."""
        # The heads learn values of these states, not the states: the states are constants here.
        said = self._head(k, trajectory.states[t].detach())
        return 0.5 * (said - trajectory.targets[k][t]) ** 2

    # the loss of the world model

    def observe(
        self, batch: Batch, pixel_noise: Float[Tensor, "T B H W C"], state_noise: Float[Tensor, "T B Z"]
    ) -> tuple[dict[str, list[Scalar]], list[list[Vector]]]:
        """The terms of the loss, one number for each frame, and the states [T][B]."""
        steps, rows = batch.reward.shape
        terms: dict[str, list[Scalar]] = {"image": [], "reward": [], "kl": []}
        states = [[torch.zeros(0)] * rows for _ in range(steps)]
        for b in range(rows):
            state = torch.zeros(self.world.deter + self.world.stoch, dtype=torch.float64)
            for t in range(steps):
                first, action = bool(batch.is_first[t, b]), batch.action[t, b]
                if first:  # before it there is neither state nor action
                    state, action = torch.zeros_like(state), torch.zeros_like(action)
                target = dequantised(batch.image[t, b], pixel_noise[t, b])
                deter = self.recur(state, action)
                prior, posterior = self.prior(deter), self.posterior(deter, self.encode(target))
                state = torch.cat([deter, posterior[0] + posterior[1] * state_noise[t, b]])
                states[t][b] = state
                terms["image"].append(0.5 * ((self.decode(state) - target) ** 2).sum())
                paid = 0.5 * (self.reward(state) - batch.reward[t, b]) ** 2
                terms["reward"].append(torch.zeros_like(paid) if first else paid)
                terms["kl"].append(kl(posterior, prior))
                if self.world.continuation:  # -log of the probability of what happened
                    odds = self._log_odds(state)
                    ended = bool(batch.is_terminal[t, b])
                    terms.setdefault("continue", []).append(softplus(odds) if ended else softplus(-odds))
        return terms, states

    def model_loss(self, batch: Batch, draws: "Draws") -> tuple[Scalar, dict[str, float], list[list[Vector]]]:
        """The weighted sum of each term's mean over frames (Dreamer, Eq. 10)."""
        config = self.world
        terms, states = self.observe(batch, draws.pixels, draws.states)
        free = [torch.maximum(x, torch.full_like(x, config.free_nats)) for x in terms["kl"]]
        means = {name: sum(values) / len(values) for name, values in (terms | {"kl": free}).items()}
        total = config.image_scale * means["image"] + config.reward_scale * means["reward"]
        total = total + config.kl_scale * means["kl"] + means.get("continue", 0.0)
        metrics = {f"{name}_loss": number(value) for name, value in means.items()}
        return total, metrics | {"kl": number(sum(terms["kl"]) / len(terms["kl"]))}, states

    def metrics(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """The policy's standard deviation in the last imagined state, and the probability of going on in the others."""
        stds = [number(x) for path in trajectories for x in self.distribution(path.states[-1])[1]]
        found = {"actor_std": sum(stds) / len(stds)}
        if self.world.continuation:  # the last state's is not needed
            going = [number(x) for path in trajectories for x in path.continues[:-1]]
            found["imagined_continue"] = sum(going) / len(going)
        return found


def dequantised(image: Tensor, noise: Float[Tensor, "H W C"]) -> Float[Tensor, "C H W"]:
    """Pixels of 5 bits with noise within a level, from -0.5 to 0.5; channels first."""
    levels = torch.div(image, 256 // LEVELS, rounding_mode="floor").double()
    return ((levels + noise) / LEVELS - 0.5).permute(2, 0, 1)


# the whole update


@dataclass(frozen=True)
class Draws:
    """The random numbers of one update. Row t * B + b of imagination starts from frame (t, b)."""

    pixels: Float[Tensor, "T B H W C"]
    states: Float[Tensor, "T B Z"]
    imagined_states: Float[Tensor, "H M Z"]
    imagined_actions: Float[Tensor, "H M A"]


@dataclass(frozen=True)
class Update:
    """The result of an update."""

    metrics: dict[str, float]
    clipped: dict[str, Weights]  # gradients of each part after clipping


def imagination_metrics(paths: Sequence[Trajectory]) -> dict[str, float]:
    """The logged metrics of values and rewards."""
    values = [[number(value) for value in said] for path in paths for said in path.values]
    spreads = []
    for said in values:
        mean = sum(said) / len(said)
        spreads.append(math.sqrt(sum((value - mean) ** 2 for value in said) / len(said)))
    rewards = [number(reward) for path in paths for reward in path.rewards]
    return {
        "value_mean": sum(map(sum, values)) / sum(map(len, values)),
        "value_spread": sum(spreads) / len(spreads),
        "imagined_reward": sum(rewards) / len(rewards),
    }


class Reference:
    """An agent of plain numbers: its weights, and Adam's moments. `update` is the reference for `Dreamer.update`."""

    def __init__(
        self,
        weights: Weights,
        masks: Bool[Tensor, "P K"],
        world: WorldModelConfig,
        behavior: BehaviorConfig,
        optimizer: OptimizerConfig,
        head_targets: HeadTargets = "shared",
        family: Callable[[Weights, WorldModelConfig, BehaviorConfig], Family] = DreamerFamily,
    ):
        self.weights = {name: x.detach().clone().double().requires_grad_() for name, x in weights.items()}
        self.masks, self.head_targets, self._family = masks.clone(), head_targets, family
        self.world, self.behavior, self.optimizer = world, behavior, optimizer
        rates = {"world_model": optimizer.world_model_lr, "actor": optimizer.actor_lr, "critic": optimizer.critic_lr}
        self.adams = {part: Adam(rate, optimizer.eps) for part, rate in rates.items()}

    def family(self) -> Family:
        """The family's functions with the current weights."""
        return self._family(self.weights, self.world, self.behavior)

    def trajectories(
        self,
        starts: Sequence[Vector],
        draws: Draws,
        shown: Sequence[Sequence[Vector]] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> list[Trajectory]:
        """Imagination from each start. The policy reads the states `shown`, [M][H], or those that it reaches.

        Nothing follows the starts where the episode has `ended`, if the world model has continuation.
        """
        family, behavior, paths = self.family(), self.behavior, []
        for m, start in enumerate(starts):
            noise = draws.imagined_actions[:, m], draws.imagined_states[:, m]
            root = 0.0 if self.world.continuation and ended is not None and ended[m] else 1.0
            path = imagine(family, start, *noise, None if shown is None else shown[m], root)
            evaluate_trajectory(family, path, behavior.discount, behavior.return_lambda, self.head_targets)
            paths.append(path)
        return paths

    def losses(self, batch: Batch, draws: Draws) -> tuple[dict[str, Scalar], dict[str, float]]:
        """The loss of each part, and the metrics."""
        family = self.family()
        model_loss, metrics, states = family.model_loss(batch, draws)
        # Row t * B + b of imagination starts from frame (t, b).
        places = [(t, b) for t in range(len(states)) for b in range(len(states[t]))]
        ended = [bool(batch.is_terminal[place]) for place in places]
        paths = self.trajectories([states[t][b].detach() for t, b in places], draws, ended=ended)
        actor_loss = family.actor_loss(paths)
        of_heads = critic_losses(family, paths, [int(batch.index[place]) for place in places], self.masks)
        metrics |= family.metrics(paths) | imagination_metrics(paths) | {
            "model_loss": number(model_loss),
            "actor_loss": number(actor_loss),
            "critic_loss": number(sum(of_heads)) / len(of_heads),
        }
        return {"world_model": model_loss, "actor": actor_loss, "critic": sum(of_heads)}, metrics

    def gradients(self, losses: dict[str, Scalar]) -> dict[str, Weights]:
        """Gradients of each part's loss with respect to that part's weights only."""
        found = {}
        for part, loss in losses.items():
            own = {name: x for name, x in self.weights.items() if name.split(".")[0] == part}
            slopes = torch.autograd.grad(
                loss, list(own.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            found[part] = dict(zip(own, slopes, strict=True))
        return found

    def update(self, batch: Batch, draws: Draws) -> Update:
        """One step of all parts; losses and gradients are computed with the weights before it."""
        losses, metrics = self.losses(batch, draws)
        clipped = {}
        for part, gradients in self.gradients(losses).items():
            clipped[part], metrics[f"{part}_grad_norm"] = clip(gradients, self.optimizer.grad_clip)
        for part, gradients in clipped.items():
            after = self.adams[part].step(self.weights, gradients)
            self.weights |= {name: x.requires_grad_() for name, x in after.items()}
        return Update(metrics | {"skipped": 0.0}, clipped)

