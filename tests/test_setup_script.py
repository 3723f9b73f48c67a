"""scripts/setup.sh says what it does and what an unfit Python is; its interpreters are stand-ins here."""

import os
import re
import shutil
import subprocess

import pytest

from tests.support.commands import ROOT


def stand_in(path, version):
    """An interpreter of `version` that makes a copy of itself as .venv and notes what else it is asked; '' breaks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""#!/bin/sh
[ -n "{version}" ] || exit 1
echo "{version} $*" >> "$NOTES"
case "$*" in *version_info*) echo {version} ;; "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac
"""
    )
    path.chmod(0o755)


def set_up(folder, pythons, **variables):
    """Run the script in a clone at `folder` where only `pythons`, name -> version, are found."""
    (folder / "scripts").mkdir(exist_ok=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", folder / "scripts")
    for name in ("dirname", "id", "mkdir", "cp", "bash", "sh", "sleep"):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).unlink(missing_ok=True)
        (folder / "bin" / name).symlink_to(shutil.which(name))
    for name, version in pythons.items():
        stand_in(folder / "bin" / name, version)
    environment = {"PATH": str(folder / "bin"), "NOTES": str(folder / "notes"), **variables}
    command = [str(folder / "bin" / "bash"), str(folder / "scripts" / "setup.sh")]
    return subprocess.run(command, env=environment, cwd=os.sep, capture_output=True, text=True)


def test_it_says_what_it_does_and_is_safe_to_run_again(tmp_path):
    first = set_up(tmp_path, {"python3": "3.13", "python3.12": "3.12"})
    assert first.returncode == 0 and first.stderr == ""
    assert first.stdout.startswith("making .venv with python3.12 (Python 3.12)\ninstalling ")
    assert re.search(r"\n  done in \d+ s\n(.*\n)*ready after \d+ s: ", first.stdout), "it says how long that took"
    again = set_up(tmp_path, {})
    assert again.returncode == 0 and again.stdout.startswith("using .venv (Python 3.12)\n")
    assert "3.12 -m pip install" in (tmp_path / "notes").read_text()


def test_an_installation_that_fails_is_no_success(tmp_path):
    set_up(tmp_path, {"python3": "3.12"})
    (tmp_path / ".venv/bin/python").write_text('#!/bin/sh\ncase "$*" in *pip*) exit 7 ;; *) echo 3.12 ;; esac\n')
    done = set_up(tmp_path, {})
    assert done.returncode == 7 and "done in" not in done.stdout and "ready" not in done.stdout


@pytest.mark.parametrize(
    "pythons, asked, said",
    [
        ({"python3": "3.13"}, None, "python3 is Python 3.13, and there is no python3.12 or python3.11: install one"),
        ({}, None, "python3 does not run, and there is no"),
        ({"python3": "3.12", "old": "3.9"}, "old", "old is Python 3.9: name Python 3.11 or 3.12 with PYTHON="),
        ({"python3": "3.12"}, "/nowhere/python", "/nowhere/python does not run: name"),
        ({"python3": "3.12", "broken": ""}, "broken", "broken does not run: name"),
    ],
)
def test_an_unfit_python_is_named_in_one_line(pythons, asked, said, tmp_path):
    done = set_up(tmp_path, pythons, **{"PYTHON": asked} if asked else {})
    assert done.returncode == 2 and done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


def test_another_python_than_that_of_the_environment_is_not_ignored(tmp_path):
    set_up(tmp_path, {"python3": "3.12"})
    done = set_up(tmp_path, {"other": "3.11"}, PYTHON="other")
    assert done.returncode == 2
    assert done.stderr == (
        "error: .venv/bin/python is Python 3.12, but PYTHON=other is 3.11: remove .venv and run this again\n"
    )
    stand_in(tmp_path / ".venv" / "bin" / "python", "3.13")
    assert ".venv/bin/python is Python 3.13, 3.11 or 3.12 is needed: remove .venv" in set_up(tmp_path, {}).stderr


def test_the_cpu_build_of_torch_is_taken_from_its_index_where_that_is_asked_for(tmp_path):
    set_up(tmp_path, {"python3": "3.12"})
    assert "--extra-index-url" not in (tmp_path / "notes").read_text()
    assert set_up(tmp_path, {}, TORCH="cpu").returncode == 0
    assert "--extra-index-url https://download.pytorch.org/whl/cpu -e .[test,wandb]" in (tmp_path / "notes").read_text()
    done = set_up(tmp_path, {}, TORCH="rocm")
    assert done.returncode == 2 and done.stderr.startswith("error: TORCH=rocm: cpu is the only choice")
