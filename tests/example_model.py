"""A custom world model: a point mass that Dream-MPC pushes to the origin."""

import torch

from dreamer_mpc.networks import TanhNormal
from dreamer_mpc.planners import make_planner


class PointMass:
    action_dim = 1

    def step(self, state, action):  # [*, 2], [*, 1] -> [*, 2]
        position, velocity = state[..., :1], state[..., 1:]
        velocity = velocity + 0.1 * action
        return torch.cat([position + 0.1 * velocity, velocity], dim=-1)

    def reward(self, state):  # [*, 2] -> [*]
        return -state.square().sum(-1)

    def value(self, state):  # [*, 2] -> [K, *], each including the reward of its state
        return torch.stack([10 * self.reward(state), 11 * self.reward(state)])

    def policy(self, state):  # a policy that knows nothing
        mean = torch.zeros_like(state[..., :1])
        return TanhNormal(mean, mean + 0.3)


def drive(steps=100):
    planner, model, memory = make_planner("dream-mpc", iterations=20, step_size=0.2, grad_clip=100), PointMass(), None
    state = torch.tensor([[1.0, 0.0]])  # [B, S]
    for _ in range(steps):
        plan = planner.plan(model, state, memory)
        state, memory = model.step(state, plan.action), plan.memory
    return state


if __name__ == "__main__":
    print(f"from (1, 0) to {drive()[0].tolist()}")
