"""Truncated, corrupted, foreign or hostile checkpoints: one line of error, or exactly the saved content."""

import json
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from dreamer_mpc.config.make import load_agent
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.runs.checkpoint import (
    AGENT,
    TRAINING,
    as_payload,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from dreamer_mpc.runs.payload import FORMAT, FORMAT_VERSION, VERSIONS, _digest, read_payload, write_payload
from dreamer_mpc.util.errors import UserError
from run import main
from tests.support.agents import FAMILIES
from tests.support.checkpoints import (
    TRAINING_FIELDS,
    Bomb,
    as_version_2,
    equal,
    family_checkpoint,
    make_checkpoint,
)
from tests.support.commands import ROOT
from tests.support.commands import command as run_command

PAYLOAD = {
    "config": {"env": "cheetah-run", "rate": 1e-3},
    "agent": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2, dtype=torch.bfloat16)},
    "counters": [1, 2, float("inf")],
}
FLIPS, FOREIGN = 400, 200  # cases
OUTSIDE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9]}}'


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small checkpoint: its bytes, and a path to write others to."""
    path = tmp_path_factory.mktemp("fuzz") / "checkpoint-00000001.safetensors"
    write_payload(path, PAYLOAD)
    return path.read_bytes(), path


def load_or_line(path, load=read_payload):
    """The payload, or None where it is refused in one line that names the file."""
    try:
        return load(path)[1] if load is read_payload else load(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None


def test_cut_short_anywhere(whole):
    content, path = whole
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert load_or_line(path) is None, f"{length} of {len(content)} bytes"


@settings(max_examples=FLIPS, deadline=None, derandomize=True)
@given(st.data())
def test_flipped_bits(whole, data):
    content, path = whole
    flipped = bytearray(content)
    for at in data.draw(st.sets(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3)):
        flipped[at // 8] ^= 1 << at % 8
    path.write_bytes(flipped)
    payload = load_or_line(path)
    assert payload is None or equal(payload, PAYLOAD)


@settings(max_examples=FOREIGN, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda x: len(x).to_bytes(8, "little") + x)))
def test_any_bytes(whole, content):
    _, path = whole
    path.write_bytes(content)
    assert load_or_line(path) is None


def forged(state, tensors, version=FORMAT_VERSION, **about):
    """A file by someone who knows the format and its checksum."""
    known = {"format": FORMAT, "version": str(version), "state": state, "sha256": _digest(state, tensors)}
    return save(tensors, {**known, **about})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["$tensor", "$tuple", "$float", "$items", "config", "agent", "x"]), inner),
    max_leaves=12,
)


@settings(max_examples=FOREIGN, deadline=None, derandomize=True)
@given(JSON)
def test_any_json_with_the_right_checksum(whole, document):
    _, path = whole
    path.write_bytes(forged(json.dumps(document), {"x": torch.zeros(1)}))
    payload = load_or_line(path)
    assert payload is None or isinstance(payload, dict)
    for version in VERSIONS:
        path.write_bytes(forged(json.dumps(document), {"x": torch.zeros(1)}, version))
        assert load_or_line(path, load_checkpoint) is None


def test_other_peoples_files(tmp_path):
    path = tmp_path / "checkpoint-00000001.safetensors"
    deep = "[" * 100_000 + "]" * 100_000
    contents = {
        "empty": b"",
        "text": b"hello, I am text\n" * 20,
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "a header that claims 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
        "a header that claims more than there is": (10**6).to_bytes(8, "little") + b"{" + bytes(100),
        "somebody else's safetensors": save({"weight": torch.zeros(2)}),
        "no state": save({}, {"format": FORMAT, "version": str(FORMAT_VERSION)}),
        "deep JSON": len(deep).to_bytes(8, "little") + deep.encode(),
        "deep state": forged(deep, {}),
        "a list": forged("[]", {}),
        "a tensor that is not there": forged('{"a": {"$tensor": "b"}}', {}),
        "a tensor past the end": len(OUTSIDE).to_bytes(8, "little") + OUTSIDE,
    }  # fmt: skip
    for name, content in contents.items():
        path.write_bytes(content)
        assert load_or_line(path) is None, name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert load_or_line(path) is None


def test_pickles_do_not_run(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "checkpoint-00000001.safetensors"
    bomb = pickle.dumps(Bomb(trap))
    torch.save({"format": FORMAT, "version": 1, "x": Bomb(trap)}, tmp_path / "zip")
    torch.save(Bomb(trap), tmp_path / "legacy", _use_new_zipfile_serialization=False)
    files = [bomb, (tmp_path / "zip").read_bytes(), (tmp_path / "legacy").read_bytes()]
    files += [len(bomb).to_bytes(8, "little") + bomb, forged(json.dumps({"x": bomb.decode("latin-1")}), {})]
    for content in files:
        path.write_bytes(content)
        load_or_line(path)
    assert not trap.exists()


def listing(folder):
    files = (path for path in folder.rglob("*") if path.is_file())  # a lock comes and goes in the folder itself
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)


def refused(capsys, *words):
    """The one line of error of run.py."""
    capsys.readouterr()
    assert main([*map(str, words), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("command", ["eval", "compare", "train"])
def test_as_a_user_meets_them(tmp_path, capsys, command):
    """For all three commands: exit code 2, one line, no traceback, no file changed."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("env: cheetah-run\n")
    (tmp_path / "run" / "versions.json").write_text('{"program": "dreamer-mpc"}\n')
    path = folder / "checkpoint-00000100.safetensors"
    write_payload(path, PAYLOAD)
    content, trap = path.read_bytes(), tmp_path / "trap"
    contents = {
        "damaged": content[:-1], "no dreamer-mpc checkpoint": pickle.dumps(Bomb(trap)), "holds": content,
        "format 1": b"PK\x03\x04" + bytes(100),
    }  # fmt: skip
    for words, bad in contents.items():
        path.write_bytes(bad)
        before = listing(tmp_path)
        given = ["--resume", tmp_path / "run"] if command == "train" else ["--checkpoint", path]
        error = refused(capsys, command, *given)
        assert words in error and str(path) in error
        assert listing(tmp_path) == before
    assert not trap.exists()
    if command == "train":
        done = run_command(command, *given)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", error), "another process says the same"


ODD = [None, True, -1, 2**70, 0.5, float("nan"), "", "x" * 200, [], [1], {}, {"x": 1}, {1: 2}, (1,), torch.zeros(2)]
WHOLE = as_payload(make_checkpoint(**TRAINING_FIELDS))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("training", [True, False], ids=["of a run", "of an agent alone"])
def test_a_field_that_is_missing_mistyped_or_unknown(version, training, tmp_path):
    """One line that names the field; or a valid checkpoint, if the new value has the right type."""
    path = tmp_path / "checkpoint-00000001.safetensors"
    checkpoint = make_checkpoint(**TRAINING_FIELDS if training else {})
    payload = as_payload(checkpoint) if version == FORMAT_VERSION else as_version_2(checkpoint)
    types = {name: kind for name, kind in (AGENT | TRAINING).items() if name in payload}
    assert types.keys() == payload.keys()
    for name, kind in types.items():
        write_payload(path, {key: value for key, value in payload.items() if key != name}, version)
        with pytest.raises(UserError, match=rf"holds no trained agent \({name} is missing\)"):
            load_checkpoint(path)
        for value in ODD:
            write_payload(path, payload | {name: value}, version)
            read = load_or_line(path, load_checkpoint)
            assert read is None or type(value) is kind and name not in ("counters", "agent", "agent_kind")
    for name in ("more", "agent kind", 3):
        write_payload(path, payload | {name: 1}, version)
        with pytest.raises(UserError, match="is unknown"):
            load_checkpoint(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_counters_and_weights_that_are_not_those_of_a_run(version, tmp_path):
    path, payload = tmp_path / "checkpoint-00000001.safetensors", as_version_2(make_checkpoint())
    if version == FORMAT_VERSION:
        payload = as_payload(make_checkpoint())
    counters = payload["counters"]
    for name in counters:
        for changed in ({key: counters[key] for key in counters if key != name}, counters | {name: 0.5}):
            write_payload(path, payload | {"counters": changed}, version)
            with pytest.raises(UserError, match="its counters are not those of a run"):
                load_checkpoint(path)
    for model in (None, [], {"x": 1}, {"x": "y"}, {1: torch.zeros(1)}):
        for agent in ({"model": model}, {}):
            write_payload(path, payload | {"agent": agent}, version)
            with pytest.raises(UserError, match="its agent has no weights"):
                load_checkpoint(path)


@pytest.mark.parametrize("name, value", [
    ("config", {}), ("config", {"env": 3, "seed": "x"}), ("config", {1: 2}), ("config", {"env": "cheetah-run", "x": 1}),
    ("agent", {"model": {"x": torch.zeros(1)}}), ("agent", {"model": {}}), ("agent_kind", "planet"), ("action_dim", -1),
    ("config", {"env": "no-such-env"}), ("agent", 1), ("counters", 7),
])  # fmt: skip
def test_forged_payloads(tmp_path, capsys, name, value):
    path = tmp_path / "checkpoint-00000100.safetensors"
    write_payload(path, as_payload(make_checkpoint()) | {name: value})
    refused(capsys, "eval", "--checkpoint", path, "--episodes", "1", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, value", [
    ("replay", {}), ("replay", {"oldest": [0]}), ("replay_files", [1]), ("replay_files", [{"number": 1}]),
    ("replay_files", [{**WHOLE["replay_files"][0], "ends": 5}]), ("replay_needs", {"2000": "x"}),
    ("replay_files", [{**WHOLE["replay_files"][0], "more": 1}]), ("replay_needs", {"x": 0}), ("replay_files", [{1: 2}]),
])  # fmt: skip
def test_forged_states_of_a_replay(tmp_path, capsys, name, value):
    folder = tmp_path / "run"
    path = folder / "checkpoints" / "checkpoint-00000100.safetensors"
    write_payload(path, WHOLE | {name: value})
    (folder / "versions.json").write_text('{"program": "dreamer-mpc"}\n')
    assert str(path) in refused(capsys, "train", "--resume", folder)


@pytest.fixture(scope="module", params=["shipped", *FAMILIES])
def real(request, tmp_path_factory):
    """A shipped checkpoint, 12 MB, and small ones of both families: the bytes."""
    if request.param == "shipped":
        return find_checkpoint(ROOT / "pretrained/cheetah-run").read_bytes()
    path = tmp_path_factory.mktemp("real") / "checkpoint-00000016.safetensors"
    save_checkpoint(path, family_checkpoint(request.param))
    return path.read_bytes()


def test_a_real_one_cut_at_every_percent(real, tmp_path):
    path = tmp_path / "checkpoint-00000001.safetensors"
    for percent in range(100):
        path.write_bytes(real[: len(real) * percent // 100])
        assert load_or_line(path) is None
    save_file({}, path)


# agents of two families


@pytest.fixture(scope="module")
def families():
    return {family: family_checkpoint(family) for family in FAMILIES}


def loaded(path, checkpoint):
    """The agent of `checkpoint`, read back from a file as `run.py eval` reads it; or the one line of error."""
    save_checkpoint(path, checkpoint)
    try:
        subject = Subject.load(path)
        return load_agent(subject.checkpoint, subject.trained, checkpoint.action_dim, torch.device("cpu"))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500, error
        return str(error)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_agent_of_each_family_is_read_back(family, families, tmp_path):
    checkpoint = families[family]
    agent = loaded(tmp_path / "checkpoint-00000016.safetensors", checkpoint)
    assert equal(agent.state_dict(), checkpoint.agent)
    kinds = {"paper": ("dreamer", "gaussian", False), "v3": ("dreamer", "categorical", True)}
    own = (checkpoint.agent_kind, checkpoint.world_model_kind, "behavior" in checkpoint.agent)
    assert own == kinds[family]


@pytest.mark.parametrize("own, other", [("paper", "v3"), ("v3", "paper")])
def test_what_is_of_the_other_family_is_one_line(own, other, families, tmp_path):
    path, checkpoint, foreign = tmp_path / "checkpoint-00000016.safetensors", families[own], families[other]
    stated = f"holds a {checkpoint.world_model_kind} world model, but its settings are those of a "
    misfit = "the checkpoint's weights do not fit --world-model and --behavior"
    assert stated + foreign.world_model_kind in loaded(path, replace(checkpoint, config=foreign.config))
    changed = replace(checkpoint, config=foreign.config, world_model_kind=foreign.world_model_kind)
    assert misfit in loaded(path, changed)
    for group in ("behavior", "optimizer"):
        config = checkpoint.config | {group: foreign.config[group]}
        outcome = loaded(path, replace(checkpoint, config=config))
        assert (misfit in outcome) if group == "behavior" else not isinstance(outcome, str), group
    for name, value in {"model": foreign.agent["model"], "optimizers": foreign.agent["optimizers"]}.items():
        assert misfit in loaded(path, replace(checkpoint, agent=checkpoint.agent | {name: value})), name


@pytest.mark.parametrize("value", [
    5, [], None, {"slow": 5}, {"slow": {}}, {"slow": {"x": torch.zeros(1)}}, {"returns": {}},
    {"returns": {"bounds": 1.0}}, {"returns": {"bounds": torch.zeros(3)}},
])  # fmt: skip
def test_a_forged_state_of_the_behavior_is_one_line(value, families, tmp_path):
    agent = families["v3"].agent
    forged_state = agent["behavior"] | value if isinstance(value, dict) else value
    checkpoint = replace(families["v3"], agent=agent | {"behavior": forged_state})
    assert isinstance(loaded(tmp_path / "checkpoint-00000016.safetensors", checkpoint), str)
