"""An independent implementation of one update of DreamerV3's agent: float64, and loops over time, rows and heads.

From the equations of Hafner et al. (2023) and, where these are silent, from the published code's `imag_loss`,
`repl_loss` and `lambda_return`, for several value heads in place of one. As in `reference_update.py`, no function of
the package is called: weights and random draws are passed in as numbers, and autograd differentiates the resulting
scalars.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.world_model import Batch, WorldModelConfig
from tests.support.reference_update import Scalar, Vector, Weights, learns_from, linear, number

NORM_EPS = 1e-4
BINS = [math.copysign(math.expm1(abs(x)), x) for x in (40 * i / 254 - 20 for i in range(255))]
MIN_STD, MAX_STD = 0.1, 1.0  # of the policy
LOW, HIGH = 0.05, 0.95  # the quantiles of returns whose distance scales advantages


@dataclass(frozen=True)
class Draws:
    """The random numbers of one update, standard normal. Row t * B + b of imagination starts from frame (t, b)."""

    states: Float[Tensor, "T B Z"]
    imagined_states: Float[Tensor, "H M Z"]
    imagined_actions: Float[Tensor, "H M A"]


# distributions


def two_hot_mean(logits: Vector) -> Scalar:
    """The expectation of the bins."""
    return torch.dot(torch.softmax(logits, 0), torch.tensor(BINS, dtype=logits.dtype))


def two_hot_loss(logits: Vector, target: float) -> Scalar:
    """Cross-entropy to a number between two bins: the nearer it is to one, the more that one counts."""
    above = bisect.bisect_right(BINS, target)
    low, high = BINS[above - 1], BINS[above]
    share = (target - low) / (high - low)
    log_probs = logits - torch.logsumexp(logits, 0)
    return -(1 - share) * log_probs[above - 1] - share * log_probs[above]


def log_density(x: Vector, mean: Vector, std: Vector) -> Scalar:
    """Of a diagonal Gaussian."""
    total = 0.0
    for value, m, s in zip(x, mean, std, strict=True):
        total = total - (value - m) ** 2 / (2 * s**2) - torch.log(s * math.sqrt(2 * math.pi))
    return total


def entropy(std: Vector) -> Scalar:
    """Of a diagonal Gaussian."""
    return sum(0.5 * torch.log(2 * math.pi * math.e * s**2) for s in std)


def categorical_kl(p: Float[Tensor, "K C"], q: Float[Tensor, "K C"]) -> Scalar:
    """KL(p || q) of probabilities, summed over the variables."""
    return sum((a * (torch.log(a) - torch.log(b))).sum() for a, b in zip(p, q, strict=True))


def one_hot_sample(probs: Float[Tensor, "K C"], noise: Vector) -> Vector:
    """The largest of log-probability plus Gumbel noise; the gradient is that of the probabilities."""
    flat = []
    for p, x in zip(probs, noise.reshape(probs.shape), strict=True):
        uniform = [0.5 * math.erfc(-draw / math.sqrt(2)) for draw in x.tolist()]
        scores = [math.log(c) - math.log(-math.log(u)) for c, u in zip(p.tolist(), uniform, strict=True)]
        hot = torch.zeros_like(p)
        hot[scores.index(max(scores))] = 1.0
        flat.append(hot + p - p.detach())
    return torch.cat(flat)


# networks, one row at a time


def rms(x: Tensor, gain: Tensor) -> Tensor:
    """RMSNorm over the first dimension."""
    size = torch.sqrt((x * x).mean(0) + NORM_EPS)
    return (x / size) * gain.reshape(-1, *[1] * (x.ndim - 1))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x * torch.sigmoid(x)


class Networks:
    """World model and actor of given weights, and value heads; states are [S], actions [A]."""

    def __init__(self, weights: Weights, world: WorldModelConfig, behavior: BehaviorConfig):
        self.weights, self.world, self.behavior = weights, world, behavior

    def _layer(self, name: str, x: Vector) -> Vector:
        return silu(rms(linear(self.weights, f"{name}.linear", x), self.weights[f"{name}.norm.weight"]))

    def _perceptron(self, name: str, layers: int, x: Vector) -> Vector:
        for i in range(layers):
            x = self._layer(f"{name}.hidden.{i}", x)
        return linear(self.weights, f"{name}.last", x)

    def _block(self, name: str, g: int, x: Vector) -> Vector:
        return x @ self.weights[f"{name}.weight"][g] + self.weights[f"{name}.bias"][g, 0]

    # the world

    def recur(self, state: Vector, action: Vector) -> Vector:
        """The deterministic part that follows."""
        config, name = self.world, "world_model.rssm"
        deter, stoch = state[: config.deter], state[config.deter :]
        action = torch.stack([a / max(1.0, abs(number(a))) for a in action])
        parts = {"deter_input": deter, "stoch_input": stoch, "action_input": action}
        shared = [self._layer(f"{name}.{part}", x) for part, x in parts.items()]
        blocks = deter.chunk(config.blocks)
        hidden = [self._block(f"{name}.hidden", g, torch.cat([own, *shared])) for g, own in enumerate(blocks)]
        hidden = silu(rms(torch.cat(hidden), self.weights[f"{name}.hidden_norm.weight"])).chunk(config.blocks)
        after = []
        for g, own in enumerate(blocks):
            reset, candidate, update = self._block(f"{name}.gates", g, hidden[g]).chunk(3)
            update = torch.sigmoid(update - 1)
            after.append(update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * own)
        return torch.cat(after)

    def _mixed(self, logits: Vector) -> Float[Tensor, "K C"]:
        probs = torch.softmax(logits.reshape(self.world.stoch, self.world.classes), dim=1)
        return (1 - self.world.unimix) * probs + self.world.unimix / self.world.classes

    def prior(self, deter: Vector) -> Float[Tensor, "K C"]:
        """Probabilities before the image is seen."""
        return self._mixed(self._perceptron("world_model.rssm.prior_logits", 2, deter))

    def posterior(self, deter: Vector, embed: Vector) -> Float[Tensor, "K C"]:
        """Probabilities after it."""
        hidden = self._layer("world_model.rssm.posterior_hidden", torch.cat([deter, embed]))
        return self._mixed(linear(self.weights, "world_model.rssm.posterior_logits", hidden))

    def step(self, state: Vector, action: Vector, noise: Vector) -> Vector:
        """A sample of the prior."""
        deter = self.recur(state, action)
        return torch.cat([deter, one_hot_sample(self.prior(deter), noise)])

    def encode(self, image: Float[Tensor, "C H W"]) -> Vector:
        """Convolution, max-pooling, norm over the channels of a pixel, SiLU; four times."""
        x = image - 0.5
        for i in range(4):
            x = self._pixels(f"world_model.encoder.layers.{i}", x, pool=True)
        return x.flatten()

    def _pixels(self, name: str, x: Float[Tensor, "I H W"], pool: bool = False) -> Float[Tensor, "O h w"]:
        x = self._convolution(f"{name}.convolution", x)
        x = F.max_pool2d(x, 2) if pool else x
        return silu(rms(x, self.weights[f"{name}.norm.weight"]))

    def _convolution(self, name: str, x: Float[Tensor, "I H W"]) -> Float[Tensor, "O H W"]:
        return F.conv2d(x[None], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding=2)[0]

    def decode(self, state: Vector) -> Float[Tensor, "C H W"]:
        """A first map of 4x4 pixels from both parts of the state; upsampling and convolution, four times; sigmoid."""
        config, name = self.world, "world_model.decoder"
        deter, stoch = state[: config.deter], state[config.deter :]
        blocks = [self._block(f"{name}.from_deter", g, x) for g, x in enumerate(deter.chunk(config.blocks))]
        first = torch.cat([x.reshape(16, -1) for x in blocks], dim=1)
        hidden = self._layer(f"{name}.from_stoch.0", stoch)
        first = first + linear(self.weights, f"{name}.from_stoch.1", hidden).reshape(16, -1)
        x = silu(rms(first.T, self.weights[f"{name}.norm.weight"])).reshape(-1, 4, 4)
        for i in range(3):
            x = self._pixels(f"{name}.layers.{i}", doubled(x))
        return torch.sigmoid(self._convolution(f"{name}.last", doubled(x)))

    def reward_logits(self, state: Vector) -> Vector:
        """Of the bins."""
        return self._perceptron("world_model.reward_head", self.world.reward_layers, state)

    def goes_on(self, state: Vector) -> Scalar:
        """The probability that the episode goes on after `state`; 1 if nothing predicts it."""
        if not self.world.continuation:
            return torch.ones((), dtype=state.dtype)
        return torch.sigmoid(self._perceptron("world_model.continue_head", self.world.reward_layers, state)[0])

    # actor and critic

    def policy(self, state: Vector) -> tuple[Vector, Vector]:
        """Mean and standard deviation."""
        mean, std = self._perceptron("actor.layers", self.behavior.actor_layers, state).chunk(2)
        return torch.tanh(mean), MIN_STD + (MAX_STD - MIN_STD) * torch.sigmoid(std + 2)

    def value_logits(self, k: int, x: Vector) -> Vector:
        """Of the bins, by head k, which is a separate network."""
        name = "critic.layers"
        for i in range(self.behavior.value_layers):
            x = self._block(f"{name}.hidden.{i}", k, x)
            x = silu(rms(x, self.weights[f"{name}.hidden.{i}.gain"][k, 0]))
        return self._block(f"{name}.last", k, x)

    def value(self, k: int, state: Vector) -> float:
        """The return after `state`, without its own reward."""
        return number(two_hot_mean(self.value_logits(k, state)))

    # the loss of the world model

    def observe(
        self, batch: Batch, noise: Float[Tensor, "T B Z"]
    ) -> tuple[dict[str, list[Scalar]], list[list[Vector]]]:
        """The terms of the loss, one number for each frame, and the states [T][B]."""
        steps, rows = batch.reward.shape
        names = ["image", "reward", "dyn", "rep", "kl"] + ["continue"] * self.world.continuation
        terms: dict[str, list[Scalar]] = {name: [] for name in names}
        states = [[torch.zeros(0)] * rows for _ in range(steps)]
        for b in range(rows):
            state = batch.state[b]
            for t in range(steps):
                state = states[t][b] = self._observe_frame(batch, t, b, state, noise[t, b], terms)
        return terms, states

    def _observe_frame(
        self, batch: Batch, t: int, b: int, state: Vector, noise: Vector, terms: dict[str, list[Scalar]]
    ) -> Vector:
        action, image = batch.action[t, b], batch.image[t, b].permute(2, 0, 1).double() / 255
        if batch.is_first[t, b]:  # before it there is neither state nor action
            state, action = torch.zeros_like(state), torch.zeros_like(action)
        deter = self.recur(state, action)
        prior, posterior = self.prior(deter), self.posterior(deter, self.encode(image))
        state = torch.cat([deter, one_hot_sample(posterior, noise)])
        terms["image"].append(((self.decode(state) - image) ** 2).sum())
        terms["reward"].append(two_hot_loss(self.reward_logits(state), float(batch.reward[t, b])))
        terms["kl"].append(categorical_kl(posterior, prior))
        terms["dyn"].append(categorical_kl(posterior.detach(), prior).clamp(min=self.world.free_nats))
        terms["rep"].append(categorical_kl(posterior, prior.detach()).clamp(min=self.world.free_nats))
        if self.world.continuation:
            goes_on = self.goes_on(state)
            terms["continue"].append(-torch.log(1 - goes_on if batch.is_terminal[t, b] else goes_on))
        return state

    def model_loss(self, terms: dict[str, list[Scalar]]) -> tuple[Scalar, dict[str, float]]:
        """The weighted sum of each term's mean over frames, and metrics."""
        means = {name: sum(values) / len(values) for name, values in terms.items()}
        unclipped = means.pop("kl")
        total = sum(getattr(self.world, f"{name}_scale") * mean for name, mean in means.items())
        metrics = {f"{name}_loss": number(mean) for name, mean in means.items()}
        return total, metrics | {"kl": number(unclipped), "model_loss": number(total)}


def doubled(x: Float[Tensor, "C H W"]) -> Float[Tensor, "C H W"]:
    """Every pixel four times."""
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


# returns


def return_after(
    k: int,
    rewards: Sequence[float],
    discounts: Sequence[float],
    values: Sequence[float],
    lambda_: float,
    lasts: Sequence[bool] | None = None,
) -> float:
    """The lambda-return after state k, which begins with the reward of state k + 1.

    All sequences are of the states 0 .. H; discounts[j] is the discount times the continuation of state j. In each
    state after k the sum stops with probability 1 - lambda and goes on with that state's value; it surely does so in
    the last state, and where an episode has its last frame.
    """
    total, reached = 0.0, 1.0
    for j in range(k + 1, len(rewards)):
        total += reached * rewards[j]
        reached *= discounts[j]
        last = j + 1 == len(rewards) or (lasts is not None and lasts[j])
        if last:
            return total + reached * values[j]
        total += reached * (1 - lambda_) * values[j]
        reached *= lambda_
    return total


def quantile(numbers: Sequence[float], place: float) -> float:
    """Linear between the two nearest of the sorted numbers."""
    ordered = sorted(numbers)
    at = place * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


@dataclass
class Trajectory:
    """One imagined trajectory s_0 .. s_H, all of it constants. The samples may lie outside [-1, 1]."""

    states: list[Vector]
    samples: list[Vector] = field(default_factory=list)  # a_0 .. a_{H-1}
    rewards: list[float] = field(default_factory=list)  # r_0 .. r_H
    continues: list[float] = field(default_factory=list)  # c_0 .. c_H
    values: list[list[float]] = field(default_factory=list)  # [H + 1][K]
    stds: list[Vector] = field(default_factory=list)  # of the policy in s_0 .. s_{H-1}
    returns: list[float] = field(default_factory=list)  # of s_0 .. s_{H-1}
    weights: list[float] = field(default_factory=list)  # likewise: discount^k c_0 .. c_k


@torch.no_grad()
def imagine(
    nets: Networks, start: Vector, action_noise: Float[Tensor, "H A"], state_noise: Float[Tensor, "H Z"]
) -> Trajectory:
    """Follow the policy for H steps; then rewards, values, returns and weights."""
    behavior, path = nets.behavior, Trajectory([start.detach()])
    for to_action, to_state in zip(action_noise, state_noise, strict=True):
        mean, std = nets.policy(path.states[-1])
        path.stds.append(std)
        path.samples.append(mean + std * to_action)
        path.states.append(nets.step(path.states[-1], path.samples[-1].clamp(-1, 1), to_state))
    for state in path.states:
        path.rewards.append(number(two_hot_mean(nets.reward_logits(state))))
        path.continues.append(number(nets.goes_on(state)))
        path.values.append([nets.value(k, state) for k in range(behavior.value_heads)])
    means = [sum(values) / len(values) for values in path.values]
    discounts = [behavior.discount * c for c in path.continues]
    arrived = 1.0
    for k in range(len(path.samples)):
        path.returns.append(return_after(k, path.rewards, discounts, means, behavior.return_lambda))
        arrived *= path.continues[k]
        path.weights.append(behavior.discount**k * arrived)
    return path


# the losses of actor and critic


def actor_loss(nets: Networks, paths: Sequence[Trajectory], scale: float) -> Scalar:
    """The score function with a bonus for entropy, its mean over rows and steps."""
    terms = []
    for path in paths:
        for k, sample in enumerate(path.samples):
            baseline = sum(path.values[k]) / len(path.values[k])
            advantage = (path.returns[k] - baseline) / scale
            mean, std = nets.policy(path.states[k])
            gain = log_density(sample, mean, std) * advantage + nets.behavior.entropy_scale * entropy(std)
            terms.append(-path.weights[k] * gain)
    return sum(terms) / len(terms)


def head_loss(nets: Networks, k: int, state: Vector, target: float, slow: float) -> Scalar:
    """Of head k in one state: cross-entropy to the return, and to what the head's slow copy says."""
    logits = nets.value_logits(k, state)
    return two_hot_loss(logits, target) + nets.behavior.slow_scale * two_hot_loss(logits, slow)


def mean_of(losses: Sequence[Scalar]) -> Scalar:
    """0 where there is none."""
    return sum(losses) / max(1, len(losses)) + torch.zeros((), dtype=torch.float64)


def value_losses(
    nets: Networks, slow: Networks, paths: Sequence[Trajectory], frames: Sequence[int], masks: Bool[Tensor, "P K"]
) -> list[Scalar]:
    """For each head: the mean weighted loss over the trajectories that begin in its frames, and over their steps."""
    return [
        mean_of([
            path.weights[t] * head_loss(nets, k, path.states[t], path.returns[t], slow.value(k, path.states[t]))
            for path, frame in zip(paths, frames, strict=True)
            if learns_from(masks, frame, k)
            for t in range(len(path.returns))
        ])
        for k in range(nets.behavior.value_heads)
    ]


def replay_losses(
    nets: Networks,
    batch: Batch,
    states: Sequence[Sequence[Vector]],
    boot: Sequence[Sequence[float]],
    slow: Sequence[Sequence[Sequence[float]]],
    masks: Bool[Tensor, "P K"],
) -> list[Scalar]:
    """For each head: the mean loss over its frames, without the last of each row.

    `boot` [T][B] are the imagined returns of the frames' states, `slow` [T][B][K] their values by the slow copy. A
    frame counts 0 if it is the last of an episode, before another one's first.
    """
    steps, rows = batch.reward.shape
    losses: list[list[Scalar]] = [[] for _ in range(nets.behavior.value_heads)]
    for b in range(rows):
        rewards = [float(x) for x in batch.reward[:, b]]
        discounts = [nets.behavior.discount * (0.0 if ended else 1.0) for ended in batch.is_terminal[:, b]]
        lasts = [t + 1 == steps or bool(batch.is_first[t + 1, b]) for t in range(steps)]
        values = [boot[t][b] for t in range(steps)]
        for t in range(steps - 1):
            target = return_after(t, rewards, discounts, values, nets.behavior.return_lambda, lasts)
            for k, found in enumerate(losses):
                if learns_from(masks, int(batch.index[t, b]), k):
                    loss = head_loss(nets, k, states[t][b], target, slow[t][b][k])
                    found.append(0 * loss if lasts[t] else loss)
    return [mean_of(found) for found in losses]


# the optimizer


@dataclass
class LaProp:
    """LaProp with adaptive clipping for one part of an agent, with the constants of DreamerV3."""

    rate: float
    clip: float
    warmup: int
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-20
    smallest: float = 1e-3
    steps: int = 0
    first: Weights = field(default_factory=dict)
    second: Weights = field(default_factory=dict)

    def step(self, weights: Weights, gradients: Weights) -> Weights:
        """The weights after one more step."""
        rate = self.rate * min(1.0, self.steps / self.warmup)
        self.steps += 1
        after = {}
        for name, gradient in gradients.items():
            zero, weight = torch.zeros_like(gradient), weights[name].detach()
            largest = self.clip * max(self.smallest, math.sqrt(float((weight * weight).sum())))
            norm = math.sqrt(float((gradient * gradient).sum()))
            gradient = gradient * (largest / norm) if norm > largest else gradient
            self.second[name] = self.beta2 * self.second.get(name, zero) + (1 - self.beta2) * gradient**2
            scaled = gradient / (torch.sqrt(self.second[name] / (1 - self.beta2**self.steps)) + self.eps)
            self.first[name] = self.beta1 * self.first.get(name, zero) + (1 - self.beta1) * scaled
            after[name] = weight - rate * self.first[name] / (1 - self.beta1**self.steps)
        return after


# the whole update


@dataclass(frozen=True)
class Update:
    """The result of an update: metrics, and the gradients of each part."""

    metrics: dict[str, float]
    gradients: dict[str, Weights]


class Reference:
    """An agent of plain numbers: weights, slow copy of the value heads, moving quantiles and LaProp's averages."""

    def __init__(
        self,
        weights: Weights,
        slow: Weights,
        masks: Bool[Tensor, "P K"],
        world: WorldModelConfig,
        behavior: BehaviorConfig,
        optimizer: OptimizerConfig,
        bounds: Sequence[float] = (0.0, 0.0),
    ):
        self.weights = {name: x.detach().clone().requires_grad_() for name, x in weights.items()}
        self.slow = {name: x.detach().clone() for name, x in slow.items()}  # by the names of the heads: critic. ...
        self.masks, self.world, self.behavior = masks.clone(), world, behavior
        self.bounds = list(bounds)
        parts = ("world_model", "actor", "critic")
        self.optimizers = {
            part: LaProp(optimizer.lr, optimizer.relative_clip, optimizer.warmup) for part in parts
        }

    def networks(self) -> tuple[Networks, Networks]:
        """With the current weights, and with the slow copy's."""
        return tuple(Networks(weights, self.world, self.behavior) for weights in (self.weights, self.slow))

    def trajectories(self, states: Sequence[Sequence[Vector]], draws: Draws) -> list[Trajectory]:
        """Imagination from every state of a batch [T][B], one step's rows after another's."""
        starts = [state for row in states for state in row]
        noise = zip(draws.imagined_actions.unbind(1), draws.imagined_states.unbind(1), strict=True)
        return [imagine(self.networks()[0], start, *pair) for start, pair in zip(starts, noise, strict=True)]

    def moved_bounds(self, paths: Sequence[Trajectory]) -> list[float]:
        """The moving quantiles after the returns of `paths`."""
        returns, rate = [x for path in paths for x in path.returns], self.behavior.return_rate
        found = [quantile(returns, place) for place in (LOW, HIGH)]
        return [(1 - rate) * before + rate * now for before, now in zip(self.bounds, found, strict=True)]

    def slow_values(self, states: Sequence[Vector]) -> list[list[float]]:
        """Of each state by each head's slow copy."""
        slow = self.networks()[1]
        return [[slow.value(k, state) for k in range(self.behavior.value_heads)] for state in states]

    def learn(
        self,
        states: Sequence[Sequence[Vector]],
        batch: Batch,
        paths: Sequence[Trajectory],
        slow_values: Sequence[Sequence[Sequence[float]]] | None = None,
    ) -> tuple[Scalar, list[Scalar], list[Scalar]]:
        """Actor's loss, and each head's on imagined and on replayed states, whose `slow_values` are found here."""
        nets, slow = self.networks()
        low, high = self.moved_bounds(paths)
        policy = actor_loss(nets, paths, max(1.0, high - low))
        frames, rows = [int(x) for x in batch.index.flatten()], batch.reward.shape[1]
        values = value_losses(nets, slow, paths, frames, self.masks)
        boot = [[paths[t * rows + b].returns[0] for b in range(rows)] for t in range(len(states))]
        said = slow_values or [self.slow_values(row) for row in states]
        return policy, values, replay_losses(nets, batch, states, boot, said, self.masks)

    def update(self, batch: Batch, draws: Draws) -> Update:
        """One step of all parts; losses and gradients are computed with the weights before it."""
        nets, _ = self.networks()
        terms, states = nets.observe(batch, draws.states)
        model_loss, metrics = nets.model_loss(terms)
        paths = self.trajectories(states, draws)
        policy, values, replayed = self.learn(states, batch, paths)
        scale, heads = self.behavior.replay_scale, len(values)
        losses = {  # each head learns as a single one would; the world model learns from their mean
            "world_model": model_loss + scale * sum(replayed) / heads,
            "actor": policy,
            "critic": sum(values) + scale * sum(replayed),
        }
        gradients = {part: self._gradients(part, loss) for part, loss in losses.items()}
        low, high = self.bounds = self.moved_bounds(paths)
        metrics |= trajectory_metrics(paths) | {
            "actor_loss": number(policy),
            "critic_loss": number(sum(values)) / heads,
            "replay_value_loss": number(sum(replayed)) / heads,
            "return_scale": max(1.0, high - low),
            "skipped": 0.0,
        }
        for part, found in gradients.items():
            metrics[f"{part}_grad_norm"] = math.sqrt(sum(float((x * x).sum()) for x in found.values()))
            after = self.optimizers[part].step(self.weights, found)
            self.weights |= {name: x.requires_grad_() for name, x in after.items()}
        for name, before in self.slow.items():
            self.slow[name] = before + self.behavior.slow_rate * (self.weights[name].detach() - before)
        return Update(metrics, gradients)

    def _gradients(self, part: str, loss: Scalar) -> Weights:
        own = {name: x for name, x in self.weights.items() if name.split(".")[0] == part}
        return dict(zip(own, torch.autograd.grad(loss, list(own.values()), retain_graph=True), strict=True))


def trajectory_metrics(paths: Sequence[Trajectory]) -> dict[str, float]:
    """The logged means over imagination."""

    def mean(numbers: Sequence[float]) -> float:
        return sum(numbers) / len(numbers)

    values = [said for path in paths for said in path.values]
    spreads = [math.sqrt(mean([(value - mean(said)) ** 2 for value in said])) for said in values]
    stds = [std for path in paths for std in path.stds]
    return {
        "value_mean": mean([mean(said) for said in values]),
        "value_spread": mean(spreads),
        "imagined_reward": mean([x for path in paths for x in path.rewards]),
        "imagined_continue": mean([x for path in paths for x in path.continues]),
        "actor_std": mean([float(x) for std in stds for x in std]),
        "actor_entropy": mean([float(entropy(std)) for std in stds]),
    }
