"""Two processes score, evaluate and filter groups with the bytes of one."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import run
from tests.training.test_processes import have_ended, start_group, wait_for
from worldpm import cli
from worldpm.scoring.peers import Peers


def rows(path: Path, count: int) -> Path:
    lines = [
        {"prompt": f"Question {n}?", "responses": [f"Answer {n} " * (n % 7), "No."], "id": n}
        for n in range(count)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_parts_are_dealt_to_the_processes_in_turn() -> None:
    alone, (first, second) = Peers(), (Peers(0, 2), Peers(1, 2))
    assert [part for part in range(5) if first.has(part)] == [0, 2, 4]
    assert [part for part in range(5) if second.has(part)] == [1, 3]
    assert all(alone.has(part) for part in range(5))
    assert (first.is_first, second.is_first, alone.is_first) == (True, False, True)


def test_two_processes_score_with_the_bytes_of_one(
    road: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # 600 rows are three parts
    words = ("score", road / "checkpoint", rows(tmp_path / "in.jsonl", 600), "--dtype", "float32")
    assert run(*words, "--out", tmp_path / "alone.jsonl") == 0
    commands = start_group(tmp_path, cli.main, (*words, "--out", tmp_path / "two.jsonl"))
    wait_for(commands, lambda: have_ended(commands))
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert not (tmp_path / "two.jsonl.partial").exists()

    # without a file to write, no process has a place for its rows
    commands = start_group(tmp_path, cli.main, words)
    while not have_ended(commands):
        pass
    assert [command.poll() for command in commands] == [2, 2]


def test_two_processes_evaluate_with_the_results_of_one(road: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"Q{n}?", "chosen": "Yes.", "rejected": "No."} for n in range(40)]
    pairs.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    # one part each
    sets = (road / "groups", pairs)
    words = ("evaluate", road / "checkpoint", "--on", *sets, "--dtype", "float32")
    assert run(*words, "--out", tmp_path / "alone") == 0
    for _ in range(2):  # the second time it is finished already
        commands = start_group(tmp_path, cli.main, (*words, "--out", tmp_path / "two"))
        wait_for(commands, partial(have_ended, commands))
        assert [command.poll() for command in commands] == [0, 0]
    for name in ("rewards.parquet", "metrics.json", "items.parquet", "tables/accuracy.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_two_processes_filter_groups_with_the_bytes_of_one(
    road: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # 2,500 threads are three parts
    assert run("simulate", "--threads", 2500, "--out", tmp_path / "threads") == 0
    words = ("group", tmp_path / "threads", "--filter-with", road / "checkpoint")
    assert run(*words, "--out", tmp_path / "alone") == 0
    for _ in range(2):  # the second time it is finished already
        commands = start_group(tmp_path, cli.main, (*words, "--out", tmp_path / "two"))
        wait_for(commands, partial(have_ended, commands))
    names = [path.name for path in sorted((tmp_path / "alone").glob("*.parquet"))]
    assert names
    for name in [*names, "ATTRIBUTION.csv"]:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not (tmp_path / "two" / ".progress").exists()

    commands = start_group(tmp_path, cli.main, (*words[:2], "--out", tmp_path / "plain"))
    while not have_ended(commands):
        pass
    assert [command.poll() for command in commands] == [2, 2]
    assert not (tmp_path / "plain").exists()
