# %% [markdown]
# Load a trained agent, play with it, look at what it imagines. Cells as in VS Code, Spyder and jupytext; it also runs
# as `python examples/play.py` in a clone, in a few seconds on a CPU.

# %%
import numpy as np

import dreamer_mpc

agent = dreamer_mpc.load("pretrained/cheetah-run")
env = agent.make_env()

# %% [markdown]
# A player takes images and gives actions; it keeps the latent state, the last action and the last plan itself.

# %%
player = agent.player("dream-mpc-cpu", horizon=5, seed=0)
image, _ = env.reset(seed=0)
rewards, images = [], []
for _ in range(20):
    image, reward, terminated, truncated, _ = env.step(player(image))
    rewards.append(reward)
    images.append(image)
print(f"{len(rewards)} steps, return {sum(rewards):.1f}, J of the last plan {float(player.value):.1f}")

# %% [markdown]
# From the state after the last image: what the policy would do, the rewards that the model expects, and its pictures.

# %%
dream = agent.imagine(player.state, horizon=15)
pictures = agent.decode(dream.states)  # uint8 [15, 64, 64, 3]
print(f"the model expects {dream.rewards.sum():.1f} in {len(dream.rewards)} steps; pictures {pictures.shape}")

# %% [markdown]
# The same along actions of one's own: standing still earns less.

# %%
still = agent.imagine(player.state, np.zeros((15, agent.action_dim), np.float32))
print(f"without moving it expects {still.rewards.sum():.1f}")

# %% [markdown]
# Several environments at once are rows; `reset(mask)` begins a new episode in some of them.

# %%
both = agent.player("policy")
actions = both(np.stack([images[0], images[1]]))  # float32 [2, A]
both.reset(np.array([True, False]))
actions = both(np.stack([images[2], images[2]]))
print(f"two environments: actions {actions.shape}")
env.close()
