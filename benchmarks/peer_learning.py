"""How fast NM512/r2dreamer learns in the environments of a run, as a second opinion on what our DreamerV3 learns.

    git clone https://github.com/NM512/r2dreamer /tmp/r2dreamer
    python -m benchmarks.peer_learning /tmp/r2dreamer --config v3 --env cheetah-run --env-steps 37000 --out FILE

Its own acting and update (`Dreamer.act`, `Dreamer.update`), from its checkout; environments, their seeds, replay with
latent states, random first episodes, and the number of updates are those of `run.py --planner policy` with the same
settings. So what differs from that run are the networks, their losses and the optimizer. `--set` gives its sizes,
12M parameters by default. Prints and writes the mean return of each generation of training episodes.

On a GPU its update is compiled, which took 10 minutes on an H200's host; `--no-compiled` is seven times as slow. On a
CPU it computes in fp32.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from benchmarks import common
from benchmarks.r2dreamer import R2Dreamer
from dreamer_mpc.agents.protocol import Act, Carry, SkippedUpdates, Update
from dreamer_mpc.config import planner_from
from dreamer_mpc.config.make import make_envs, replay_capacity
from dreamer_mpc.data.collect import Collector
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.planners import Planner
from dreamer_mpc.training.schedule import UpdateRatio
from dreamer_mpc.util.counters import Counters
from dreamer_mpc.util.device import choose_device
from dreamer_mpc.util.randomness import seed_everything
from dreamer_mpc.world_model import Batch


class OneBatch:
    """What its update asks of a replay: a batch, the states (stoch, deter) before it, and a place for those learned."""

    def __init__(self, batch: Any, before: tuple[Tensor, Tensor]):
        self.batch, self.before = batch, before
        self.learned: tuple[Tensor, Tensor]

    def sample(self) -> tuple[Any, None, tuple[Tensor, Tensor]]:
        """The batch, no index, and the states before it."""
        return self.batch, None, self.before

    def update(self, index: None, stoch: Float[Tensor, "B T V C"], deter: Float[Tensor, "B T D"]) -> None:
        """The new states of the batch's frames."""
        self.learned = stoch, deter


class PeerAgent:
    """r2dreamer's agent behind our interface (`Agent`) for collecting and learning; state = cat(deter, stoch), [*, S].

    It has no model for planners: its own policy acts.
    """

    kind, world_model_kind, notes, model = "dreamer", "categorical", (), None

    def __init__(self, peer: R2Dreamer, action_dim: int):
        self.peer, self.device, self.action_dim = peer, peer.device, action_dim
        rssm = peer.agent.rssm
        self._deter, self._classes = rssm.initial(1)[1].shape[1], rssm.initial(1)[0].shape[1:]
        self.state_dim = self._deter + self._classes.numel()

    def initial(self, batch: int) -> Carry:
        """Zeros."""
        state = torch.zeros(batch, self.state_dim, device=self.device)
        return Carry(state, state.new_zeros(batch, self.action_dim), None)

    def act(
        self,
        planner: Planner,
        carry: Carry,
        image: UInt8[Tensor, "B H W C"],
        is_first: Bool[Tensor, " B"],
        action_noise: float = 0.0,
    ) -> Act:
        """A sample of its policy; `planner` and `action_noise` are not used."""
        stoch, deter = self._parts(carry.state)
        before = self.peer.columns({"stoch": stoch, "deter": deter, "prev_action": carry.action}, (len(image),))
        seen = self.peer.columns({"image": image, "is_first": is_first[:, None]}, (len(image),))
        action, state = self.peer.agent.act(seen, before)
        action = action.clamp(-1, 1).clone()  # its world model divides an action beyond 1 by its size: the same
        after = Carry(self._joined(state["stoch"], state["deter"]), action, None)
        return Act(action, after, 0, action.new_zeros(len(action)))

    def update(self, batch: Batch) -> Update:
        """One update, without metrics."""
        rows = {name: getattr(batch, name).transpose(0, 1) for name in ("image", "action")}
        names = ("reward", "is_first", "is_terminal")
        rows |= {name: getattr(batch, name).transpose(0, 1)[..., None] for name in names}
        last = rows["is_first"][:, 1:]  # the frame before an episode's first is the last of another
        rows["is_last"] = torch.cat([last, torch.zeros_like(last[:, :1])], dim=1)
        rows = {name: values.contiguous() for name, values in rows.items()}
        given = OneBatch(self.peer.columns(rows, rows["reward"].shape[:2]), self._parts(batch.state))
        self.peer.agent.update(given)
        return Update({}, self._joined(*given.learned).transpose(0, 1))

    def skipped_updates(self) -> SkippedUpdates:
        """None, as far as is known."""
        return SkippedUpdates(0, None)

    def state_dict(self) -> dict[str, Any]:
        """Its weights."""
        return {"model": self.peer.agent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.peer.agent.load_state_dict(state["model"])

    def _parts(self, state: Float[Tensor, "*b S"]) -> tuple[Float[Tensor, "*b V C"], Float[Tensor, "*b D"]]:
        return state[..., self._deter :].unflatten(-1, self._classes).clone(), state[..., : self._deter].clone()

    @staticmethod
    def _joined(stoch: Float[Tensor, "*b V C"], deter: Float[Tensor, "*b D"]) -> Float[Tensor, "*b S"]:
        return torch.cat([deter.float(), stoch.flatten(-2).float()], dim=-1)


def learn(config: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows: env steps, updates and seconds at the end of each generation of episodes, and its mean return."""
    device, rows = choose_device(config.device), []
    seed_everything(config.seed)
    envs = make_envs(config, config.num_envs, device)
    try:
        action_dim = envs.single_action_space.shape[0]
        compiled = args.compiled and device.type == "cuda"
        sizes = {"batch_size": config.replay.batch_size, "batch_length": config.replay.sequence_length}
        sizes |= {"model.imag_horizon": config.behavior.horizon, "model.lr": config.optimizer.lr}
        sizes |= {"model.warmup": config.optimizer.warmup}
        given = [*(f"{name}={value}" for name, value in sizes.items()), *args.set]
        agent = PeerAgent(R2Dreamer(args.checkout.resolve(), device, "12M", compiled, given, action_dim), action_dim)
        if device.type == "cpu":  # products in fp16, which it asks for, are slow there
            sys.modules["dreamer"].autocast = lambda **_: contextlib.nullcontext()
        counters, capacity = Counters(), replay_capacity(config)
        replay = Replay(capacity, action_dim, config.num_envs, device=device, seed=config.seed,
                        state_dim=agent.state_dim, across_episodes=config.replay.across_episodes)  # fmt: skip
        collector, planner = Collector(envs, agent, replay, counters, config.seed), planner_from(config, "policy")
        while counters.episodes < config.train.seed_episodes:
            collector.send(None, most=config.train.seed_episodes - counters.episodes)
            collector.receive()
        train = config.train
        ratio = UpdateRatio(train.updates, train.every, counters.env_steps, config.env_steps, lead=train.updates)
        returns, start = [], time.perf_counter()
        while counters.env_steps < config.env_steps:
            returns += collector.collect(counters.env_steps + 1, planner)
            for _ in range(ratio.issue(counters.env_steps)):
                batch = replay.sample(config.replay.batch_size, config.replay.sequence_length)
                replay.refresh(batch.index, agent.update(batch).states)
            if len(returns) >= config.num_envs:
                row = {"env_steps": counters.env_steps, "updates": ratio.issued, "return": sum(returns) / len(returns)}
                rows.append(row | {"seconds": time.perf_counter() - start})
                returns = []
                print("  ".join(f"{name} {common.show(value)}" for name, value in rows[-1].items()), flush=True)
        return rows
    finally:
        envs.close()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Learn, print, write."""
    parser = common.parser(__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--set", nargs="+", default=[], help="settings of its configuration: model.deter=64")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    args, rest = parser.parse_known_args(argv)
    config = common.parse_settings(rest)
    record = {"benchmark": "peer_learning", **common.describe(choose_device(config.device))}
    record |= {"env": config.env, "seed": config.seed, "set": args.set, "rows": learn(config, args)}
    common.write(args.out, record)
    return record


if __name__ == "__main__":
    main()
