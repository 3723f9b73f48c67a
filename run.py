#!/usr/bin/env python
"""dreamer-mpc from a clone: python run.py [COMMAND] [options]; python run.py --help lists the commands."""

from dreamer_mpc.__main__ import main, run

__all__ = ["main"]

if __name__ == "__main__":
    run()
