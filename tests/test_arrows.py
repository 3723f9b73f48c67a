"""Imports between folders point one way."""


from scripts.arrows import ORDER, ROOT, arrows, upward


def test_no_import_points_up():
    assert upward(arrows()) == []


def test_every_folder_has_its_place():
    assert {folder.name for folder in ROOT.iterdir() if folder.is_dir() and any(folder.glob("*.py"))} == set(ORDER)
    assert {file.name for file in ROOT.glob("*.py")} <= {"__init__.py", "__main__.py"}


def test_an_import_that_points_up_is_found(tmp_path):
    for folder in ("planners", "agents"):
        (tmp_path / folder).mkdir()
    (tmp_path / "planners" / "cem.py").write_text("from dreamer_mpc.agents.dreamer import Dreamer\n")
    (tmp_path / "agents" / "dreamer.py").write_text("from dreamer_mpc.planners.cem import CEM\n")
    assert upward(arrows(tmp_path)) == ["planners/cem.py imports from agents"]
