#!/usr/bin/env python
"""dreamer-mpc from a clone: python run.py [train|eval|compare|analyze|sweep|plot|doctor] [options]; or train."""

import sys

from dreamer_mpc.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
