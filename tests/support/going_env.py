"""The README's environment, able to go back to a copied state."""

from dreamer_mpc.envs import Restorable
from tests.example_env import DotEnv


class GoingDot(DotEnv, Restorable):
    """`DotEnv`, whose state is the dot's place and the number of steps."""

    def get_state(self):
        return self.position.copy(), self.steps

    def set_state(self, state):
        self.position, self.steps = state[0].copy(), state[1]
        return self.draw()


def make():
    return GoingDot()
