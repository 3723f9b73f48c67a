"""Checkpoints of the present format and of the previous one; listing, finding and pruning their files."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from dreamer_mpc.runs.checkpoint import (
    as_payload,
    checkpoint_path,
    find_checkpoint,
    keep_best,
    load_checkpoint,
    load_newest,
    prune,
    save_checkpoint,
)
from dreamer_mpc.runs.payload import FORMAT_VERSION, read_payload, write_payload
from dreamer_mpc.util.errors import UserError
from tests.support.checkpoints import TRAINING_FIELDS as TRAINING
from tests.support.checkpoints import as_version_2, equal, make_checkpoint

DATA = Path(__file__).resolve().parent / "data"


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.fixture
def saved(tmp_path):
    path = checkpoint_path(tmp_path / "checkpoints", 2000)
    save_checkpoint(path, make_checkpoint(**TRAINING))
    return path


@pytest.mark.parametrize("training", [TRAINING, {}], ids=["of a run", "of an agent alone"])
def test_what_is_saved_is_loaded(training, tmp_path):
    checkpoint = make_checkpoint(**training)
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    assert read_payload(tmp_path / "a.safetensors")[0] == FORMAT_VERSION == 3
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert equal(vars(loaded) | {"counters": 0}, vars(checkpoint) | {"counters": 0})
    assert loaded.counters == checkpoint.counters
    assert loaded.resumable == bool(training)


def test_an_agent_alone_has_nothing_of_its_training():
    alone = make_checkpoint(**TRAINING).agent_alone()
    assert not alone.resumable
    assert equal(as_payload(alone), as_payload(make_checkpoint()))


@pytest.mark.parametrize("agent_kind", ["dreamer", "planet"])
@pytest.mark.parametrize("training", [TRAINING, {}], ids=["of a run", "of an agent alone"])
def test_format_2_is_read_and_its_weights_say_which_agent_it_is(agent_kind, training, tmp_path):
    weights = {"world_model.actor.a": torch.ones(1)} | ({"actor.b": torch.ones(1)} if agent_kind == "dreamer" else {})
    checkpoint = make_checkpoint(agent={"model": weights}, agent_kind=agent_kind, **training)
    write_payload(tmp_path / "a.safetensors", as_version_2(checkpoint), 2)
    assert equal(as_payload(load_checkpoint(tmp_path / "a.safetensors")), as_payload(checkpoint))


def test_a_file_that_the_program_of_format_2_wrote_is_read():
    """Written by commit 6d8a26b, with unusual values in the training state."""
    checkpoint = load_checkpoint(DATA / "format-2.safetensors")
    assert (checkpoint.agent_kind, checkpoint.world_model_kind, checkpoint.action_dim) == ("dreamer", "gaussian", 6)
    assert equal(as_payload(checkpoint), as_payload(make_checkpoint(**TRAINING)))


@pytest.mark.parametrize(
    "field, known", [("agent_kind", "dreamer, planet"), ("world_model_kind", "gaussian, categorical")]
)
def test_a_kind_that_is_not_known_is_named_with_those_that_are(field, known, tmp_path):
    path = tmp_path / "a.safetensors"
    write_payload(path, as_payload(make_checkpoint()) | {field: "of\ntomorrow"})
    refused(path, rf"holds the {field[:-5].replace('_', ' ')} 'of\\ntomorrow', this code knows {known}: check out")


def test_a_folder_of_the_old_format_says_so(tmp_path):
    torch.save({}, tmp_path / "checkpoint-00000100.pt")
    with pytest.raises(UserError, match=r"checkpoint-00000100.pt is an archive: checkpoint format 1.*reads 2 and 3"):
        load_checkpoint(tmp_path)


def loaded(found):
    """The result of `load_newest`, with the env steps of a checkpoint in its place."""
    file, checkpoint, notes = found
    return file, checkpoint.counters.env_steps, notes


def test_a_damaged_one_is_named_and_the_one_before_it_used(tmp_path):
    for env_steps in (100, 200, 300):
        save_checkpoint(checkpoint_path(tmp_path / "checkpoints", env_steps), make_checkpoint(env_steps))
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert loaded(load_newest(tmp_path)) == (files[2], 300, [])
    files[2].write_bytes(files[2].read_bytes()[:-1])
    files[1].write_bytes(b"")
    for path in (tmp_path, tmp_path / "checkpoints"):
        file, env_steps, notes = loaded(load_newest(path))
        assert (file, env_steps) == (files[0], 100)
        assert len(notes) == 2 and str(files[2]) in notes[0] and "damaged" in notes[0] and str(files[0]) in notes[0]
    with pytest.raises(UserError, match=str(files[1])):
        load_newest(files[1])  # a file given by name
    files[0].write_bytes(b"")
    with pytest.raises(UserError, match=str(files[2])):
        load_newest(tmp_path)


@pytest.mark.parametrize("links", [True, False], ids=["link", "copy"])
def test_the_best_is_kept(saved, monkeypatch, links):
    def no_link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    for expected in (2000, 3000):
        path = checkpoint_path(saved.parent, expected)
        save_checkpoint(path, make_checkpoint(expected))
        keep_best(saved.parent, path)
        path.unlink()
        assert load_checkpoint(saved.parent / "best.safetensors").counters.env_steps == expected
    save_checkpoint(saved, make_checkpoint())
    prune(saved.parent, keep=1)
    assert {path.name for path in saved.parent.iterdir()} == {saved.name, "best.safetensors"}
    assert find_checkpoint(saved.parent) == saved


def test_missing_files_and_empty_folders_say_what_was_looked_for(tmp_path):
    refused(tmp_path / "nothing", "no checkpoint ")
    refused(tmp_path, r"no checkpoint-\*.safetensors in")


def test_the_newest_is_found_by_number_from_every_level(tmp_path):
    folder = tmp_path / "checkpoints"
    for env_steps in (900, 99_999_999, 100_000_000, 1000):
        save_checkpoint(checkpoint_path(folder, env_steps), make_checkpoint(env_steps))
    (folder / "checkpoint-best.safetensors").write_text("")
    (folder / ".checkpoint-999999999.tmp.safetensors").write_text("")
    for path in (tmp_path, folder, checkpoint_path(folder, 100_000_000)):
        assert find_checkpoint(path).name == "checkpoint-100000000.safetensors"
        assert load_checkpoint(path).counters.env_steps == 100_000_000


def test_checkpoint_path_sorts_by_name():
    assert checkpoint_path("x", 200_000).name == "checkpoint-00200000.safetensors"


@pytest.mark.parametrize("version", ["9" * 10_000, "\x1b[2Jhello\nthere"])
def test_a_version_that_is_none_is_shown_short_and_on_one_line(version, tmp_path):
    write_payload(tmp_path / "x.safetensors", {"a": 1})
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header["__metadata__"]["version"] = version
    encoded = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    with pytest.raises(UserError, match="has checkpoint format") as error:
        load_checkpoint(tmp_path / "x.safetensors")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_prune_keeps_the_last_and_other_peoples_files(tmp_path):
    for env_steps in (5, 10, 100, 1000):
        checkpoint_path(tmp_path, env_steps).write_text("")
    (tmp_path / "checkpoint-best.safetensors").write_text("")
    (tmp_path / ".checkpoint-00002000.tmp.safetensors").write_text("")
    prune(tmp_path, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"checkpoint-{name}.safetensors" for name in ("00000100", "00001000", "best")]
    prune(tmp_path, keep=5)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError):
        prune(tmp_path, keep=0)
