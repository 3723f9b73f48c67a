"""A wheel holds everything under its own name, installs beside a user's package `envs`, and is light to import."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from dreamer_mpc.util.program import program
from tests.support.commands import ROOT

BUILT_FROM = ("dreamer_mpc", "envs", "configs", "constraints.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE")
FOREIGN = "from tests.support.counting_env import CountingEnv\n\n\ndef make():\n    return CountingEnv()\n"
USED = """
import sys
import dreamer_mpc
from dreamer_mpc.envs import make_vector_env

assert "torch" not in sys.modules, "torch is loaded only when it is needed"
if __name__ == "__main__":
    import envs, envs.mine
    rows = make_vector_env("envs.mine:make", 1, workers=True)
    rows.reset(seed=[0])
    rows.close()
    from dreamer_mpc.config import load_presets
    from dreamer_mpc.report.curves import published
    assert load_presets("quick,planner/dream-mpc-cpu").replay.batch_size and published("cheetah-run")
    print(envs.__file__, dreamer_mpc.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The bin folder of an environment with the wheel, a user's package `envs`, and the packages of this one."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"symlinks": True} if copy is shutil.copytree else {}))
    shutil.copytree(ROOT / "results" / "reference", source / "results" / "reference")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run([*pip, *built], check=True, cwd=folder)
    venv.create(folder / "venv", symlinks=True)
    (wheel,) = folder.glob("dreamer_mpc-*.whl")
    installing = ["--python", folder / "venv", "install", "--no-deps", "--ignore-installed", wheel]
    subprocess.run([*pip, *installing], check=True, cwd=folder)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (site / "envs").mkdir()
    (site / "envs" / "__init__.py").touch()
    (site / "envs" / "mine.py").write_text(FOREIGN)
    shutil.copytree(ROOT / "tests" / "support", site / "tests" / "support")
    return folder / "venv" / "bin"


def run_in(installed, tmp_path, *command):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([installed / command[0], *command[1:]], env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_wheel_works_beside_a_user_s_package_envs(installed, tmp_path):
    (tmp_path / "use.py").write_text(USED)
    files = run_in(installed, tmp_path, "python", "use.py").split()
    assert len(files) == 2 and all(file.startswith(str(installed.parent / "lib")) for file in files)


def test_the_command_of_a_wheel_names_itself_and_its_tested_versions(installed, tmp_path):
    constraints = run_in(installed, tmp_path, "dreamer-mpc", "--constraints").strip()
    assert open(constraints).read() == (ROOT / "constraints.txt").read_text()
    assert run_in(installed, tmp_path, "python", "-m", "dreamer_mpc", "--version").startswith("dreamer-mpc ")


@pytest.mark.parametrize(
    "called, words",
    [
        ("run.py", "python run.py eval"),
        ("/usr/bin/dreamer-mpc", "dreamer-mpc eval"),
        ("/x/dreamer_mpc/__main__.py", "python -m dreamer_mpc eval"),
    ],
)
def test_lines_to_repeat_name_the_program_as_it_was_called(called, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called])
    assert program("eval") == words
