"""A linear world with quadratic rewards, where what an analysis measures has a closed form; float64.

    x' = A x + B a      reward r(x') = g x' - x' Q x' / 2

The environment shows x to the last bit, so that the agent, which reads it from the image, is never wrong about the
present. Its model has matrices of its own and additive noise, and K value heads v_k(x) = r(x) + c_k x; its policy is
a = K x, without randomness. An episode has a time limit, `length`, and is terminated where x[0] passes `edge`.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import gymnasium
import numpy as np
import torch
from torch import nn

from dreamer_mpc.agents.protocol import Act, Carry
from dreamer_mpc.analysis.bench import Bench
from dreamer_mpc.envs import Restorable, make_vector_env
from dreamer_mpc.planners.protocol import reset_memory

A = np.array([[0.9, 0.2], [-0.1, 0.8]])
B = np.array([[0.3, 0.0], [0.1, 0.4]])
G = np.array([1.0, -0.5])
Q = np.array([[1.0, 0.3], [0.3, 0.7]])
HEADS = np.array([[0.5, 0.2], [-0.1, 0.6]])
GAIN = np.array([[-0.2, 0.1], [0.1, -0.3]])
MODEL_A = A + np.array([[0.05, -0.1], [0.1, 0.02]])
MODEL_B = B + np.array([[0.1, 0.05], [-0.05, -0.1]])


def reward(x):
    return x @ G - np.einsum("...i,ij,...j", x, Q, x) / 2


def picture(x):
    """x in the first row; a grey level that follows its first entry everywhere else."""
    image = np.full((64, 64, 3), grey(x), np.uint8)
    image[0].flat[:16] = np.frombuffer(np.asarray(x, np.float64).tobytes(), np.uint8)
    return image


def grey(x):
    return int(np.clip(round(128 + 20 * float(x[0])), 0, 255))


def seen(image):
    """The x of an image."""
    return np.frombuffer(np.ascontiguousarray(image)[0].tobytes()[:16], np.float64)


def start(seed):
    """x at the start of an episode."""
    return np.random.default_rng(seed).uniform(-1, 1, 2)


class LinearEnv(gymnasium.Env, Restorable):
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)
    length, edge = 40, np.inf

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = start(seed), 0
        return picture(self.x), {}

    def step(self, action):
        self.x = A @ self.x + B @ action
        self.steps += 1
        over = bool(self.x[0] > self.edge)
        return picture(self.x), float(reward(self.x)), over, not over and self.steps >= self.length, {}

    def get_state(self):
        return self.x.copy(), self.steps

    def set_state(self, state):
        self.x, self.steps = state[0].copy(), state[1]
        return picture(self.x)


def make():
    return LinearEnv()


class Mode(SimpleNamespace):
    """A distribution without randomness."""

    def rsample(self):
        return self.mode


class LinearModel(nn.Module):
    """What planners see."""

    action_dim = noise_dim = 2

    def __init__(self, a=MODEL_A, b=MODEL_B, std=0.0, gain=GAIN):
        super().__init__()
        self.a, self.b, self.gain, self.std = *map(torch.tensor, (a, b, gain)), std
        self.g, self.q, self.heads = map(torch.tensor, (G, Q, HEADS))
        self.world_model = SimpleNamespace(decode=self.decode)

    def noise(self, state):
        return torch.randn_like(state)

    def step(self, state, action, noise=None):
        noise = torch.randn_like(state) if noise is None else noise
        return state @ self.a.T + action @ self.b.T + self.std * noise

    def reward(self, state):
        return state @ self.g - ((state @ self.q) * state).sum(-1) / 2

    def value(self, state):
        return self.reward(state) + torch.stack([state @ head for head in self.heads])

    def policy(self, state):
        return Mode(mode=state @ self.gain.T)

    @staticmethod
    def decode(state):
        levels = np.array([grey(x) for x in state.reshape(-1, 2).numpy()], np.uint8)
        return torch.from_numpy(levels).view(*state.shape[:-1], 1, 1, 1).expand(*state.shape[:-1], 64, 64, 3)


@dataclass
class LinearAgent:
    """Reads x from the image; it has nothing to learn."""

    model: LinearModel = field(default_factory=LinearModel)
    device: torch.device = torch.device("cpu")
    kind: str = "dreamer"
    world_model_kind: str = "gaussian"
    state_dim: int = 2
    notes: tuple = ()

    def update(self, *args):
        raise NotImplementedError

    skipped_updates = state_dict = load_state_dict = update

    def initial(self, batch):
        return Carry(torch.zeros(batch, 2).double(), torch.zeros(batch, 2).double(), None)

    def act(self, planner, carry, image, is_first, action_noise=0.0):
        state = torch.tensor(np.stack([seen(each) for each in image.numpy()]))
        plan = planner.plan(self.model, state, reset_memory(carry.memory, is_first))
        return Act(plan.action, Carry(state, plan.action, plan.memory), plan.model_evaluations, plan.value)


def bench(rows=3, **model):
    """The agent in `rows` of the environment."""
    envs = make_vector_env("tests.support.linear_world:make", rows, workers=False, action_repeat=1)
    return Bench(LinearAgent(LinearModel(**model)), envs)


def ends_at(bench, length=40, edge=np.inf):
    """Let the episodes of every row end there."""
    for env in bench.envs.envs:
        env.unwrapped.length, env.unwrapped.edge = length, edge


def walk(x, actions, a=A, b=B):
    """States [H, 2] under `actions` [H, 2]."""
    states = []
    for action in actions:
        x = a @ x + b @ action
        states.append(x)
    return np.array(states)


def policy_walk(x, steps, a=A, b=B):
    """Actions [H, 2] of the policy, and the states [H, 2] that they lead to."""
    actions, states = [], []
    for _ in range(steps):
        actions.append(GAIN @ x)
        x = a @ x + b @ actions[-1]
        states.append(x)
    return np.array(actions), np.array(states)


def worth(states, discount):
    """Rewards of all states but the last, and the mean value of that."""
    gains = reward(states)
    gains[-1] += states[-1] @ HEADS.mean(0)
    return discount ** np.arange(len(states)) @ gains


def slope(x, actions, discount, a, b, value=True):
    """d worth / d actions [H, 2] by the chain rule, without the values where `value` is false."""
    states, horizon = walk(x, actions, a, b), len(actions)
    toward = [G - Q @ s for s in states]
    if value:
        toward[-1] = toward[-1] + HEADS.mean(0)
    return np.array([
        sum(discount**k * b.T @ np.linalg.matrix_power(a, k - i).T @ toward[k] for k in range(i, horizon))
        for i in range(horizon)
    ])


def slope_deviation(horizon, discount, a, b, std):
    """Standard deviation of each entry of the slope over draws of the noise, [H, 2]."""
    variance = np.zeros((horizon, 2))
    for i in range(horizon):
        for j in range(horizon):  # of the noise in step j
            by = sum(
                discount**k * b.T @ np.linalg.matrix_power(a, k - i).T @ Q @ np.linalg.matrix_power(a, k - j)
                for k in range(max(i, j), horizon)
            )
            variance[i] += std**2 * np.square(by).sum(1)
    return np.sqrt(variance)
