"""States of random generators in a form that a checkpoint can hold."""

import json
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch, NumPy and Python; custom environments may use the latter two."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def global_state(device: torch.device) -> dict[str, Any]:
    """States of the generators of torch (host and `device`), NumPy and Python."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": json.dumps(numpy),
        "python": json.dumps(random.getstate()),
    }


def restore_global_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore `global_state`. A GPU's generator is left unchanged if the state is of a run without a GPU."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    numpy = json.loads(state["numpy"])
    numpy["state"]["key"] = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy)
    version, words, gauss = json.loads(state["python"])
    random.setstate((version, tuple(words), gauss))


def generator_state(generator: np.random.Generator) -> str:
    """State of one NumPy generator, as text because its integers have 128 bits."""
    return json.dumps(generator.bit_generator.state)


def restore_generator(generator: np.random.Generator, state: str) -> None:
    """Restore `generator_state`."""
    generator.bit_generator.state = json.loads(state)
