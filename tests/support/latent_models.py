"""Small analytic latent models with only the members of `LatentModel`; float64, any leading dims."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamer_mpc.planners.protocol import Terminating


class Squashed(NamedTuple):
    """tanh of a Gaussian, with its own `mode`."""

    mean: Tensor
    std: Tensor

    @property
    def mode(self) -> Tensor:
        return torch.tanh(self.mean)

    def rsample(self) -> Tensor:
        return torch.tanh(self.mean + self.std * torch.randn_like(self.mean))


class Spread(Squashed):
    """The same without randomness: candidate n of N is shifted by its place in [-1, 1]."""

    def rsample(self) -> Tensor:
        shift = torch.linspace(-1, 1, self.mean.shape[-2], dtype=self.mean.dtype)[:, None]
        return torch.tanh(self.mean + self.std * shift)


class Smooth(nn.Module):
    """A deterministic nonlinear model with parameters in every part; K value heads that differ."""

    action_dim = 2
    count = 0  # number of states that were stepped

    def __init__(
        self, size: int = 3, heads: int = 3, std: float = 0.5, distribution: type = Squashed, seed: int = 0
    ):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=draw, dtype=torch.float64) / shape[0] ** 0.5)

        self.carry, self.push, self.twist = weight(size, size), weight(2, size), weight(2, size)
        self.gain, self.heads, self.act, self.wide = weight(size), weight(size, heads), weight(size, 2), weight(size, 2)
        self.std, self.distribution = std, distribution

    def step(self, state, action):
        self.count += state[..., 0].numel()
        return torch.tanh(state @ self.carry + action @ self.push + state * (action @ self.twist))

    def reward(self, state):
        return torch.sin(2 * state @ self.gain) + 0.5

    def value(self, state):
        return Smooth.reward(self, state) + (1 + torch.tanh(state @ self.heads) * 3).movedim(-1, 0)

    def policy(self, state):
        return self.distribution(state @ self.act, self.std * torch.exp(state @ self.wide))


class Noisy(Smooth):
    """`Smooth` with additive noise in its step; records the draws that it gets."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.given: list[Tensor] = []

    def noise(self, state):
        return torch.randn_like(state)

    def step(self, state, action, noise=None):
        if noise is None:
            noise = torch.randn_like(state)
        else:
            self.given.append(noise)
        return super().step(state, action) + 0.3 * noise


class Mortal(Smooth, Terminating):
    """`Smooth` whose episodes end with a probability that depends on the state; counts the states that are asked."""

    asked = 0

    def continues(self, state):
        self.asked += state[..., 0].numel()
        return torch.sigmoid(1 + 2 * state @ self.heads[:, 0])


class Ended:
    """An episode of `model` that ended in s_`last`: neither reward nor value after it. A state ends in its number k."""

    def __init__(self, model, last: float):
        self.model, self.last, self.action_dim = model, last, model.action_dim

    def step(self, state, action):
        return torch.cat([self.model.step(state[..., :-1], action), state[..., -1:] + 1], dim=-1)

    def reward(self, state):
        return torch.where(state[..., -1] > self.last, 0.0, self.model.reward(state[..., :-1]))

    def value(self, state):
        return torch.where(state[..., -1] > self.last, 0.0, self.model.value(state[..., :-1]))


class Slope:
    """x' = x + a / 2 and r = x: the further up the better, and so v = x + 4."""

    action_dim, top = 1, 1.0

    def step(self, state, action):
        return state + action / 2

    def reward(self, state):
        return state[..., 0]

    def value(self, state):
        return (self.reward(state) + 4)[None]

    def policy(self, state):
        return Squashed(torch.full_like(state, 0.2), torch.full_like(state, 0.5))


class Ledge(Slope, Terminating):
    """`Slope` that ends in an abyss behind its `top`, as sudden as `sharpness` says: it pays to stay just below."""

    def __init__(self, sharpness: float = 12.0):
        self.sharpness = sharpness

    def continues(self, state):
        return torch.sigmoid(self.sharpness * (self.top - state[..., 0]))

    def value(self, state):
        return (self.reward(state) + 4 * self.continues(state))[None]


class Quadratic(nn.Module):
    """s' = s + a / 2 and r = v = -|s - goal|^2: J is concave; its optimum goes to `goal` at once and stays there."""

    action_dim = 2

    def __init__(self, goal: tuple[float, float] = (0.2, -0.3)):
        super().__init__()
        self.goal = nn.Parameter(torch.tensor(goal, dtype=torch.float64))

    def step(self, state, action):
        return state + action / 2

    def reward(self, state):
        return -(state - self.goal).square().sum(-1)

    def value(self, state):
        return self.reward(state).expand(2, *state.shape[:-1])

    def policy(self, state):
        return Squashed(0.5 * state, torch.full_like(state, 0.5))


class Deaf(Smooth):
    """`Smooth` whose step ignores the action."""

    def step(self, state, action):
        return torch.tanh(state @ self.carry)


class Broken(Smooth):
    """`Smooth` in which one `part` returns `value` where the state's mark, its last entry, is above 10.

    The mark is copied from state to state and has no other effect.
    """

    def __init__(self, part: str, bad: float = torch.nan, **settings):
        super().__init__(**settings)
        self.part, self.bad = part, bad

    def _spoil(self, part, marked, x):
        return torch.where(marked, self.bad, x) if part == self.part else x

    def step(self, state, action):
        body, mark = state[..., :-1], state[..., -1:]
        return torch.cat([self._spoil("step", mark > 10, super().step(body, action)), mark], dim=-1)

    def reward(self, state):
        return self._spoil("reward", state[..., -1] > 10, super().reward(state[..., :-1]))

    def value(self, state):
        return self._spoil("value", state[..., -1] > 10, super().value(state[..., :-1]))

    def policy(self, state):
        mean, std = super().policy(state[..., :-1])
        return self.distribution(self._spoil("policy", state[..., -1:] > 10, mean), std)


class Cliff(Smooth):
    """`Smooth` whose reward is NaN once a candidate's first action entry has been positive."""

    def step(self, state, action):
        body, fell = state[..., :-1], state[..., -1:]
        fell = torch.maximum(fell, (action[..., :1] > 0).to(fell.dtype))
        return torch.cat([super().step(body, action), fell], dim=-1)

    def reward(self, state):
        return torch.where(state[..., -1] > 0, torch.nan, super().reward(state[..., :-1]))

    def value(self, state):
        return super().value(state[..., :-1])

    def policy(self, state):
        return super().policy(state[..., :-1])


class Kinked(Smooth):
    """`Smooth` whose reward is finite but whose gradient is not, for states far on the positive side."""

    def reward(self, state):
        zero = torch.where(state[..., 0] > 0.9, state[..., 0] - state[..., 0], 1.0)
        return super().reward(state) + zero.sqrt()


class Bare:
    """Dynamics and reward alone, no actor and no critic; the reward of a marked state is NaN, as in `Broken`."""

    action_dim = 2

    def __init__(self):
        self.inner = Broken("reward")

    def step(self, state, action):
        return self.inner.step(state, action)

    def reward(self, state):
        return self.inner.reward(state)


class Linear:
    """x' = A x + B a and r = -|C (x - goal)|^2 - cost |a|^2; the state is (x, last action), so that r can charge it.

    The one value head is r + discount * -(x' P x); the policy's mode is -(gain x), squashed by tanh, with noise.
    """

    def __init__(self, a, b, c, goal, cost, discount, p, gain, std=0.3):
        self.a, self.b, self.c, self.goal, self.p, self.gain = a, b, c, goal, p, gain
        self.cost, self.discount, self.std = cost, discount, std
        self.action_dim = b.shape[1]

    def step(self, state, action):
        return torch.cat([state[..., : len(self.a)] @ self.a.T + action @ self.b.T, action], dim=-1)

    def reward(self, state):
        x, action = state[..., : len(self.a)], state[..., len(self.a) :]
        return -((x - self.goal) @ self.c.T).square().sum(-1) - self.cost * action.square().sum(-1)

    def value(self, state):
        x = state[..., : len(self.a)]
        return (self.reward(state) - self.discount * (x @ self.p * x).sum(-1))[None]

    def policy(self, state):
        mean = -state[..., : len(self.a)] @ self.gain.T
        return Squashed(mean, torch.full_like(mean, self.std))


class TwoBumps:
    """The state is the last action; a low bump at -0.5, where the policy's samples are, and a high one at 0.7."""

    action_dim, low, high = 1, -0.5, 0.7

    def step(self, state, action):
        return action + 0 * state

    def reward(self, state):
        def bump(center):
            return torch.exp(-((state[..., 0] - center) / 0.12).square() / 2)

        return 0.5 * bump(self.low) + bump(self.high)

    def value(self, state):
        return self.reward(state)[None]

    def policy(self, state):
        return Squashed(torch.full_like(state, self.low - 0.1).atanh(), torch.full_like(state, 0.05))
