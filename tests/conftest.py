"""Fixtures and helpers of many tests: small dumps, and one small run of the whole pipeline."""

import fcntl
import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache
from pathlib import Path

import py7zr
import pytest

from tests.warm_start import FORKS
from worldpm import cli
from worldpm.forums import hobbies
from worldpm.records import Answer, Thread

REPOSITORY = Path(__file__).resolve().parents[1]

LONGEST = ("test_runs", "test_road", "test_processes", "test_engines", "test_plan", "test_rlhf")
"""Files with the slowest tests. They run first, so that no process waits for another at the end."""

QUESTION = (
    '<row Id="{id}" PostTypeId="1" CreationDate="2020-01-0{id}T00:00:00.000" Score="3"'
    ' Title="T{id}" Body="&lt;p&gt;Q{id}&lt;/p&gt;" />'
)
ANSWER = (
    '<row Id="{id}" PostTypeId="2" ParentId="{parent}" CreationDate="2020-02-01T00:00:00.000"'
    ' Score="{votes}" Body="&lt;p&gt;A{id}&lt;/p&gt;" />'
)
TWO_ANSWERS = (
    QUESTION.format(id=1),
    ANSWER.format(id=2, parent=1, votes=5),
    ANSWER.format(id=3, parent=1, votes=-2),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--data DIR`, the folder of real dumps, benchmarks and published scores."""
    default = REPOSITORY.parent / "shared" / "data"
    parser.addoption(
        "--data",
        type=Path,
        default=default,
        metavar="DIR",
        help=f"folder of real data (default: {default})",
    )


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real data. Tests that need it are skipped if it does not exist."""
    folder: Path = request.config.getoption("--data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; give their folder with --data DIR")
    return folder.resolve()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave imported objects out of garbage collections: half a million that are never freed."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, and the others in the usual order."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def posts_xml(rows: Sequence[str]) -> bytes:
    """A Posts.xml as in the dumps, with its BOM."""
    body = "\n".join(f"  {row}" for row in rows)
    return (
        b"\xef\xbb\xbf"
        + f'<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{body}\n</posts>'.encode()
    )


@pytest.fixture(scope="session")
def one_measure() -> Iterator[None]:
    """Measure the device's rate of matrix products once for all trainings of this process."""
    # imported here, because workers import test modules too and would all import torch
    from worldpm.model import costs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "matrix_rate", cache(costs.matrix_rate))
        yield


@pytest.fixture
def dump(tmp_path: Path) -> Callable[..., Path]:
    """Write an archive with the given rows, or bytes, as its Posts.xml."""

    def write(
        content: Sequence[str] | bytes = TWO_ANSWERS,
        *,
        name: str = "site.7z",
        member: str = "Posts.xml",
    ) -> Path:
        path = tmp_path / name
        with py7zr.SevenZipFile(path, "w") as archive:
            archive.writestr(content if isinstance(content, bytes) else posts_xml(content), member)
        return path

    return write


def run(*words: object) -> int:
    """Run a command in this process. Return its exit code."""
    return cli.main([str(word) for word in words])


def spawn(
    *words: object, stdin: bytes | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a separate process."""
    command = [sys.executable, "-m", "worldpm.cli", *map(str, words)]
    return subprocess.run(
        command, input=stdin, capture_output=True, check=False, cwd=cwd, timeout=300
    )


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork workers from a server that has imported everything, instead of spawning them."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)


def thread_of(*votes: int, bodies: Sequence[str] | None = None, name: str = "site/1") -> Thread:
    """A thread with an answer for each number of votes."""
    first, _ = hobbies.simulate(1, seed=0)[0]
    answers = tuple(
        Answer(
            f"r{i}",
            bodies[i] if bodies else f"answer {i}",
            v,
            False,
            first.created,
            f"user{i}",
            "CC BY-SA 4.0",
        )
        for i, v in enumerate(votes)
    )
    return Thread(
        name,
        "stackexchange",
        "site",
        f"About {name}",
        "Body",
        (),
        1,
        first.created,
        None,
        "https://site/q/1",
        "CC BY-SA 4.0",
        answers,
    )


def once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that one test process builds for all processes of the test run."""
    base = factory.getbasetemp()
    # each process has its folder inside that of the test run
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, built = shared / name, shared / f"{name}.built"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            folder.mkdir()
            build(folder)
            built.touch()
    return folder


@pytest.fixture(scope="session")
def road(one_measure: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pipeline's output on a forum of 150 threads: `threads`, `groups`,
    `checkpoint` (trained for four steps) and `results`."""
    return once(tmp_path_factory, "road", walk)


def walk(folder: Path) -> None:
    """Run the pipeline in a folder."""
    assert run("simulate", "--threads", 150, "--out", folder / "threads") == 0
    assert run("group", folder / "threads", "--out", folder / "groups") == 0
    options = ("--model", "tiny", "--max-steps", 4, "--dtype", "float32", "--max-length", 256)
    assert run("train", folder / "groups", *options, "--out", folder / "checkpoint") == 0
    assert (
        run(
            "evaluate",
            folder / "checkpoint",
            "--on",
            folder / "groups",
            "--out",
            folder / "results",
        )
        == 0
    )
