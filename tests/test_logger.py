import json
import math
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from dreamer_mpc.report.video import write_mp4
from dreamer_mpc.runs import logger as logger_module
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.logger import Logger, read_metrics
from dreamer_mpc.util.errors import UserError
from tests.support.commands import counters, env_steps_in


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def write(folder, *steps):
    with Logger(folder) as logger:
        for env_steps in steps:
            logger.write(counters(env_steps), {"train/return": float(env_steps)})


def strict(line):
    """Parse strict JSON: Python's parser would accept NaN and Infinity."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(line, parse_constant=refuse)


def test_a_record_has_counters_time_and_metrics_and_is_on_disk_at_once(folder):
    logger = Logger(folder)
    logger.write(counters(1000), {"train/return": 12.5})
    (line,) = folder.metrics.read_text().splitlines()
    record = strict(line)
    assert list(record) == ["env_steps", "agent_steps", "updates", "episodes", "time_s", "train/return"]
    assert record.pop("time_s") >= 0
    assert record == {**counters(1000), "train/return": 12.5}
    logger.close()


def test_any_number_is_taken_and_those_that_are_not_finite_are_valid_json_and_read_as_nan(folder):
    with Logger(folder) as logger:
        numbers = {"d": 1, "e": np.float32(0.5), "f": np.int64(2)}
        logger.write(counters(1), {"a": math.nan, "b": math.inf, "c": -math.inf} | numbers)
        logger.truncate(1)
    record = strict(folder.metrics.read_text())
    assert [record[name] for name in "abcdef"] == [None, None, None, 1.0, 0.5, 2.0]
    (record,) = read_metrics(folder.metrics)
    assert math.isnan(record["a"]) and math.isnan(record["b"])


@pytest.mark.parametrize("missing", logger_module.COUNTERS)
def test_a_missing_counter_or_a_metric_of_its_name_is_refused_and_nothing_written(folder, missing):
    three = {name: value for name, value in counters(1).items() if name != missing}
    with Logger(folder) as logger:
        with pytest.raises(ValueError, match=missing):
            logger.write(three, {})
        with pytest.raises(ValueError, match=missing):
            logger.write(counters(1), {missing: 1.0})
    assert folder.metrics.read_text() == ""


def test_a_torn_last_line_is_left_out(folder):
    write(folder, 1, 2)
    text = folder.metrics.read_text()
    for cut in range(1, len(text.splitlines()[1])):
        folder.metrics.write_text(text[: -1 - cut])
        assert env_steps_in(folder) == [1]


def test_no_file_is_named_and_so_is_a_bad_line_in_the_middle(folder):
    with pytest.raises(UserError, match="no metrics"):
        read_metrics(folder.metrics)
    write(folder, 1)
    folder.metrics.write_text("{broken\n" + folder.metrics.read_text())
    with pytest.raises(UserError, match="line 1"):
        read_metrics(folder.metrics)


LINE = '{"env_steps": 5, "agent_steps": 2, "updates": 0, "episodes": 0, "time_s": 1.5, "x": 1}'


@pytest.mark.parametrize("line, said", [
    ("{}", "line 3 is no record"), ("[1, 2]", "line 3 is no record"), ("7", "line 3 is no record"),
    (LINE.replace("1.5", "null"), "line 3 is no record"), (LINE.replace('"x": 1', '"x": "one"'), "line 3 is no record"),
    (LINE.replace('"x": 1', f'"x": {10**400}'), "line 3 is no record"), ("[" * 100_000 + "\n" + LINE, "no JSON record"),
    (LINE, "line 3 is the same as line 2"), (LINE.replace("5", "4", 1), "line 3 goes back from env step 5 to 4"),
])  # fmt: skip
def test_a_line_that_is_no_later_record_is_named(folder, line, said):
    write(folder, 1)
    with folder.metrics.open("a") as file:
        file.write(f"{LINE}\n{line}\n")
    for read in (lambda: read_metrics(folder.metrics), lambda: Logger(folder)):
        with pytest.raises(UserError, match=said):
            read()


def test_a_folder_in_place_of_the_metrics_is_named(folder):
    folder.metrics.mkdir()
    with pytest.raises(UserError, match="metrics.jsonl .*move away the folder"):
        Logger(folder)


def test_records_after_a_checkpoint_do_not_move_up_where_earlier_ones_are_lost(folder):
    write(folder, 1, 2, 3, 4)
    folder.metrics.write_text("".join(folder.metrics.read_text().splitlines(keepends=True)[1:]))
    with Logger(folder) as logger:
        logger.truncate(3, 3)
        assert logger.records == 2
    assert env_steps_in(folder) == [2, 3]


def test_appending_after_a_torn_line_does_not_glue_to_it(folder):
    write(folder, 1, 2)
    folder.metrics.write_text(folder.metrics.read_text()[:-5])
    write(folder, 3)
    assert env_steps_in(folder) == [1, 3]


def test_truncate_drops_what_lies_past_the_checkpoint(folder):
    write(folder, 1000, 2000, 3000, 4000)
    with Logger(folder) as logger:
        assert logger.records == 4
        logger.truncate(2)
        assert env_steps_in(folder) == [1000, 2000]
        logger.write(counters(3000), {})
        assert logger.records == 3
    assert env_steps_in(folder) == [1000, 2000, 3000]
    assert [path.name for path in folder.path.iterdir()] == ["metrics.jsonl"]


def test_time_goes_on_from_the_records_that_are_kept(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logger_module.time, "monotonic", lambda: now[0])
    with Logger(folder) as logger:
        for env_steps in (1, 2):
            now[0] += 50
            logger.write(counters(env_steps), {})
    now[0] = 7.0
    with Logger(folder) as logger:
        logger.truncate(1)
        now[0] += 5
        logger.write(counters(2), {})
    assert [record["time_s"] for record in read_metrics(folder.metrics)] == [50.0, 55.0]


def test_no_writer_is_imported_unless_asked(tmp_path):
    code = (
        "import sys, dreamer_mpc.runs.logger as l, dreamer_mpc.runs.folder as r\n"
        "import dreamer_mpc.training.progress, dreamer_mpc.report.tables, dreamer_mpc.report.video\n"
        f"l.Logger(r.RunFolder(r.Path({str(tmp_path)!r}))).close()\n"
        "names = ('wandb', 'tensorboard', 'matplotlib', 'imageio', 'cv2')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("backend, module", [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_package_is_named(folder, monkeypatch, backend, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"pip install {backend}"):
        Logger(folder, backend)


class FakeWandb:
    """Replaces the wandb module and its run; records the calls."""

    def __init__(self):
        self.logged = []

    def Settings(self, **settings):
        return settings

    def init(self, **arguments):
        self.arguments = arguments
        return self

    def define_metric(self, name, step_metric):
        self.axis = name, step_metric

    def log(self, values):
        self.logged.append((values[self.axis[1]], values["train/return"]))

    def finish(self):
        self.finished = True


@pytest.mark.parametrize("said, mode", [(None, "offline"), ("", "offline"), ("online", "online")])
def test_wandb_is_offline_unless_told_otherwise(folder, monkeypatch, said, mode):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if said is not None:
        monkeypatch.setenv("WANDB_MODE", said)
    folder.write_config("seed: 3\n")
    with Logger(folder, "wandb") as logger:
        logger.write(counters(2000), {"train/return": 1.0})
    assert fake.arguments["mode"] == mode
    assert fake.arguments["config"] == {"seed": 3}
    assert fake.logged == [(2000, 1.0)]
    assert fake.axis == ("*", "env_steps")
    assert fake.finished
    begun = fake.arguments["id"]
    with Logger(folder, "wandb"):
        assert fake.arguments["id"] == begun and fake.arguments["resume"] == "allow", "a resumed run goes on with it"
    with Logger(RunFolder(folder.path / "other"), "wandb"):
        assert fake.arguments["id"] != begun


def test_tensorboard_axes_are_env_steps_and_truncation_purges(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Logger(folder, "tensorboard") as logger:
        logger.write(counters(1000), {"train/return": 1.0})
        logger.write(counters(2000), {"train/return": 2.0})
        logger.truncate(1)
        logger.write(counters(3000), {"train/return": 3.0})
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/return")] == [(1000, 1.0), (3000, 3.0)]


def test_tensorboard_gets_the_picture_and_the_video_of_an_evaluation(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture, video = folder.path / "a-decision.png", folder.path / "a.mp4"
    cv2.imwrite(str(picture), np.zeros((30, 40, 3), np.uint8))
    write_mp4(video, np.zeros((10, 64, 96, 3), np.uint8), 5)
    said = []
    with Logger(folder, "tensorboard", said.append) as logger:
        logger.show(1000, picture)
        logger.show(1000, video)
        logger.show(1000, folder.path / "missing.mp4")
        logger.write(counters(2000), {"train/return": 1.0})
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    (shown,) = events.Images("eval/decision")
    assert (shown.step, shown.height, shown.width) == (1000, 30, 40)
    assert events.Images("eval/video")[0].encoded_image_string.startswith(b"GIF89a")
    assert events.Scalars("train/return")[0].value == 1.0, "a video that cannot be shown costs that video"
    assert len(said) == 1 and "does not show missing.mp4" in said[0]


def test_wandb_goes_on_with_the_same_run_offline(folder, monkeypatch):
    """The real package: two starts of one folder write to one run, with pictures and the env steps as axis."""
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    picture = folder.path / "a-decision.png"
    cv2.imwrite(str(picture), np.zeros((30, 40, 3), np.uint8))
    said = []
    for env_steps in (2000, 1000):  # the second goes back to an earlier checkpoint
        with Logger(folder, "wandb", said.append) as logger:
            logger.write(counters(env_steps), {"train/return": 1.0})
            logger.show(env_steps, picture)
    runs = [path.name for path in (folder.path / "wandb").glob("offline-run-*")]
    begun = folder.wandb_id.read_text().strip()
    assert len(runs) == 2 and all(begun in name for name in runs) and said == []
    assert list((folder.path / "wandb").rglob("*.wandb")) and list((folder.path / "wandb").rglob("decision_*.png"))
