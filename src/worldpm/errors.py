"""Errors caused by user input. A message states what is wrong, what was expected and what to do."""

from pathlib import Path
from typing import Any


class WorldPMError(Exception):
    """Base of all errors that a user can cause; shown as one message without a traceback."""


class ConfigError(WorldPMError):
    """Arguments that contradict each other or the inputs that they name (exit code 2)."""


class DataError(WorldPMError):
    """An input that does not have the expected form (exit code 2). The message starts with the path
    and, if it is known, the line number."""

    def __init__(self, path: Path | str, message: str, *, line: int | None = None) -> None:
        location = f"{path}:{line}" if line is not None else str(path)
        super().__init__(f"{location}: {message}")

    # A worker process sends an error to its parent by pickle, which would call `__init__` with the
    # finished message alone. `__new__` takes the message as it is.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).__new__, (type(self), *self.args)


class TemplateRefusalError(DataError):
    """A conversation that a model's chat template rejects. Data sets drop and count it."""


class CheckpointError(WorldPMError):
    """A model folder that is damaged, incomplete, or changed since it was written (exit code 2)."""


class TrainingError(WorldPMError):
    """Training that cannot continue, for instance because the loss is not finite (exit code 1)."""


class NotFiniteError(WorldPMError):
    """A reward that is NaN or infinite (exit code 1)."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message; the class name if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
