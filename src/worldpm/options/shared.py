"""Options that several verbs share, with their checks."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import Positional

from worldpm.errors import ConfigError

Engine = Literal["duckdb", "spark"]
"""The data engine: DuckDB in this process, or Spark if one machine is too small."""
Dtype = Literal["float32", "bfloat16"]
BENCHMARKS = Path("data", "benchmarks")
"""Default folder of downloaded benchmarks."""
LEAST_LENGTH = 16
"""Tokens of the shortest sequences that a model reads: the frame and a few tokens of text."""
COLUMNS = (
    *("prompt", "instruction", "input", "system", "chosen", "rejected", "response", "responses"),
    *("messages", "completions", "rating", "margin", "score_chosen", "score_rejected"),
)
"""Our names of the columns of rows; --columns maps them to other names."""


Groups = Mapping[str, tuple[str, ...]]
"""Names of options by their heading in the help."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The source of a model, and the chat template that renders its texts."""

    GROUPS: ClassVar[Groups] = {
        "model": ("revision", "remote_code", "chat_template", "template_name"),
    }

    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    remote_code: bool = False
    """Run the Python code in a model's repository; needs --revision with a commit."""
    chat_template: str | None = None
    """File of a chat template, or `plain` or `chatml`, in place of the tokenizer's template."""
    template_name: str | None = None
    """Name of a chat template of a tokenizer that has several; `default` unless set."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(SourceOptions):
    """Options of every verb that loads a reward model."""

    GROUPS: ClassVar[Groups] = {
        "model": ("dtype", "device", "max_length", "cut", "across_devices", "quantize"),
    }

    dtype: Dtype | None = None
    """Compute type; the type of the checkpoint's weights unless set."""
    device: str | None = None
    """Device that holds the model (`cpu`, `cuda`, `cuda:1`, `mps`). Unless set: the first CUDA GPU,
    else Apple's GPU (`mps`), else the CPU."""
    max_length: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens of prompt plus one response; the checkpoint's limit unless set."""
    cut: bool = False
    """Cut inputs over the limit instead of rejecting them."""
    across_devices: bool = False
    """Spread a model that is too large for one device over all devices and main memory."""
    quantize: Literal["int8", "int4"] | None = None
    """Read the linear layers in 8 bits (half of bfloat16's memory) or 4 bits (NF4). Rewards
    change: slightly in 8 bits, noticeably in 4."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < LEAST_LENGTH:
            raise ConfigError(
                f"--max-length is {self.max_length}; it must be at least {LEAST_LENGTH} tokens"
            )
        if self.device is not None and self.across_devices:
            raise ConfigError(
                "--device uses one device, and --across-devices uses all. Leave one of them out."
            )
        if self.quantize and self.across_devices:
            raise ConfigError(
                "--quantize puts the model on one device. Leave out --across-devices."
            )


def column_names(values: Iterable[str]) -> dict[str, str]:
    """The names of columns in files by our names, from the values of --columns.

    Raises:
        ConfigError: If an entry is not OURS=THEIRS, or names a column that is unknown or repeated.
    """
    columns: dict[str, str] = {}
    for entry in filter(None, map(str.strip, ",".join(values).split(","))):
        ours, _, theirs = entry.partition("=")
        if not theirs or ours not in COLUMNS:
            raise ConfigError(
                f"--columns {entry}: expected OURS=THEIRS, with OURS one of {', '.join(COLUMNS)}"
            )
        if ours in columns:
            raise ConfigError(f"--columns {entry}: {ours} is named twice. Leave one out.")
        columns[ours] = theirs
    return columns


def check_above_zero(options: Mapping[str, float | None]) -> None:
    """Raise ConfigError for the first option whose number is not above 0; None is an unset
    option."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}; it must be above 0")


def check_not_negative(options: Mapping[str, float | None]) -> None:
    """Raise ConfigError for the first option whose number is below 0."""
    for name, value in options.items():
        if value is not None and not value >= 0:
            raise ConfigError(f"{name} is {value}; it must not be negative")


def names_of(options: type[Any]) -> list[str]:
    """The names of the options of a class, in order."""
    return [field.name for field in fields(options)]


def changed(options: object, names: Iterable[str]) -> list[str]:
    """Flags of the named options that differ from their defaults, in the order of `names`."""
    defaults = {field.name: field.default for field in fields(options)}  # type: ignore[arg-type]
    return [
        f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != defaults[name]
    ]


UNNAMED = ("out", "workers", "engine", "states")
"""Options that do not change a folder's content: its manifest must not depend on them."""


def command_of(verb: str, options: object) -> str:
    """The command that sets these options except UNNAMED; only the last names of paths appear."""
    positional: list[str] = []
    flags: list[str] = []
    for field in fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        if field.name in UNNAMED or value == field.default or value == ():
            continue

        flag = f"--{field.name.replace('_', '-')}"
        if Positional in getattr(field.type, "__metadata__", ()):
            positional += _words(value)
        elif isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:
            flags += [flag, *_words(value)]

    return shlex.join(["worldpm", verb, *positional, *flags])


def _words(value: object) -> list[str]:
    """An option's value as arguments of the command line."""
    values = value if isinstance(value, tuple) else (value,)
    return [_last_name(str(entry)) for entry in values]


def _last_name(word: str) -> str:
    """The last name of a path that exists; other values, such as hub ids, unchanged."""
    return Path(word).name if "/" in word and Path(word).exists() else word


def check_webhook(url: str | None, secret: Path | None) -> None:
    """Reject a webhook without its secret, or with an invalid URL.

    Raises:
        ConfigError: If only one of the two is given, or the URL has another form than HTTP's.
    """
    if (url is None) != (secret is None):
        raise ConfigError("--webhook and --webhook-secret belong together. Give both or neither.")
    if url is None:
        return
    # The log shows the URL after each failure, so it must not hold a password
    if not re.fullmatch(r"https?://[\w.-]+(:\d+)?(/[\x21-\x7e]*)?", url, re.ASCII):
        raise ConfigError(
            "--webhook: not a URL of the form http(s)://HOST[:PORT][/PATH] without a user name."
            " Correct it."
        )
