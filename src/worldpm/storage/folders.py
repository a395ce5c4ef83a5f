"""The folder that a step writes: finished when, and only when, its manifest exists.

While a step runs, `.progress/` holds its settings and a record of every part that is done, so that
the same command goes on where a killed run stopped. Files appear under their final names only when
whole (written aside, synced, renamed).
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
    read_manifest,
    sha256,
    versions,
)

MARKER = "run"
"""The file in `.progress/` that says which run is writing."""
LOCK = "lock"
"""The file in `.progress/` that the writing process holds locked."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartRecord:
    """A part that is done, in `.progress/`."""

    result: object
    """What its `build` returned, as plain values."""
    sha256: str
    """Of the part's file."""
    seconds: float
    """That it took to build."""


@dataclass(frozen=True)
class Timing:
    """A row of `timings.jsonl`: a part, or the whole step."""

    part: str
    seconds: float
    """Of the monotonic clock, to a millisecond."""
    peak_memory_mib: int | None = None
    """Largest resident memory of the process; None for a part."""


class Output:
    """The folder that a step is writing; use `begin` to get one, and `finish` as the last act."""

    def __init__(self, path: Path, run: Run, lock: BaseFileLock) -> None:
        self.path = path
        self.run = run
        self._lock = lock
        self._started = time.monotonic()

    @property
    def progress(self) -> Path:
        """Where the step may keep what it needs to go on; it is removed when the step finishes."""
        return self.path / PROGRESS

    def part(self, name: str, build: Callable[[Path], Result]) -> Result:
        """Build the file `name`, or take it as a killed run left it.

        `build` writes to a path and returns what to remember of the part, as plain values.
        """
        key = name.replace("/", "-")
        record_path, target = self.progress / f"{key}.json", self.path / name
        if record_path.exists():
            record = read_record(record_path, PartRecord)
            if target.exists() and sha256(target) == record.sha256:
                if not name.startswith(PROGRESS):
                    logger.info("%s: done before", name)
                return cast(Result, record.result)

        started = time.monotonic()
        aside = self.progress / f"{key}.partial"
        result = build(aside)
        sync_file(aside)

        digest = sha256(aside)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, target)
        sync_folder(target.parent)
        # the record comes after its file: a record without its file would vouch for nothing
        record = PartRecord(result, digest, time.monotonic() - started)
        write_atomically(record_path, to_json(record))
        return result

    def write(self, name: str, content: bytes) -> None:
        """Write a small file of the step whole."""
        write_atomically(self.path / name, content)

    def join(self, names: Sequence[str], target: Path) -> None:
        """Write the parts one after another as one file, whole or not at all; remove the folder."""
        aside = self.progress / "joined"
        with aside.open("wb") as joined:
            for name in names:
                with (self.path / name).open("rb") as part:
                    shutil.copyfileobj(part, joined)
            joined.flush()
            os.fsync(joined.fileno())

        os.replace(aside, target)
        sync_folder(target.parent)
        self.discard()
        self.release()
        with suppress(OSError):  # another process may have begun in it
            self.path.rmdir()

    def discard(self) -> None:
        """Remove all parts, so that another command may take the folder."""
        for entry in self.path.iterdir():
            if entry != self.progress:
                _remove(entry)
        self._clear_progress()

    def _clear_progress(self) -> None:
        """Remove all of `.progress/` but the lock that this process holds."""
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

        # the rename is the moment at which the folder is finished
        write_atomically(self.progress / MANIFEST, to_json(manifest))
        os.replace(self.progress / MANIFEST, self.path / MANIFEST)
        sync_folder(self.path)
        self._clear_progress()

    def _write_timings(self) -> None:
        """Add the parts and the whole step to what the step itself wrote of its timings."""
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
        if isinstance(error, ConfigError | DataError) and not self._has_begun():
            # nothing is lost, and a corrected command may take the folder
            self._clear_progress()
        self.release()

    def release(self) -> None:
        """Let other processes write the folder."""
        if not self._lock.is_locked:
            return

        # removed while it is locked, because afterwards it may be the file of another process
        (self.progress / LOCK).unlink(missing_ok=True)
        self._lock.release()
        with suppress(OSError):  # it holds files, or is gone
            self.progress.rmdir()

    def _has_begun(self) -> bool:
        """Whether anything is finished that the same command would not make again."""
        if any(entry != self.progress for entry in self.path.iterdir()):
            return True
        return any(entry.is_dir() or entry.suffix == ".json" for entry in self.progress.iterdir())


def begin(
    path: Path, *, step: str, config: Plain, inputs: Sequence[Input], command: str = ""
) -> Output | None:
    """The folder to write, or None where it is finished with the same config and inputs already.

    Raises:
        ConfigError: If another process is writing it, or it holds something else: then nothing in
            it is touched.
    """
    run = _run(step, config, inputs, command)
    # without `.progress/` no process writes the folder, so it needs no lock and stays untouched
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


def _refuse_or_skip(path: Path, run: Run) -> None:
    """Report that a finished folder is of the same run, or raise ConfigError if it is not."""
    _check_same_run(path, "finished", read_manifest(path), run, FINISHED_KEYS)
    logger.info("%s is finished already, with the same settings and inputs: nothing to do", path)


def begin_scratch(path: Path, *, step: str, config: Plain, resume: bool) -> Output:
    """A folder for the parts of one file, which `Output.join` writes and ends.

    Parts of an earlier run with the same config stay if `resume`; those of other runs are removed.

    Raises:
        ConfigError: If another process is writing it, or it holds something else.
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
"""A finished folder stands for the same settings and inputs under any versions and words."""
UNFINISHED_KEYS = ("format", "step", "config", "inputs", "versions")
"""An unfinished folder goes on only under the same versions: its parts must fit together."""


def _run(step: str, config: Plain, inputs: Sequence[Input], command: str) -> Run:
    return Run(
        step=step, command=command, config=dict(config), inputs=list(inputs), versions=versions()
    )


def _locked(path: Path, run: Run) -> Output:
    """The folder, made where it is absent, with a lock that ends with the process."""
    if path.exists() and not path.is_dir():
        raise ConfigError(
            f"{path}: a file stands where the output folder should be; choose another --out"
        )

    progress = path / PROGRESS
    progress.mkdir(parents=True, exist_ok=True)
    try:
        lock = try_lock(progress / LOCK)
    except FileNotFoundError:  # another process has just removed `.progress/`
        lock = None
    if lock is None:
        raise ConfigError(
            f"{path}: another process is writing this folder; wait for it or choose another --out"
        )
    return Output(path, run, lock)


def _claim(output: Output) -> None:
    """Note the run in an empty folder, or check that the parts in it are of this run."""
    marker, lock = output.progress / MARKER, output.progress / LOCK
    begun = [
        entry
        for entry in output.path.rglob("*")
        if entry.is_file() and entry not in (marker, lock) and entry.suffix != ".partial"
    ]
    if marker.exists() and begun:
        earlier = read_record(marker, Run)
        _check_same_run(output.path, "unfinished", earlier, output.run, UNFINISHED_KEYS)
        logger.info("%s: going on where an earlier run stopped", output.path)
        return

    _check_empty(output.path)
    write_atomically(marker, to_json(output.run))


def _check_empty(path: Path) -> None:
    """Raise ConfigError if a folder holds files that no step wrote."""
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name != PROGRESS)
    if foreign:
        raise ConfigError(
            f"{path}: holds other files ({', '.join(foreign[:3])}); choose an empty or new"
            " folder for --out"
        )


def _check_same_run(path: Path, state: str, earlier: Run, run: Run, keys: Sequence[str]) -> None:
    """Raise ConfigError if an earlier run differs in one of the keys."""
    before, now = msgspec.to_builtins(earlier), json.loads(to_json(run))
    differences: list[str] = []
    for key in keys:
        differences += _differences(key, before[key], now[key])

    if differences:
        raise ConfigError(
            f"{path}: holds the {state} output of `worldpm {earlier.step}` with other settings"
            f" or inputs ({'; '.join(differences[:3])}); choose another --out, or remove the folder"
        )


def _differences(name: str, before: object, now: object) -> list[str]:
    if before == now:
        return []
    if name == "inputs":
        return ["its inputs had other contents or names"]
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
    """Wait until a file is on the disk; its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256(path)
