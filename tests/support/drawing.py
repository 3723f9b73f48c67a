"""Random numbers that do not depend on how many are drawn in one call."""

import torch

LONGEST = 100


class Draws:
    """In place of `torch.rand` ("uniform_") or `torch.randn` ("normal_"): each step of a sequence has its own draws.

    They are the same however many steps are drawn in one call; those of other sizes are independent.
    """

    def __init__(self, kind):
        self.kind, self.taken = kind, {}

    def __call__(self, *size, device=None, **_):
        steps, *others = size[0] if isinstance(size[0], tuple) else size
        begin = self.taken.get(tuple(others), 0)
        self.taken[tuple(others)] = begin + steps
        generator = torch.Generator().manual_seed(len(others) + sum(others))
        every = getattr(torch.empty(LONGEST, *others), self.kind)(generator=generator)
        assert begin + steps <= LONGEST
        return every[begin : begin + steps].to(device)
