"""Work by many processes: order, bounds, errors, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TWO_ANSWERS, posts_xml, run
from worldpm.errors import DataError, WorldPMError
from worldpm.storage.workers import TASKS_AHEAD, in_order


def slow_when_small(number: int) -> int:
    time.sleep(0.05 * (number < 2))
    return number * number


def test_results_have_the_order_of_the_tasks_and_few_tasks_are_taken_ahead() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    ahead = []
    results = []
    for result in in_order(slow_when_small, tasks(), workers=2):
        results.append(result)
        ahead.append(len(taken) - len(results))
    assert (
        results
        == [number * number for number in range(40)]
        == list(in_order(slow_when_small, range(40), workers=0))
    )
    assert max(ahead) < 2 * TASKS_AHEAD


def refuse(name: str) -> str:
    raise DataError(name, "no forum dump", line=3)


def test_an_error_of_a_worker_keeps_its_message() -> None:
    with pytest.raises(DataError, match=r"^a\.xml:3: no forum dump$"):
        list(in_order(refuse, ["a.xml"], workers=1))


def test_a_worker_that_is_killed_gives_one_message() -> None:
    with pytest.raises(WorldPMError, match="with fewer --workers"):
        list(in_order(end, [signal.SIGKILL], workers=1))


def end(how: signal.Signals) -> None:
    os.kill(os.getpid(), how)


def test_an_error_of_a_task_comes_in_the_position_of_its_result() -> None:
    stream = in_order(len, ["ab", 7, "c"], workers=2)  # type: ignore[arg-type]
    assert next(stream) == 2
    with pytest.raises(TypeError, match="int"):
        next(stream)


@pytest.mark.usefixtures("warm_workers")
def test_ingest_and_group_write_the_same_with_and_without_workers(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "Posts.xml").write_bytes(posts_xml(TWO_ANSWERS))
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        assert (
            run(
                "ingest",
                tmp_path / "site" / "Posts.xml",
                "--workers",
                workers,
                "--out",
                folder / "threads",
            )
            == 0
        )
        assert (
            run(
                "group",
                folder / "threads",
                "--workers",
                workers,
                "--rejects",
                "--out",
                folder / "groups",
            )
            == 0
        )
    for name in (
        "threads/site.parquet",
        "groups/site.parquet",
        "groups/ATTRIBUTION.csv",
        "groups/rejects.jsonl",
        "groups/manifest.json",
    ):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


LEFT = """
import os, sys, time
from worldpm.storage.workers import in_order
def work(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)
if __name__ == "__main__":
    list(in_order(work, [float(word) for word in sys.argv[1:]], workers=2))
"""


def test_ctrl_c_prints_no_traceback_of_workers(tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    command = [sys.executable, str(tmp_path / "left.py"), "60", "60"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    ) as parent:
        assert parent.stdout is not None
        for _ in range(2):
            parent.stdout.readline()
        os.killpg(parent.pid, signal.SIGINT)
        _, said = parent.communicate()

    assert said.count("Traceback") == 1  # the parent's
    assert "_process_worker" not in said


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    with subprocess.Popen(
        [sys.executable, tmp_path / "left.py", "60", "60"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10

    while any(map(lives, workers)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def heed_ctrl_c() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a test run in the background ignores it, and its processes would inherit that


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
