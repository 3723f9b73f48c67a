"""Tests run with the shapes in the signatures checked."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  jaxtyping looks the checker up by its dotted name

# Installed before any test imports the package; the hook stays for the whole run.
install_import_hook("dreamer_mpc", "tests.typecheck.check")
