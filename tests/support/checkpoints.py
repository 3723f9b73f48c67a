"""Comparing the contents of checkpoints, a hostile checkpoint, and those of both families."""

import torch

from dreamer_mpc.config import Config, load_presets, option, parse, resolve, to_dict
from dreamer_mpc.config.make import make_agent
from dreamer_mpc.data.collect import Counters
from dreamer_mpc.runs.checkpoint import Checkpoint, as_payload, load_checkpoint
from dreamer_mpc.runs.payload import write_payload
from tests.support.agents import ACTION_DIM, FAMILIES, make_batch

TRAINING_FIELDS = {  # fields of a run's checkpoint besides its agent, with unusual values
    "training": {"finished": False, "returns": [1.0, float("nan")]},
    "records": 3,
    "collector": {"begun": torch.tensor([True, False])},
    "replay": {"oldest": torch.tensor([0])},
    "replay_files": [{"number": 0, "sha256": "0" * 64, "starts": [0], "ends": [5]}],
    "replay_needs": {"2000": 0},
    "random": {"torch": torch.arange(9, dtype=torch.uint8), "python": (3, (1, 2), None)},
}


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def equal(a, b):
    """Same structure, types and bits."""
    if isinstance(a, torch.Tensor):
        one, other = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and one.equal(other)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def make_checkpoint(env_steps=2000, **fields):
    """A checkpoint of an agent with two weights."""
    weights = {"world_model.a": torch.arange(6.0).reshape(2, 3), "actor.b": torch.ones(2, dtype=torch.bfloat16)}
    fields = {"agent": {"model": weights}, "agent_kind": "dreamer"} | fields
    config = {"env": "cheetah-run", "optimizer": {"eps": 1e-7}, "run_dir": None}
    return Checkpoint(config, Counters(env_steps, 1000, 7, 2), 6, world_model_kind="gaussian", **fields)


def family_checkpoint(family, *args, action_dim=ACTION_DIM):
    """The checkpoint of a small agent of one of `FAMILIES`, after two updates; without the state of a run."""
    given = [*FAMILIES[family], *map(str, args)]
    config = resolve(parse(Config, given, load_presets(option(given, "config"))))
    torch.manual_seed(0)
    agent = make_agent(config, action_dim, torch.device("cpu"))
    for _ in range(2):
        agent.update(make_batch(action_dim=action_dim))
    kinds = {"agent_kind": agent.kind, "world_model_kind": agent.world_model_kind}
    return Checkpoint(to_dict(config), Counters(16, 16, 2, 2), action_dim, agent=agent.state_dict(), **kinds)


def as_version_2(checkpoint):
    """The payload of format 2, which does not name kinds."""
    payload = as_payload(checkpoint)
    return {name: payload[name] for name in payload if name not in ("agent_kind", "world_model_kind")}


def rewrite_as_version_2(path):
    """Turn a checkpoint file into one of format 2."""
    write_payload(path, as_version_2(load_checkpoint(path)), 2)
