"""`worldpm score --engine ray` on a local cluster."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import run
from tests.scoring.test_peers import rows
from worldpm.scoring.ray_actors import cores_of_an_actor
from worldpm.storage.folders import Output

ray = pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    yield ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.shutdown()


def test_actors_score_with_the_bytes_of_one_process(road: Path, tmp_path: Path) -> None:
    # 600 rows are three parts
    words = ("score", road / "checkpoint", rows(tmp_path / "in.jsonl", 600), "--dtype", "float32")
    assert run(*words, "--out", tmp_path / "alone.jsonl") == 0
    actors = ("--engine", "ray", "--actors", "2")
    assert run(*words, *actors, "--out", tmp_path / "ray.jsonl") == 0
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


@pytest.mark.proof
def test_a_killed_actor_is_started_again(road: Path, tmp_path: Path) -> None:
    words = ("score", road / "checkpoint", rows(tmp_path / "in.jsonl", 2600))
    assert run(*words, "--out", tmp_path / "alone.jsonl") == 0
    killed: list[int] = []

    def kill() -> None:
        actors = [
            process
            for process in psutil.Process().children(recursive=True)
            if "_Actor" in " ".join(process.cmdline())
        ]
        if actors and not killed:
            killed.append(actors[0].pid)
            actors[0].send_signal(signal.SIGKILL)

    part = Output.part

    def killing(self: Output, name: str, build: Any) -> Any:
        if name.endswith("3.lines"):
            kill()
        return part(self, name, build)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "part", killing)
        actors = ("--engine", "ray", "--actors", "1")
        assert run(*words, *actors, "--out", tmp_path / "ray.jsonl") == 0
    assert killed
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_a_run_resumes_after_its_finished_parts(
    road: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = rows(tmp_path / "in.jsonl", 600)
    words = ("score", road / "checkpoint", source, "--engine", "ray")
    good = source.read_bytes()
    # the last line is not JSON
    source.write_bytes(good[:-2])
    assert run(*words, "--out", tmp_path / "out.jsonl") == 2
    assert "in.jsonl:600" in capfd.readouterr().err
    parts = list((tmp_path / "out.jsonl.partial" / ".progress").glob("*.lines"))
    assert len(parts) == 2

    assert run(*words[:3], "--actors", "2", "--out", tmp_path / "a.jsonl") == 2
    assert "--actors needs --engine ray" in capfd.readouterr().err
    assert run(*words, "--actors", "99", "--out", tmp_path / "a.jsonl") == 2
    assert "the cluster has 2 CPU cores" in capfd.readouterr().err
    assert run(*words) == 2
    assert "--engine ray needs a file to read" in capfd.readouterr().err


def test_an_actor_fits_on_a_node() -> None:
    assert cores_of_an_actor([1, 1], 2) == 1
    assert cores_of_an_actor([8, 8], 2) == 8
    assert cores_of_an_actor([8, 3], 3) == 3
    assert cores_of_an_actor([16], 4) == 4


def test_a_bad_row_stops_the_run_with_its_line(
    road: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a", "responses": ["b"]}\n{"prompt": "a"}\n')
    out = tmp_path / "out.jsonl"
    assert run("score", road / "checkpoint", source, "--out", out, "--engine", "ray") == 2
    assert "in.jsonl:2" in capfd.readouterr().err
    source.write_text('{"prompt": "a", "responses": ["' + "b " * 9000 + '"]}\n')
    assert run("score", road / "checkpoint", source, "--out", out, "--engine", "ray") == 2
    assert "in.jsonl:1" in capfd.readouterr().err
    assert not out.exists()
