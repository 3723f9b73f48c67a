#!/usr/bin/env bash
# Set up a clean clone: a virtual environment in .venv, the tested versions, a working OpenGL.
# Safe to run again. PYTHON=... chooses the interpreter (3.11 or 3.12); TORCH=cpu takes the CPU build of torch, without
# the libraries of CUDA, from torch's own index.
set -euo pipefail
cd "$(dirname "$0")/.."

began=$SECONDS
# Says every half minute that a long step still runs, and at its end how long it took.
timed() {
  local start=$SECONDS status=0 next=30
  "$@" &
  local job=$!
  trap 'kill $job 2>/dev/null' INT TERM
  while kill -0 $job 2>/dev/null; do
    sleep 1
    if [ $((SECONDS - start)) -ge $next ]; then
      echo "  still at it, $next s"
      next=$((next + 30))
    fi
  done
  wait $job || status=$?
  trap - INT TERM
  [ $status != 0 ] || echo "  done in $((SECONDS - start)) s"
  return $status
}
fail() { echo "error: $*" >&2; exit 2; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
fits() { case $(version "$1") in 3.11 | 3.12) true ;; *) false ;; esac; }
unfit() { local found; found=$(version "$1") && echo "$1 is Python $found" || echo "$1 does not run"; }

python=${PYTHON:-}
if [ -n "$python" ]; then
  fits "$python" || fail "$(unfit "$python"): name Python 3.11 or 3.12 with PYTHON=..."
else
  for candidate in python3 python3.12 python3.11; do
    if fits "$candidate"; then python=$candidate; break; fi
  done
  [ -n "$python" ] || fail "$(unfit python3), and there is no python3.12 or python3.11: install one, or name it with PYTHON=..."
fi

if [ -x .venv/bin/python ]; then
  fits .venv/bin/python || fail "$(unfit .venv/bin/python), 3.11 or 3.12 is needed: remove .venv and run this again"
  if [ -n "${PYTHON:-}" ] && [ "$(version .venv/bin/python)" != "$(version "$python")" ]; then
    fail "$(unfit .venv/bin/python), but PYTHON=$python is $(version "$python"): remove .venv and run this again"
  fi
  echo "using .venv (Python $(version .venv/bin/python))"
elif [ -e .venv ] || [ -L .venv ]; then
  fail ".venv is there and is no virtual environment: remove it and run this again"
else
  echo "making .venv with $python (Python $(version "$python"))"
  "$python" -m venv .venv || fail "$python cannot make .venv: on Debian and Ubuntu, apt-get install python$(version "$python")-venv"
fi
index=()
case ${TORCH:-} in
  cpu) index=(--extra-index-url https://download.pytorch.org/whl/cpu) ;;
  "") ;;
  *) fail "TORCH=$TORCH: cpu is the only choice; leave it out for the build that pip chooses" ;;
esac
echo "installing the tested versions of constraints.txt into .venv (one to five minutes at first, mostly torch)"
timed .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "${index[@]}" -e '.[test,wandb]'

has_gl() { .venv/bin/python -c 'from dreamer_mpc.envs import choose_gl_backend; choose_gl_backend()' 2>/dev/null; }
if ! has_gl && command -v apt-get >/dev/null; then
  sudo=; [ "$(id -u)" = 0 ] || sudo=$(command -v sudo || true)
  if [ "$(id -u)" = 0 ] || [ -n "$sudo" ]; then
    echo "no OpenGL found: installing libegl1 and libgl1"
    { $sudo apt-get update -qq && $sudo apt-get install -y -qq libegl1 libgl1 >/dev/null; } ||
      echo "warning: apt-get could not install them" >&2
  fi
fi
if has_gl; then
  echo "ready after $((SECONDS - began)) s: .venv/bin/python run.py doctor says what this machine has"
else
  echo "warning: no OpenGL yet; .venv/bin/python run.py doctor says what to install" >&2
fi
