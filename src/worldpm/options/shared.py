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
"""The data engine: DuckDB in this process, or Spark where one machine is too small."""
Dtype = Literal["float32", "bfloat16"]
BENCHMARKS = Path("data", "benchmarks")
"""Default folder of downloaded benchmarks."""
LEAST_LENGTH = 16
"""Tokens of the shortest sequences that a model reads: the frame and a few tokens of text."""
COLUMNS = (
    *("prompt", "instruction", "input", "system", "chosen", "rejected", "response", "responses"),
    *("messages", "completions", "rating", "margin", "score_chosen", "score_rejected"),
)
"""Our names of the columns of rows, which --columns replaces."""


Groups = Mapping[str, tuple[str, ...]]
"""Names of options by the heading under which the help lists them."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where a model comes from, and the chat template that it reads text with."""

    GROUPS: ClassVar[Groups] = {
        "model": ("revision", "remote_code", "chat_template", "template_name"),
    }

    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    remote_code: bool = False
    """Run the Python that a model's repository brings; needs --revision with a commit."""
    chat_template: str | None = None
    """File of a chat template, or `plain` or `chatml`, in place of the tokenizer's own."""
    template_name: str | None = None
    """Which of the tokenizer's chat templates, if it has several; `default` unless set."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(SourceOptions):
    """How a reward model is loaded and reads text; the same for every verb that loads one."""

    GROUPS: ClassVar[Groups] = {
        "model": ("dtype", "device", "max_length", "cut", "across_devices"),
    }

    dtype: Dtype | None = None
    """Compute type; that of the checkpoint's weights unless set."""
    device: str | None = None
    """Device that holds the model (`cpu`, `cuda`, `cuda:1`, `mps`). Unless set: the first GPU of
    CUDA, or else Apple's (`mps`), or else the CPU."""
    max_length: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens of prompt plus one response; the checkpoint's own unless set."""
    cut: bool = False
    """Cut inputs over the limit instead of refusing them."""
    across_devices: bool = False
    """Spread a model that is too large for one device over all devices, and over memory."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < LEAST_LENGTH:
            raise ConfigError(
                f"--max-length is {self.max_length}; at least {LEAST_LENGTH} tokens are needed"
            )
        if self.device is not None and self.across_devices:
            raise ConfigError(
                "--device names one device, --across-devices takes all; give one of the two"
            )


def column_names(words: Iterable[str]) -> dict[str, str]:
    """The names of columns in files, by our names for them, of the words of --columns.

    Raises:
        ConfigError: If a word is not OURS=THEIRS, or names a column twice or one that is not ours.
    """
    columns: dict[str, str] = {}
    for entry in filter(None, map(str.strip, ",".join(words).split(","))):
        ours, _, theirs = entry.partition("=")
        if not theirs or ours not in COLUMNS:
            raise ConfigError(
                f"--columns {entry}: expected OURS=THEIRS, and as OURS one of {', '.join(COLUMNS)}"
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


UNNAMED = ("out", "workers", "engine")
"""Options that do not change a folder's content: its manifest must not depend on them."""


def command_of(verb: str, options: object) -> str:
    """The command that gives these options, but for UNNAMED; paths by their last names."""
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
    """An option's value as words of the command line."""
    values = value if isinstance(value, tuple) else (value,)
    return [_last_name(str(entry)) for entry in values]


def _last_name(word: str) -> str:
    """The last name of a path that exists; other words, such as hub ids, unchanged."""
    return Path(word).name if "/" in word and Path(word).exists() else word


def check_webhook(url: str | None, secret: Path | None) -> None:
    """Refuse a webhook without its secret, or with a URL that is none.

    Raises:
        ConfigError: If one is given alone, or the URL has another scheme than HTTP's.
    """
    if (url is None) != (secret is None):
        raise ConfigError(
            "--webhook and --webhook-secret belong together. Give both, or neither of them."
        )
    if url is None:
        return
    # The log shows the URL after each failure, so it must not hold a password
    if not re.fullmatch(r"https?://[\w.-]+(:\d+)?(/[\x21-\x7e]*)?", url, re.ASCII):
        raise ConfigError(
            "--webhook: not a URL of the form http(s)://HOST[:PORT][/PATH], without a user's name."
            " Correct it."
        )
