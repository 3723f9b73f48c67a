#!/usr/bin/env bash
# Set up a clean clone: a virtual environment in .venv, the tested versions, a working OpenGL.
# Safe to run again. PYTHON=... chooses the interpreter (3.11 or 3.12).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-}
for candidate in python3 python3.12 python3.11; do
  [ -n "$python" ] && break
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then python=$candidate; fi
done
[ -n "$python" ] || { echo "error: Python 3.11 or 3.12 is needed: install one, or name it with PYTHON=..." >&2; exit 2; }

[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'

has_gl() { .venv/bin/python -c 'from envs import choose_gl_backend; choose_gl_backend()' 2>/dev/null; }
if ! has_gl && command -v apt-get >/dev/null; then
  sudo=; [ "$(id -u)" = 0 ] || sudo=$(command -v sudo || true)
  if [ "$(id -u)" = 0 ] || [ -n "$sudo" ]; then
    echo "no OpenGL found: installing libegl1 and libgl1"
    $sudo apt-get update -qq && $sudo apt-get install -y -qq libegl1 libgl1 >/dev/null
  fi
fi
has_gl || echo "warning: no OpenGL yet; .venv/bin/python run.py doctor says what to install" >&2
