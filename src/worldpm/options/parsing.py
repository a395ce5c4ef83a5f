"""Parser of the command line: options in groups, option names of other libraries, and configuration
files."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import tyro
import yaml
from tyro.conf import OmitArgPrefixes

from worldpm.errors import ConfigError
from worldpm.options import other_names

Options = TypeVar("Options")
CONFIG, SAVE_CONFIG = "--config", "--save-config"
SHELLS = ("bash", "zsh")
NOTE = f"""
{CONFIG} FILE.yaml reads options from a file; options on the command line override it.
{SAVE_CONFIG} FILE.yaml writes the options in use to a file.
--quiet shows warnings only. --json writes the result as JSON to standard output.
"""


OTHER_NAMES = """
Option names of Hugging Face's scripts work too: --learning-rate, --num-train-epochs, --output-dir,
--model-name-or-path, --bf16, --per-device-train-batch-size and others. Here a step is a number of
pairs over all devices.
"""


def parse(options: type[Options], program: str, arguments: Sequence[str]) -> Options:
    """Parse arguments into options.

    Raises:
        ConfigError: If a configuration file cannot be read, or options contradict each other.
        SystemExit: If an argument is wrong (the parser prints a message to stderr), or after help.
    """
    rest = other_names.translated(arguments, _names(options), _positional(options))
    rest, config = _without(rest, CONFIG)
    rest, saved = _without(rest, SAVE_CONFIG)
    defaults = {} if config is None else _read(options, Path(config))

    parsed = tyro.cli(
        _view(options, defaults),
        args=rest,
        prog=program,
        config=(OmitArgPrefixes,),
        description=_description(options),
    )
    values = options(**_flat(parsed))
    _check_inputs(values)
    if saved is not None:
        _write(values, Path(saved))
    return values


def _check_inputs(options: object) -> None:
    """Reject input paths that do not exist, before anything heavy is imported.

    Raises:
        ConfigError: If a path of the fields in `INPUTS` does not exist, or a name of those in
            `INPUTS_OR_IDS` is neither a path nor OWNER/NAME, or the options' own check fails.
    """
    for name in getattr(options, "INPUTS", ()):
        for path in _several(getattr(options, name)):
            if not Path(path).exists():
                raise ConfigError(f"{path}: no such file or folder. Check the path.")
    for name in getattr(options, "INPUTS_OR_IDS", ()):
        for path in _several(getattr(options, name)):
            if "/" not in str(path) and not Path(path).exists():
                raise ConfigError(
                    f"{path}: no such file or folder, and not a hub id (OWNER/NAME). Check the"
                    " path."
                )
    if (check := getattr(options, "check_inputs", None)) is not None:
        check()


def _several(value: Any) -> tuple[Any, ...]:
    """The values of an option that takes one or several."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def completion(verbs: Mapping[str, type[Any]], shell: str) -> None:
    """Print the script that completes verbs and options in a shell, and exit.

    Raises:
        SystemExit: Always; tyro ends the program.
    """
    views: dict[str, Callable[..., Any]] = {
        verb: _view(options, {}) for verb, options in verbs.items()
    }
    tyro.extras.subcommand_cli_from_dict(
        views,
        prog="worldpm",
        args=["--tyro-print-completion", shell],
        config=(OmitArgPrefixes,),
    )


def _description(options: type[Any]) -> str:
    """The docstring, an example, and notes that apply to all verbs."""
    summary = " ".join((options.__doc__ or "").split())
    parts = [summary, f"Example:\n  {options.EXAMPLE}", NOTE.strip()]
    if "batch_pairs" in _names(options):
        parts.insert(2, OTHER_NAMES.strip())
    return "\n\n".join(parts)


def _names(options: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(options)}


def _positional(options: type[Any]) -> set[str]:
    """Names of the options without a flag."""
    hints = get_type_hints(options, include_extras=True)
    mark = tyro.conf.Positional[int].__metadata__[0]  # type: ignore[attr-defined]
    return {name for name, hint in hints.items() if mark in getattr(hint, "__metadata__", ())}


def _without(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """The arguments without `flag VALUE` or `flag=VALUE`, and the value."""
    rest: list[str] = []
    value = None
    remaining = iter(arguments)
    for argument in remaining:
        if argument == flag:
            value = next(remaining, None)
            if value is None:
                raise ConfigError(f"{flag}: no file is named. Name one.")
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
        else:
            rest.append(argument)
    return rest, value


def _view(options: type[Any], defaults: Mapping[str, object]) -> type[Any]:
    """A dataclass for the parser, with the same fields in groups, with help and defaults."""
    members = _members(options, defaults)
    top = [member for name, member in members.items() if name not in _grouped(options)]
    for title, names in _groups(options).items():
        group = dataclasses.make_dataclass(
            title, [members[name] for name in names if name in members], kw_only=True
        )
        # Without an empty docstring the parser would show that of dataclasses
        group.__doc__ = ""
        annotated = Annotated[group, tyro.conf.arg(name=title)]  # type: ignore[valid-type]
        top.append((f"group_{title}", annotated, dataclasses.field(default_factory=group)))

    view = dataclasses.make_dataclass(options.__name__, top, kw_only=True)
    view.__doc__ = ""
    return view


Member = tuple[str, Any, Any]
"""Name, type and default of a field."""


def _members(options: type[Any], defaults: Mapping[str, object]) -> dict[str, Member]:
    """The fields by name, in the form of `make_dataclass`."""
    hints = get_type_hints(options, include_extras=True)
    docs = _docs(options)
    members: dict[str, Member] = {}
    for field in dataclasses.fields(options):
        default = defaults.get(field.name, field.default)
        argument = _argument(hints[field.name], docs.get(field.name, ""), default)
        annotated: Any = Annotated[hints[field.name], argument]
        members[field.name] = (field.name, annotated, dataclasses.field(default=default))
    return members


def _argument(hint: Any, doc: str, default: object) -> Any:
    """Help and placeholder of a field."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    inner = [member for member in get_args(plain) if member is not NoneType]
    is_optional = get_origin(plain) in (Union, UnionType) and len(inner) == 1
    shown: dict[str, Any] = {"help": doc}
    if is_optional:
        shown["metavar"] = _metavar(inner[0])
    # The help text already describes the default
    if default is None or default == ():
        shown["help_behavior_hint"] = ""
    return tyro.conf.arg(**shown)


def _metavar(hint: Any) -> str:
    """Placeholder of a value, for instance INT or {a,b}."""
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, get_args(hint)))}}}"
    return str(getattr(hint, "__name__", hint)).upper()


def _groups(options: type[Any]) -> dict[str, tuple[str, ...]]:
    """Names of options by their group; options of a base class come last."""
    groups: dict[str, tuple[str, ...]] = {}
    for base in options.__mro__:
        for title, names in vars(base).get("GROUPS", {}).items():
            groups[title] = (*groups.get(title, ()), *names)
    return groups


def _grouped(options: type[Any]) -> set[str]:
    return {name for names in _groups(options).values() for name in names}


def _docs(options: type[Any]) -> dict[str, str]:
    """The docstrings of the fields."""
    docs: dict[str, str] = {}
    for base in reversed(options.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_docs(base)
    return docs


@cache
def _own_docs(options: type[Any]) -> dict[str, str]:
    """The docstrings of the fields that a class itself defines."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docs[statement.target.id] = " ".join(text.split())
    return docs


def _flat(parsed: object) -> dict[str, Any]:
    """The values of a view by name, without groups."""
    return dict(_values(parsed))


def _values(parsed: object) -> Iterator[tuple[str, Any]]:
    for name, value in vars(parsed).items():
        if name.startswith("group_"):
            yield from _values(value)
        else:
            yield name, value


def _read(options: type[Any], path: Path) -> dict[str, Any]:
    """Read the options of a configuration file.

    Raises:
        ConfigError: If it cannot be read, or contains an unknown option or a wrong value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{CONFIG} {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{CONFIG} {path}: not YAML ({reason}). Fix the file.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{CONFIG} {path}: has no options. Add some, such as `max-steps: 100`.")

    hints, names = get_type_hints(options), _names(options)
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        name = other_names.OURS.get(name, name)
        if name not in names:
            raise ConfigError(f"{CONFIG} {path}: {key} is not an option of this verb. Remove it.")
        try:
            values[name] = msgspec.convert(value, hints[name], dec_hook=_path, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{CONFIG} {path}: {key}: {error}. Correct the value.") from error
    return values


def _path(kind: type[Any], value: Any) -> Any:
    """Convert a text of a configuration file to a path."""
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError


def _write(options: object, path: Path) -> None:
    """Write the options that differ from their defaults.

    Raises:
        ConfigError: If the file cannot be written.
    """
    content = {
        field.name.replace("_", "-"): _plain(getattr(options, field.name))
        for field in dataclasses.fields(options)  # type: ignore[arg-type]
        if getattr(options, field.name) != field.default
    }
    try:
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{SAVE_CONFIG} {path}: cannot be written ({error.strerror})") from error


def _plain(value: object) -> object:
    """A value in a form that YAML can write."""
    if isinstance(value, tuple):
        return [_plain(member) for member in value]
    return str(value) if isinstance(value, Path) else value
