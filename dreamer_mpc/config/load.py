"""Settings from YAML presets, saved runs and the command line, and back; each error is one line."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_type_hints

import tyro
import tyro.constructors
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamer_mpc.config.schema import Config
from dreamer_mpc.util.errors import HelpShown, UserError

PRESETS = Path(__file__).resolve().parents[1] / "configs"  # a link to configs/ at the top; in a wheel, a copy
MOST_YAML = 2**17  # characters
DEEPEST_YAML = 8  # collections in each other
# Values for saved configurations that lack a setting: the behaviour before the setting or its present default existed.
EARLIER = {
    "train": {"policy_action": "mode"},
    "eval": {"beside": "off"},
    "dream_mpc": {
        "horizon": 15, "candidates": 5, "iterations": 1, "objective": "return", "return_lambda": 0.95,
        "uncertainty": 0.1, "reuse": 0.1, "mode_candidate": False, "draws": 1, "line_search": [],
        "step_scale": "gradient", "open_loop": 0, "caution": 0.0,
    },
}  # fmt: skip
ONE_OFF = {"run_dir": None, "resume": None, "overwrite": False, "profile": False}  # asked of one call, with defaults
T = TypeVar("T")
REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def _count_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """How tyro reads an int: see `whole`."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.primitive_rule
def _optional_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """How tyro reads a value or None: as the value, and None is the last of the words that it lists.

    Its own rule puts None first, orders the words of an error at random, and names Python's types in it.
    """
    kinds = get_args(info.type)
    if info.type_origin not in (Union, UnionType) or type(None) not in kinds:
        return None
    kind = Union[tuple(kind for kind in kinds if kind is not type(None))]  # noqa: UP007
    make = tyro.constructors.PrimitiveTypeInfo.make
    spec = tyro.constructors.ConstructorRegistry.get_primitive_spec(make(kind, info.markers))
    if not isinstance(spec, tyro.constructors.PrimitiveConstructorSpec) or spec.nargs != 1:
        return None
    choices = None if spec.choices is None else (*spec.choices, "None")
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{spec.metavar}|None" if choices is None else f"{{{','.join(choices)}}}",
        instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
        choices=choices,
    )


def whole(text: str) -> int:
    """The whole number that `text` writes, also in scientific notation (1e6, 2.5e5); ValueError for any other."""
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?[eE]\+?\d{1,2}", text):
        return int(text)
    value = Decimal(text)
    if value != value.to_integral_value():
        raise ValueError(f"{text} is no whole number")
    return int(value)


def load_presets(names: str) -> Config:
    """The presets `names`, merged in order over the defaults; UserError on an unknown preset, key or value.

    A file that names its preset was saved by a run: settings that it lacks get the value of the program at that time.
    """
    return _merge(_preset_paths(names), names)


def load_saved(path: Path) -> Config:
    """The settings in the config.yaml of a run, whatever the name of its folder; errors as from `load_presets`."""
    return _merge([path], str(path))


def _preset_paths(names: str) -> list[Path]:
    """The files of presets joined by commas. The name of a file may have commas too: the longest that exists is one."""
    words, paths = names.split(","), []
    while words:
        ends = range(len(words), 0, -1)
        end = next((end for end in ends if os.path.isfile(_preset_path(",".join(words[:end])))), 1)
        name, words = ",".join(words[:end]), words[end:]
        path = _preset_path(name)
        if not os.path.isfile(path):
            known = sorted(str(p.relative_to(PRESETS).with_suffix("")) for p in PRESETS.rglob("*.yaml"))
            raise UserError(f"no preset {name!r}: known are {', '.join(known)}, or give a YAML file (*.yaml or *.yml)")
        paths.append(path)
    return paths


def _preset_path(name: str) -> Path:
    return Path(os.path.expanduser(name)) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"


def _merge(paths: Sequence[Path], source: str) -> Config:
    merged = OmegaConf.structured(Config)
    for path in paths:
        try:
            values = _settings_of(_read_yaml(path), path)
            _refuse_single(values)
            merged = OmegaConf.unsafe_merge(merged, EARLIER if "config" in values else {}, values)
        except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{path}: {_misfit_list(values, error)}{first_lines(error)}") from error
    return _build(merged, source)


def _settings_of(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """`values` without one-off actions, which older runs saved; UserError where a file of the user asks for one."""
    asked = [key for key, default in ONE_OFF.items() if values.get(key, default) != default]
    if asked and "config" not in values:
        raise UserError(f"{path}: {asked[0]} is no setting but asked of one run: give {_flag(asked[0])} instead")
    return {key: value for key, value in values.items() if key not in ONE_OFF}


def _refuse_single(values: dict[str, Any]) -> None:
    """ValueError where a single value or a list stands for a group of settings, as OmegaConf's error names no key."""
    for key, kind in get_type_hints(Config).items():
        if dataclasses.is_dataclass(kind) and not isinstance(values.get(key, {}), dict):
            raise ValueError(f"{key} is a group of settings, {key}: {{name: value}}, got {str(values[key])[:80]!r}")


def _misfit_list(values: dict[str, Any], error: Exception) -> str:
    """`key: ` of the first list in `values` that does not fit the schema, where `error` names no key; else nothing."""
    if "full_key" in str(error):
        return ""
    for key, value in _flatten(values).items():
        try:
            OmegaConf.update(OmegaConf.structured(Config), key, value)
        except OmegaConfBaseException:
            return f"{key}: " if isinstance(value, list) else ""
        except (ValueError, TypeError, OverflowError):
            return ""
    return ""


def _read_yaml(path: Path) -> dict[str, Any]:
    """Settings from a file that may not be trusted: plain values only, no tags, aliases or OmegaConf expressions."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: give a YAML file") from error
    if len(text) > MOST_YAML:
        raise UserError(f"{path} is too large for settings ({len(text):,} characters): give a YAML file of a run")
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{path} has an alias (*name): write the value out")  # a few can expand to gigabytes
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise UserError(f"{path} is not valid YAML for settings: it is nested too deeply")
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except OSError:  # OmegaConf raises it for a file that holds a single value
        values = None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path} is not valid YAML for settings: {first_lines(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping, key: value")
    _refuse_words(_flatten(values), f"{path}: ")
    return _with_words(_with_counts(values), Config)


def _with_counts(value: Any) -> Any:
    """YAML reads 1e6 as a float: whole ones from 10 on become ints, which fit a setting of either kind."""
    if isinstance(value, dict):
        return {key: _with_counts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_counts(item) for item in value]
    return int(value) if isinstance(value, float) and 10 <= value < 2**53 and value.is_integer() else value


def _with_words(values: dict[str, Any], schema: type) -> dict[str, Any]:
    """`values` with the words back that YAML 1.1 reads as true or false, where `schema` wants one: `compile: off`."""
    kinds, mended = get_type_hints(schema), dict(values)
    for key, value in values.items():
        kind = kinds.get(key)
        if isinstance(value, dict) and dataclasses.is_dataclass(kind):
            mended[key] = _with_words(value, kind)
        elif isinstance(value, bool):
            words = {True: ("on", "yes"), False: ("off", "no")}[value]
            mended[key] = next((word for word in words if word in get_args(kind)), value)
    return mended


def _refuse_words(values: dict[str, Any], where: str) -> None:
    """UserError where a value is an OmegaConf expression, which would read the environment or other settings."""
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and ("${" in item or item == "???"):
                raise UserError(f"{where}{key}: {item[:80]!r} is no value: write it out")


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """A saved configuration; UserError where it does not fit this version's schema.

    Settings that were added after it was saved get the value of the program at that time. One-off actions that older
    versions saved are left out.
    """
    try:
        values = {key: value for key, value in values.items() if key not in ONE_OFF}
        _refuse_single(values)
        merged = OmegaConf.unsafe_merge(OmegaConf.structured(Config), EARLIER, OmegaConf.create(values))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{source}: {_misfit_list(values, error)}{first_lines(error)}") from error
    return _build(merged, source)


def _build(merged: Any, source: str) -> Config:
    try:
        return OmegaConf.to_object(merged)
    except ValueError as error:
        raise UserError(f"{source}: {first_lines(error)}") from error


def to_yaml(config: Config) -> str:
    """`config` as YAML that `load_presets` reads back: single settings first, then the groups."""
    values = _readable(to_dict(config))
    return OmegaConf.to_yaml(dict(sorted(values.items(), key=lambda item: isinstance(item[1], dict))))


def _readable(value: Any) -> Any:
    """`value` with `?` for the bytes of a path that are no text: YAML cannot hold them."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as plain numbers, strings, tuples and dicts, without what was asked of one run alone (`ONE_OFF`)."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ONE_OFF}


def parse(schema: type[T], args: Sequence[str], default: T | None = None, prog: str = "run.py") -> T:
    """`schema` from command-line arguments over `default`; UserError, one line, where they do not fit."""
    flags = flag_names(args)
    _refuse_empty(args)
    for field in dataclasses.fields(schema):
        if field.type == tuple[str, ...] and flags.count(field.name) > 1:  # tyro would use only the last one
            raise UserError(f"--{field.name} is given twice: give it once, with all its values behind it")
    _refuse_words({f"argument {i}": arg for i, arg in enumerate(args, start=1)}, "")
    stderr = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(schema, args=list(args), prog=prog, registry=REGISTRY, **extra)
    except SystemExit as stop:
        if not stop.code:
            raise HelpShown(0) from None
        raise UserError(_unknown_options(schema, args) or _one_line(stderr.getvalue())) from stop


def parse_some(schema: type[T], args: Sequence[str], prog: str) -> tuple[T, list[str]]:
    """Like `parse`, but also returns the arguments that `schema` does not know."""
    known = {"-h", "--help", *_flags(schema)}
    own, rest, taking = [], [], False
    for arg in args:
        if arg.startswith("-"):
            taking = arg == "-h" or f"--{_name(arg)}" in known
        (own if taking else rest).append(arg)
    return parse(schema, own, prog=prog), rest


def _unknown_options(schema: type, args: Sequence[str]) -> str | None:
    """The line on options that `schema` lacks, with those that may be meant; None where it has all."""
    known = list(_flags(schema))
    switches = {f"--{group}{dot}no-{name}" for group, dot, name in map(_parted, known)}
    given = [f"--{_name(arg)}" for arg in args if arg.startswith("--")]
    unknown = [flag for flag in dict.fromkeys(given) if flag not in {"--help", *known, *switches}]
    if not unknown:
        return None
    near: list[str] = []
    for flag in unknown:
        alike = [each for each in known if _parted(each)[2] == _parted(flag)[2]]  # of another group
        near += alike or difflib.get_close_matches(flag, known, n=2, cutoff=0.7)
    perhaps = f"perhaps {' or '.join(dict.fromkeys(near))}" if near else "--help lists them"
    return f"unknown option{'s' * (len(unknown) > 1)} {', '.join(unknown)}; {perhaps}"


def _parted(flag: str) -> tuple[str, str, str]:
    """Group, dot and name of a flag: eval . episodes; the first two are empty where it is of no group."""
    return flag.removeprefix("--").rpartition(".")


def _flags(schema: type, group: str = "") -> Iterator[str]:
    """The flags of a schema, those of its groups as --group.name."""
    kinds = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        name = f"{group}{field.name}"
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from _flags(kinds[field.name], f"{name}.")
        else:
            yield _flag(name)


def _refuse_empty(args: Sequence[str]) -> None:
    """UserError for an empty value: it is that of a variable of the shell that is not set, and means no default."""
    for before, arg in zip(["", *args], args, strict=False):
        name, joined, value = arg.partition("=")
        if arg.strip() and not (joined and name.startswith("--") and not value.strip()):
            continue
        flag = name if arg.strip() else before
        what = f"the value of {flag}" if flag.startswith("-") else "a word"
        raise UserError(f"{what} is empty, perhaps a variable that is not set: give one, or leave it out")


def option(args: Sequence[str], name: str) -> str | None:
    """The value of `--name` in `args`, read before the full parse; None if it is not given.

    UserError where any value is empty.
    """
    _refuse_empty(args)
    for i, arg in enumerate(args):
        if arg.startswith("--") and _name(arg) == name:
            if "=" in arg:
                return arg.split("=", 1)[1]
            return args[i + 1] if i + 1 < len(args) else None
    return None


def flag_names(args: Sequence[str]) -> list[str]:
    """The flags in `args`, without dashes in front and values behind, as `--help` spells them."""
    return [_name(arg) for arg in args if arg.startswith("--")]


def _name(arg: str) -> str:
    """tyro reads --run_dir as --run-dir; so do we."""
    return arg.partition("=")[0].removeprefix("--").replace("_", "-")


def differences(old: Config, new: Config) -> list[str]:
    """`key: old -> new` for every setting that differs."""
    a, b = (_flatten(dataclasses.asdict(config)) for config in (old, new))
    return [f"{key}: {a[key]} -> {b[key]}" for key in a if a[key] != b[key]]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def first_lines(error: Exception) -> str:
    """The message without OmegaConf's list of types; its full key if it names one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    message = " ".join(line for line in lines if not re.match(r"(full_key|reference_type|object_type)\b", line))
    # OmegaConf leaves these empty for a value in a list.
    message = message.replace("Value '$VALUE' of type '$VALUE_TYPE'", "A value")
    return f"{keys[0]}: {message}" if keys else message


def _one_line(box: str) -> str:
    """tyro's boxed error as one line: its title and its pointers to --help left out, range errors with their flag."""
    # The title comes first; depending on the terminal, the frame is box characters, ASCII or nothing.
    lines = [line.strip(" │|") for line in box.splitlines()]
    text = " ".join([line for line in lines if re.search(r"\w", line)][1:])
    text = re.sub(r"Argument helptext:.*|For full helptext,.*", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^Unrecognized options: (.*)", r"\1 belongs to no option", text)
    text = re.sub(r"^Error parsing \w*Config: (\w+) must", lambda m: f"{_flag(m[1])} must", text)
    text = re.sub(r"^Error parsing ([\w-]+): (\w+) must", lambda m: f"{_flag(f'{m[1]}.{m[2]}')} must", text)
    return f"{text} (see --help)"


def _flag(key: str) -> str:
    """dream_mpc.step_size -> --dream-mpc.step-size, as tyro spells it."""
    return "--" + key.replace("_", "-").rstrip("-")
