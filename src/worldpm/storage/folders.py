"""What a step writes: one folder, finished when, and only when, its manifest exists.

While a step runs, `.progress/` holds its settings and a record of every part that is done, so that
the same command goes on where a killed run stopped. Files appear under their final names only when
whole (written aside, synced, renamed).
"""

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from worldpm.errors import ConfigError, DataError

MANIFEST, TIMINGS, PROGRESS = "manifest.json", "timings.jsonl", ".progress"
MARKER = "run"
"""The file in `.progress/` that says which run is writing."""
FORMAT = 2
"""Version of the folders and tables that the steps write, in every manifest. 1, of release 0.1, was
not written down."""
LIBRARIES = (
    "worldpm",
    "accelerate",
    "duckdb",
    "html-to-markdown",
    "numpy",
    "pyarrow",
    "tokenizers",
    "torch",
    "transformers",
)

logger = logging.getLogger(__name__)

Json = dict[str, Any]


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, sync, rename: after a crash the file is the old one or the new one, never half
    of it."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    _sync_folder(path.parent)


def to_json(value: object) -> bytes:
    """Readable JSON with a final newline. NaN has no place in JSON and raises ValueError."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Json:
    """A JSON object that a step wrote.

    Raises:
        DataError: If it is not JSON.
    """
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not JSON ({error}); make the folder again") from error
    return content


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> str:
    """Wait until a file is on the disk; its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256(path)


def versions() -> dict[str, str]:
    """Python and the libraries whose release can change a result, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # of an extra that was left out
            continue
    return found


def is_ours(folder: Path) -> bool:
    """Whether a step of this project wrote the folder, to its end or not."""
    return (folder / MANIFEST).exists() or (folder / PROGRESS).exists()


def manifest(folder: Path, *, made_by: str | None = None) -> Json:
    """The manifest of a finished folder.

    Raises:
        ConfigError: If the folder is absent, unfinished, or was made by another step than
            `made_by`.
        DataError: If the manifest is not JSON.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder" + (f"; `worldpm {made_by}` makes one" if made_by else "")
        )
    path = folder / MANIFEST
    if not path.exists():
        raise ConfigError(
            f"{folder}: not finished (it has no {MANIFEST}); run the command that makes it again"
        )
    try:
        content = read_json(path)
        step = str(content["step"])
    except (KeyError, TypeError) as error:
        raise DataError(
            path, f"not a manifest of this project ({error}); make the folder again"
        ) from error
    if (version := content.get("format", 1)) != FORMAT:
        raise ConfigError(
            f"{folder}: written in format {version}, and this version of worldpm reads format"
            f" {FORMAT}. Make it again with `worldpm {step}`, or read it with the version that"
            " wrote it."
        )
    if made_by is not None and step not in made_by.split("|"):
        raise ConfigError(
            f"{folder}: made by `worldpm {step}`, but what `worldpm {made_by}` makes is needed here"
        )
    return content


def describe(path: Path) -> Json:
    """Name, bytes and SHA-256 of an input: a file, or a finished folder, whose manifest vouches for
    its files (timings aside)."""
    if path.is_dir():
        total = sum(
            (path / name).stat().st_size for name in verified_files(path) if name != TIMINGS
        )
        return {"name": path.resolve().name, "bytes": total, "sha256": sha256(path / MANIFEST)}
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def verified_files(folder: Path) -> list[str]:
    """The names of a finished folder's files, after a look that each is there and as the manifest
    has it.

    Raises:
        DataError: If a file is missing or was altered.
    """
    hashes: dict[str, str | None] = manifest(folder).get("files", {})
    for name, digest in hashes.items():
        path = folder / name
        if not path.is_file() or (digest is not None and sha256(path) != digest):
            raise DataError(path, "missing, or not as its manifest has it; make the folder again")
    return sorted(hashes)


class Output:
    """The folder that a step is writing; use `begin` to get one, and `finish` as the last act."""

    def __init__(
        self, path: Path, *, step: str, config: Json, inputs: Sequence[Json], lock: int
    ) -> None:
        self.path = path
        self.run: Json = {
            "format": FORMAT,
            "step": step,
            "config": config,
            "inputs": list(inputs),
            "versions": versions(),
        }
        self._lock = lock
        self._started = time.monotonic()

    @property
    def progress(self) -> Path:
        """Where the step may keep what it needs to go on; it is removed when the step finishes."""
        return self.path / PROGRESS

    def part(self, name: str, build: Callable[[Path], Json]) -> Json:
        """Build the file `name`, or take it as a killed run left it. `build` writes to a path and
        returns what to remember."""
        key = name.replace("/", "-")
        record_path, target = self.progress / f"{key}.json", self.path / name
        if record_path.exists():
            record: Json = json.loads(record_path.read_text(encoding="utf-8"))
            if target.exists() and sha256(target) == record["sha256"]:
                if not name.startswith(PROGRESS):
                    logger.info("%s: done before", name)
                kept: Json = record["kept"]
                return kept
        started = time.monotonic()
        aside = self.progress / f"{key}.partial"
        kept = build(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        digest = sha256(aside)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, target)
        _sync_folder(target.parent)
        write_atomically(
            record_path,
            to_json({"kept": kept, "sha256": digest, "seconds": time.monotonic() - started}),
        )
        return kept

    def write(self, name: str, content: bytes) -> None:
        """Write a small file of the step whole."""
        write_atomically(self.path / name, content)

    def join(self, names: Sequence[str], target: Path) -> None:
        """Write the parts one after another as one file, whole or not at all, and remove this
        folder."""
        aside = self.progress / "joined"
        with aside.open("wb") as joined:
            for name in names:
                with (self.path / name).open("rb") as part:
                    shutil.copyfileobj(part, joined)
            joined.flush()
            os.fsync(joined.fileno())
        os.replace(aside, target)
        _sync_folder(target.parent)
        shutil.rmtree(self.path)

    def discard(self) -> None:
        """Give up what was made: other words or inputs may take the folder."""
        for entry in (*self.path.iterdir(), *self.progress.iterdir()):
            if not entry.is_dir():
                entry.unlink()
            elif entry != self.progress:
                shutil.rmtree(entry)

    def finish(self, *, counts: Json, drops: Mapping[str, Mapping[str, int]] | None = None) -> None:
        """Write the timings and, last, the manifest with the hash of every file; then the folder is
        finished."""
        self._write_timings()
        files = sorted(
            f for f in self.path.rglob("*") if f.is_file() and self.progress not in f.parents
        )
        hashes = {
            str(f.relative_to(self.path)): None if f.name == TIMINGS else sha256(f) for f in files
        }
        content = {**self.run, "counts": counts, "drops": drops or {}, "files": hashes}
        write_atomically(self.progress / MANIFEST, to_json(content))
        os.replace(self.progress / MANIFEST, self.path / MANIFEST)
        _sync_folder(self.path)
        shutil.rmtree(self.progress)

    def _write_timings(self) -> None:
        path = self.path / TIMINGS
        lines = [path.read_text(encoding="utf-8")] if path.exists() else []
        for record_path in sorted(self.progress.glob("*.json")):
            record = json.loads(record_path.read_text(encoding="utf-8"))
            if "seconds" in record:
                lines.append(
                    json.dumps(
                        {
                            "part": record_path.name.removesuffix(".json"),
                            "seconds": round(record["seconds"], 3),
                        }
                    )
                    + "\n"
                )
        total = {
            "part": self.run["step"],
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_memory_mib": peak_memory_mib(),
        }
        self.write(TIMINGS, "".join([*lines, json.dumps(total) + "\n"]).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, ConfigError | DataError) and not self._has_begun():
            shutil.rmtree(
                self.progress, ignore_errors=True
            )  # better words or inputs may take the folder
        self.release()

    def release(self) -> None:
        """Let other processes write the folder."""
        os.close(self._lock)

    def _has_begun(self) -> bool:
        """Whether anything is finished that the same command would not make again."""
        kept = [entry for entry in self.path.iterdir() if entry != self.progress]
        return bool(kept) or any(
            entry.is_dir() or entry.suffix == ".json" for entry in self.progress.iterdir()
        )


def begin(path: Path, *, step: str, config: Json, inputs: Sequence[Json]) -> Output | None:
    """The folder to write, or None where it is finished with the same config and inputs already.

    Raises:
        ConfigError: If another process is writing it, or it holds something else: then nothing in
            it is touched.
    """
    output = _locked(path, step=step, config=config, inputs=inputs)
    try:
        if (path / MANIFEST).exists():
            _same_run(path, manifest(path), output.run, "finished", ("step", "config", "inputs"))
            shutil.rmtree(output.progress, ignore_errors=True)
            logger.info(
                "%s is finished already, with the same settings and inputs: nothing to do", path
            )
            output.release()
            return None
        _claim(output)
    except BaseException:
        output.release()
        raise
    return output


def begin_scratch(path: Path, *, step: str, config: Json, resume: bool) -> Output:
    """A folder for the parts of one file, which `Output.join` writes and ends.

    Parts of an earlier run with the same config stay if `resume`; those of other runs are removed.

    Raises:
        ConfigError: If another process is writing it, or it holds something else.
    """
    output = _locked(path, step=step, config=config, inputs=[])
    try:
        marker = output.progress / MARKER
        same = marker.exists() and read_json(marker) == json.loads(to_json(output.run))
        if marker.exists() and not (resume and same):
            shutil.rmtree(output.progress)
        _claim(output)
    except BaseException:
        output.release()
        raise
    return output


def _locked(path: Path, *, step: str, config: Json, inputs: Sequence[Json]) -> Output:
    """The folder, made where it is absent, with a lock that ends with the process."""
    if path.exists() and not path.is_dir():
        raise ConfigError(
            f"{path}: a file stands where the output folder should be; choose another --out"
        )
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigError(
            f"{path}: another process is writing this folder; wait for it or choose another --out"
        ) from None
    return Output(path, step=step, config=config, inputs=inputs, lock=lock)


def _claim(output: Output) -> None:
    """Note the run in an empty folder, or check that the parts in it are of this run."""
    marker = output.progress / MARKER
    begun = [
        entry.name
        for entry in output.path.rglob("*")
        if entry.is_file() and entry != marker and entry.suffix != ".partial"
    ]
    if marker.exists() and begun:
        _same_run(
            output.path,
            json.loads(marker.read_text(encoding="utf-8")),
            output.run,
            "unfinished",
            tuple(output.run),
        )
        logger.info("%s: going on where an earlier run stopped", output.path)
        return
    strangers = sorted(entry.name for entry in output.path.iterdir() if entry.name != PROGRESS)
    if strangers:
        raise ConfigError(
            f"{output.path}: holds other files ({', '.join(strangers[:3])}); choose an empty or new"
            " folder for --out"
        )
    output.progress.mkdir(exist_ok=True)
    write_atomically(marker, to_json(output.run))


def _same_run(path: Path, there: Json, here: Json, state: str, keys: Sequence[str]) -> None:
    differences = [
        text
        for key in keys
        for text in _differences(key, there.get(key), json.loads(to_json(here[key])))
    ]
    if differences:
        raise ConfigError(
            f"{path}: holds the {state} output of `worldpm {there.get('step')}` with other settings"
            f" or inputs ({'; '.join(differences[:3])}); choose another --out, or remove the folder"
        )


def _differences(name: str, there: object, here: object) -> list[str]:
    if there == here:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        return [
            text
            for key in keys
            for text in _differences(f"{name}.{key}", there.get(key), here.get(key))
        ]
    if name == "inputs":
        return ["its inputs had other contents or names"]
    return [f"{name} was {there!r}, now {here!r}"]


def peak_memory_mib() -> int:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
