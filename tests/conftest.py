"""What many tests need: small dumps, and one small road walked once."""

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
"""Files of the tests that take longest: they come first, so that at the end no process waits for
the other."""

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
    """`--data DIR`: where real dumps, benchmarks and published scores are."""
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
    """The folder of real data; the tests that need it skip where it is absent."""
    folder: Path = request.config.getoption("--data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; name its folder with --data DIR")
    return folder.resolve()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what is imported out of garbage collections: half a million objects that stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first; else the order stays."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def posts_xml(rows: Sequence[str]) -> bytes:
    """A Posts.xml as the dumps have it, with its BOM."""
    body = "\n".join(f"  {row}" for row in rows)
    return (
        b"\xef\xbb\xbf"
        + f'<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{body}\n</posts>'.encode()
    )


@pytest.fixture(scope="session")
def one_measure() -> Iterator[None]:
    """Measure the device's rate of matrix products once for all trainings of this process."""
    # not above: what workers run is in modules of tests too, and they would all import torch
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
    """The exit code of a command, as a user types it but within this process."""
    return cli.main([str(word) for word in words])


def spawn(
    *words: object, stdin: bytes | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """A command as a process of its own."""
    command = [sys.executable, "-m", "worldpm.cli", *map(str, words)]
    return subprocess.run(
        command, input=stdin, capture_output=True, check=False, cwd=cwd, timeout=300
    )


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a step are forked from a server that has imported everything, not spawned."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)


def thread_of(*votes: int, bodies: Sequence[str] | None = None, name: str = "site/1") -> Thread:
    """A thread whose answers have these votes."""
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
    """A folder that one of the processes of a run of tests builds for all of them."""
    base = factory.getbasetemp()
    # each process has a folder of its own below that of the run
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
    """A folder with `threads`, `groups`, `checkpoint` and `results` of a forum of 150 threads,
    trained for four steps."""
    return once(tmp_path_factory, "road", walk)


def walk(folder: Path) -> None:
    """The road in a folder."""
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
