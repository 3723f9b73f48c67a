"""README is short, its commands work one after the other, and those of all pages are understood."""

import re
import shlex

import pytest

from dreamer_mpc import config as settings
from dreamer_mpc.sweeps.launchers import SweepCommandConfig
from tests.support.agents import CHEAP, LENGTHS
from tests.support.commands import ROOT, quietly

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = [*LENGTHS, *CHEAP, "--num-envs", "1"]
PLAYED = ["--episodes", "1", "--num-envs", "1", "--render-quality", "fast"]


def commands_in(text):
    """The words behind `python run.py` of each line of code, without comments; lines that end in a backslash go on."""
    lines = re.findall(r"^(?: {4,6})?python run\.py .*$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True)[2:] for line in lines]


def test_readme_is_short():
    assert len(README.split()) <= 1200


def test_readme_s_commands_work_one_after_the_other(tmp_path, monkeypatch):
    evaluate, train, compare, resume, _, own, initial = commands_in(README)
    monkeypatch.chdir(tmp_path)
    for name in ("pretrained", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)

    def works(words, *smaller):
        done = quietly(*words, *smaller)
        assert done.code == 0, (words, done.out + done.err)
        return done.out

    assert "dream-mpc-cpu" in works(evaluate, *PLAYED, "--no-video", "--out", tmp_path / "eval")
    folder = "runs/cheetah-run-dream-mpc-seed0"
    works(train, "--config", "quick", *SMALL, "--render-quality", "fast", "--run-dir", folder)
    assert folder in compare and folder in resume
    assert "mppi" in works(compare, *PLAYED)
    assert "complete" in works(resume)
    works(own, *SMALL)
    of_dot = [*own[:-1], "runs/fine", *initial[2:-1], "runs/dot"]  # README's own example has another environment
    assert "weights of world model" in works(of_dot, *SMALL)
    works(["report", "runs/dot"])
    assert (tmp_path / "runs" / "dot").is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page):
    schemas = {
        "eval": settings.EvalConfig, "compare": settings.CompareConfig, "analyze": settings.AnalyzeConfig,
        "plot": settings.PlotConfig, "sweep": SweepCommandConfig,
    }  # fmt: skip
    for words in commands_in(page.read_text()):
        name, rest = (words[0], words[1:]) if not words[0].startswith("-") else ("train", words)
        if "..." in rest or name not in {"train", *schemas}:
            continue
        if name == "train":
            preset = settings.load_presets(settings.option(rest, "config") or "default")
            settings.check_start(settings.evaluated_alike(settings.parse(settings.Config, rest, preset), rest))
        elif name == "sweep":
            settings.parse_some(SweepCommandConfig, rest, prog="sweep")
        else:
            settings.parse(schemas[name], rest)
