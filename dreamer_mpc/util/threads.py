"""How torch's threads wait for work. This module must be imported before torch, and imports nothing of it."""

import os


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user chose otherwise; of no effect once torch is loaded.

    By default they spin. Where another program needs the same cores, a spinning thread takes the time of the one that
    it waits for: training is then several times slower.
    """
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys()
    if not chosen:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
