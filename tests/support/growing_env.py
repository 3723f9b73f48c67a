"""`tests.support.growing_env:make`: an environment's first two episodes end after 5 steps, later ones after 50."""

from tests.example_env import DotEnv


class GrowingEnv(DotEnv):
    """As a task that ends on failure: shorter than a sequence at first."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        image, reward, terminated, _, info = super().step(action)
        return image, reward, terminated, self.steps >= (5 if self.episodes <= 2 else 50), info


def make():
    return GrowingEnv()
