"""An agent that records its inputs."""

import torch

from dreamer_mpc.agents.protocol import Act, Agent, Carry
from tests.support.counting_env import decode


class Recorder(Agent):
    """An agent that records its inputs; its n-th action is (n / 100, row / 10)."""

    kind, world_model_kind, device, model = "dreamer", "gaussian", torch.device("cpu"), None
    notes = ()

    def __init__(self):
        self.calls = []  # (carry, decoded images, is_first, action_noise)

    def initial(self, batch):
        return Carry(torch.zeros(batch, 1), torch.zeros(batch, 2), None)

    def act(self, planner, carry, image, is_first, action_noise=0.0):
        seen = [decode(x) for x in image.numpy()]
        action = torch.tensor([[len(self.calls) / 100, row / 10] for row in range(len(image))])
        self.calls.append((carry, seen, is_first.tolist(), action_noise))
        return Act(action, Carry(carry.state + 1, action, None), 0, torch.zeros(len(action)))
