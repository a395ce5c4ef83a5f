"""The folder that a step writes: finished when, and only when, its manifest exists.

While a step runs, `.progress/` holds its settings and a record of every finished part, so that the
same command resumes a killed run. Files get their final names only when they are complete: they are
written under another name, synced and renamed.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

import msgspec
from filelock import BaseFileLock

from worldpm.errors import ConfigError, DataError
from worldpm.storage import memory
from worldpm.storage.json_files import (
    Plain,
    read_json,
    read_record,
    sync_folder,
    to_json,
    write_atomically,
)
from worldpm.storage.locks import try_lock
from worldpm.storage.manifest import (
    MANIFEST,
    PROGRESS,
    TIMINGS,
    Input,
    Manifest,
    Run,
    format_of,
    read_manifest,
    sha256,
    versions,
)

MARKER = "run"
"""The file in `.progress/` that describes the run which writes the folder."""
LOCK = "lock"
"""The file in `.progress/` that the writing process holds locked."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartRecord:
    """A finished part, in `.progress/`."""

    result: object
    """The return value of its `build`, as plain values."""
    sha256: str
    """Hash of the part's file."""
    seconds: float
    """Time to build the part."""


def concatenate(parts: Sequence[Path], target: Path) -> None:
    """Write the bytes of the parts, in order, as one file."""
    with target.open("wb") as joined:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, joined)


@dataclass(frozen=True)
class Timing:
    """A row of `timings.jsonl`: a part, or the whole step."""

    part: str
    seconds: float
    """Duration by the monotonic clock, rounded to milliseconds."""
    peak_memory_mib: int | None = None
    """Largest resident memory of the process; None for a part."""


class Output:
    """The folder that a step is writing; `begin` makes one, and `finish` is the last call."""

    def __init__(self, path: Path, run: Run, lock: BaseFileLock | None) -> None:
        """`lock` is None in a process that builds parts of a folder which another process holds."""
        self.path = path
        self.run = run
        self._lock = lock
        self._started = time.monotonic()

    @property
    def progress(self) -> Path:
        """The folder for what the step needs to resume; it is removed when the step finishes."""
        return self.path / PROGRESS

    def part(self, name: str, build: Callable[[Path], Result]) -> Result:
        """Build the file `name`, or use the file that a killed run finished.

        `build` writes to a path and returns a result, as plain values, which a resumed run reads.
        """
        key = name.replace("/", "-")
        record_path, target = self.progress / f"{key}.json", self.path / name
        if record_path.exists():
            record = read_record(record_path, PartRecord)
            if target.exists() and sha256(target) == record.sha256:
                if not name.startswith(PROGRESS):
                    logger.info("%s: already done", name)
                return cast(Result, record.result)

        started = time.monotonic()
        aside = self.progress / f"{key}.partial"
        result = build(aside)
        sync_file(aside)

        digest = sha256(aside)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, target)
        sync_folder(target.parent)
        # the record is written after its file, so that no record exists without a file
        record = PartRecord(result, digest, time.monotonic() - started)
        write_atomically(record_path, to_json(record))
        return result

    def write(self, name: str, content: bytes) -> None:
        """Write a small file of the step atomically; its name may have folders."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)

    def join(
        self,
        names: Sequence[str],
        target: Path,
        write: Callable[[Sequence[Path], Path], None] = concatenate,
    ) -> None:
        """Join the parts atomically into one file, then remove the folder.

        `write` makes a file of the parts' files.
        """
        aside = self.progress / "joined"
        write([self.path / name for name in names], aside)
        sync_file(aside)
        os.replace(aside, target)
        sync_folder(target.parent)
        self.discard()
        self.release()
        with suppress(OSError):  # another process may already use the folder
            self.path.rmdir()

    def discard(self) -> None:
        """Remove all parts, so that another command may use the folder."""
        for entry in self.path.iterdir():
            if entry != self.progress:
                _remove(entry)
        self._clear_progress()

    def _clear_progress(self) -> None:
        """Remove everything in `.progress/` except the lock that this process holds."""
        for entry in self.progress.iterdir():
            if entry.name != LOCK:
                _remove(entry)

    def finish(
        self, *, counts: Plain, drops: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        """Write the timings and, last, the manifest with the hash of every file."""
        self._write_timings()
        files = [path for path in self.path.rglob("*") if path.is_file()]
        hashes = {
            str(path.relative_to(self.path)): None if path.name == TIMINGS else sha256(path)
            for path in sorted(files)
            if self.progress not in path.parents
        }
        dropped = {name: dict(reasons) for name, reasons in (drops or {}).items()}
        manifest = Manifest(**vars(self.run), counts=dict(counts), drops=dropped, files=hashes)

        # with this rename the folder is finished
        write_atomically(self.progress / MANIFEST, to_json(manifest))
        os.replace(self.progress / MANIFEST, self.path / MANIFEST)
        sync_folder(self.path)
        self._clear_progress()

    def _write_timings(self) -> None:
        """Add the timings of the parts and of the whole step to those that the step wrote."""
        timings = []
        for path in sorted(self.progress.glob("*.json")):
            seconds = read_json(path).get("seconds")  # a step keeps other files here too
            if seconds is not None:
                timings.append(Timing(path.name.removesuffix(".json"), round(seconds, 3)))
        seconds = round(time.monotonic() - self._started, 3)
        timings.append(Timing(self.run.step, seconds, memory.peak_mib()))

        path = self.path / TIMINGS
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [json.dumps(_without_none(timing)) + "\n" for timing in timings]
        self.write(TIMINGS, "".join([before, *lines]).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is None:
            return
        if isinstance(error, ConfigError | DataError) and not self._has_begun():
            # nothing is lost, and a corrected command may use the folder
            self._clear_progress()
        self.release()

    def release(self) -> None:
        """Release the lock, so that other processes can write the folder."""
        if self._lock is None or not self._lock.is_locked:
            return

        # remove the file while it is locked: afterwards another process may own it
        (self.progress / LOCK).unlink(missing_ok=True)
        self._lock.release()
        with suppress(OSError):  # it contains files, or does not exist
            self.progress.rmdir()

    def _has_begun(self) -> bool:
        """Whether any part is finished that a resumed run would reuse."""
        if any(entry != self.progress for entry in self.path.iterdir()):
            return True
        return any(entry.is_dir() or entry.suffix == ".json" for entry in self.progress.iterdir())


def begin(
    path: Path, *, step: str, config: Plain, inputs: Sequence[Input], command: str = ""
) -> Output | None:
    """Open the folder to write; None if it is already finished with the same config and inputs.

    Raises:
        ConfigError: If another process is writing it, or it contains something else. Nothing in it
            is changed.
    """
    run = _run(step, config, inputs, command)
    # without `.progress/` no process writes the folder, so it needs no lock and stays unchanged
    if path.is_dir() and not (path / PROGRESS).exists():
        if (path / MANIFEST).exists():
            _refuse_or_skip(path, run)
            return None
        _check_empty(path)

    output = _locked(path, run)
    try:
        if (path / MANIFEST).exists():
            _refuse_or_skip(path, run)
            output._clear_progress()
            output.release()
            return None
        _claim(output)
    except BaseException:
        output.release()
        raise
    return output


def beside(path: Path) -> Output:
    """The folder that another process has begun and holds, to build parts of it.

    Raises:
        DataError: If the folder has not begun.
    """
    return Output(path, read_record(path / PROGRESS / MARKER, Run), None)


def _refuse_or_skip(path: Path, run: Run) -> None:
    """Log that the same run finished the folder, or raise ConfigError if it was another run."""
    _check_same_run(path, "finished", read_manifest(path), run, FINISHED_KEYS)
    logger.info("%s is finished already, with the same settings and inputs: nothing to do", path)


def begin_scratch(path: Path, *, step: str, config: Plain, resume: bool) -> Output:
    """Open a folder for the parts of one file; `Output.join` writes the file.

    With `resume`, parts of an earlier run with the same config are kept. All other parts are
    removed.

    Raises:
        ConfigError: If another process is writing it, or it contains something else.
    """
    output = _locked(path, _run(step, config, [], ""))
    try:
        marker = output.progress / MARKER
        if marker.exists():
            same = read_json(marker) == json.loads(to_json(output.run))
            if not (resume and same):
                output._clear_progress()
        _claim(output)
    except BaseException:
        output.release()
        raise
    return output


FINISHED_KEYS = ("step", "config", "inputs")
"""A finished folder is reused if these are equal, whatever the versions and the command line."""
UNFINISHED_KEYS = ("format", "step", "config", "inputs", "versions")
"""An unfinished folder is resumed only if these are equal: its parts must fit together."""


def _run(step: str, config: Plain, inputs: Sequence[Input], command: str) -> Run:
    return Run(
        format=format_of(step),
        step=step,
        command=command,
        config=dict(config),
        inputs=list(inputs),
        versions=versions(),
    )


def _locked(path: Path, run: Run) -> Output:
    """Make the folder if it does not exist, and lock it until the process ends."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file, and the output is a folder. Choose another --out.")

    progress = path / PROGRESS
    progress.mkdir(parents=True, exist_ok=True)
    try:
        lock = try_lock(progress / LOCK)
    except FileNotFoundError:  # another process has just removed `.progress/`
        lock = None
    if lock is None:
        raise ConfigError(
            f"{path}: another process is writing this folder. Wait for it, or choose another --out."
        )
    return Output(path, run, lock)


def _claim(output: Output) -> None:
    """Record the run in an empty folder, or check that the parts in it belong to this run."""
    marker, lock = output.progress / MARKER, output.progress / LOCK
    begun = [
        entry
        for entry in output.path.rglob("*")
        if entry.is_file() and entry not in (marker, lock) and entry.suffix != ".partial"
    ]
    if marker.exists() and begun:
        earlier = read_record(marker, Run)
        _check_same_run(output.path, "unfinished", earlier, output.run, UNFINISHED_KEYS)
        logger.info("%s: resuming where an earlier run stopped", output.path)
        return

    _check_empty(output.path)
    write_atomically(marker, to_json(output.run))


def _check_empty(path: Path) -> None:
    """Raise ConfigError if a folder holds files that no step wrote."""
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name != PROGRESS)
    if foreign:
        raise ConfigError(
            f"{path}: contains other files ({', '.join(foreign[:3])}). Choose an empty or new"
            " folder for --out."
        )


def _check_same_run(path: Path, state: str, earlier: Run, run: Run, keys: Sequence[str]) -> None:
    """Raise ConfigError if an earlier run differs in one of the keys."""
    before, now = msgspec.to_builtins(earlier), json.loads(to_json(run))
    differences: list[str] = []
    for key in keys:
        differences += _differences(key, before[key], now[key])

    if differences:
        raise ConfigError(
            f"{path}: contains the {state} output of `worldpm {earlier.step}` with other settings"
            f" or inputs ({'; '.join(differences[:3])}). Choose another --out, or remove the"
            " folder."
        )


def _differences(name: str, before: object, now: object) -> list[str]:
    if before == now:
        return []
    if name == "inputs":
        return ["its inputs had different contents or names"]
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [f"{name} was {before!r}, now {now!r}"]

    differences: list[str] = []
    for key in sorted({*before, *now}):
        differences += _differences(f"{name}.{key}", before.get(key), now.get(key))
    return differences


def _without_none(timing: Timing) -> Plain:
    return {name: value for name, value in asdict(timing).items() if value is not None}


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def sync_file(path: Path) -> str:
    """Wait until a file is on the disk, and return its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256(path)
