"""The command line as a user types it: exit codes, one short message, kills, locks and full
disks."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ANSWER, QUESTION, run, spawn
from tests.warm_start import start
from worldpm.cli import VERBS


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files except the timings."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "timings.jsonl"]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, road: Path) -> Path:
    """Inputs of every step, and under `whole/` the output of each step without a stop."""
    import py7zr

    from tests.conftest import posts_xml

    folder = tmp_path_factory.mktemp("inputs")
    for site in ("a.test", "b.test"):
        rows = [
            row
            for i in range(1, 9)
            for row in (
                QUESTION.format(id=i),
                *(ANSWER.format(id=10 * i + k, parent=i, votes=k) for k in range(3)),
            )
        ]
        with py7zr.SevenZipFile(folder / f"{site}.7z", "w") as archive:
            archive.writestr(posts_xml(rows), "Posts.xml")
    assert run("simulate", "--threads", 50, "--out", folder / "threads") == 0
    assert run("group", folder / "threads", "--out", folder / "forum") == 0
    shutil.copytree(road / "checkpoint", folder / "model")
    (folder / "whole").mkdir()
    for verb in STEPS:
        assert run(*words_of(folder, verb), "--out", folder / "whole" / verb) == 0
    return folder


STEPS: dict[str, tuple[str, ...]] = {
    "ingest": ("{inputs}/a.test.7z", "{inputs}/b.test.7z"),
    "simulate": ("--threads", "200"),
    "group": ("{inputs}/whole/ingest",),
    "train": (
        "{inputs}/forum",
        "--model",
        "w16",
        "--max-steps",
        "5",
        "--batch-pairs",
        "16",
        "--max-length",
        "128",
        "--dtype",
        "float32",
    ),
    "evaluate": ("{inputs}/model", "--on", "{inputs}/forum"),
}
SIGNS = {
    "ingest": ("a.test.parquet", "b.test.posts", "b.test.parquet"),
    "simulate": ("simulated.parquet",),
    "group": ("a.test.parquet",),
    "train": ("tokenizer/tokenizer.json", "resume/*/state.json"),
    "evaluate": ("items.parquet", "rewards/model/forum-*.parquet"),
}


def words_of(inputs: Path, verb: str) -> list[str]:
    return [verb, *(word.format(inputs=inputs) for word in STEPS[verb])]


def reached(out: Path, name: str) -> bool:
    return (
        any(path for subfolder in ("", ".progress") for path in (out / subfolder).glob(name))
        or (out / "manifest.json").exists()
    )


@pytest.mark.parametrize(
    ("verb", "sign"), [(verb, sign) for verb, signs in SIGNS.items() for sign in signs]
)
def test_a_killed_step_run_again_ends_in_the_same_bytes(
    inputs: Path, tmp_path: Path, verb: str, sign: str
) -> None:
    out = tmp_path / "out"
    started = start(tmp_path, *words_of(inputs, verb), "--out", out)
    started.stop_when(lambda: reached(out, sign), signal.SIGKILL)
    assert run(*words_of(inputs, verb), "--out", out) == 0
    assert contents(out) == contents(inputs / "whole" / verb)


def test_ctrl_c_gives_one_message_and_loses_nothing(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    started = start(tmp_path, *words_of(inputs, "train"), "--out", out)
    code, error = started.stop_when(lambda: reached(out, "tokenizer/tokenizer.json"), signal.SIGINT)
    assert code == 1
    assert (
        error.strip().splitlines()[-1]
        == "worldpm train: interrupted. Run the same command again to continue where it stopped."
    )
    assert "Traceback" not in error
    assert run(*words_of(inputs, "train"), "--out", out) == 0
    assert contents(out) == contents(inputs / "whole" / "train")


def test_two_runs_into_one_folder_at_once_are_refused(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("train", inputs / "forum", "--model", "tiny", "--max-steps", 5000, "--out", out)
    first = start(tmp_path, *words)
    while not (out / ".progress" / "run").exists():
        time.sleep(0.01)
    code, error = start(tmp_path, *words).finish()
    first.process.kill()
    first.finish()
    assert code == 2
    assert "another process is writing this folder" in error


@pytest.mark.parametrize("verb", list(STEPS))
def test_a_full_disk_gives_one_message_and_leaves_no_manifest(
    inputs: Path, tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "out"
    started = start(tmp_path, *words_of(inputs, verb), "--out", out, limit_bytes=2500)
    code, error = started.finish()
    assert code == 1, error
    assert "Traceback" not in error
    assert "Finished parts are kept" in error.strip().splitlines()[-1]
    assert not (out / "manifest.json").exists()
    assert run(*words_of(inputs, verb), "--out", out) == 0
    assert contents(out) == contents(inputs / "whole" / verb)


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_every_verb_has_help(verb: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*verb, "--help") == 0
    assert "usage: worldpm" in capsys.readouterr().out


def test_help_works_in_a_separate_process() -> None:
    process = spawn("score", "--help")
    assert process.returncode == 0
    assert b"usage: worldpm score" in process.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "'frobnicate' is not a verb. There are demo, ingest"),
        (["ingest"], "Missing from worldpm ingest: --out PATH"),
        (["ingest", "x.7z", "--out", "o", "--fast"], "Unrecognized options: --fast"),
        (["group", "t", "--out", "o", "--rule", "best"], "invalid choice 'best'"),
        (["group", "t", "--out", "o", "--max-responses", "1"], "the first must be at least 2"),
        (["group", "t", "--out", "o", "--test-share", "0.95"], "leave no threads for training"),
        (
            ["train", "g", "--model", "tiny", "--out", "o", "--lr", "-1"],
            "--lr is -1.0; it must be above 0",
        ),
        (["train", "g", "--model", "tiny", "--out", "o", "--max-length", "8"], "at least 16"),
        (["simulate", "--threads", "0", "--out", "o"], "the first must be at least 1"),
        (["report", "--out", "o.html"], "no folder given"),
        (["report", "nowhere", "--out", "o.html"], "nowhere: no such file or folder"),
    ],
)
def test_wrong_arguments_give_one_message_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_without_arguments_the_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    output = capsys.readouterr().out
    assert all(verb in output for verb in VERBS)


def test_a_reader_that_closes_a_pipe_early_causes_no_traceback(road: Path) -> None:
    lines = '{"prompt": "How?", "responses": ["So."]}\n' * 200
    command = f"{sys.executable} -m worldpm.cli score {road / 'checkpoint'} | head -n 1"
    process = subprocess.run(
        command, shell=True, input=lines.encode(), capture_output=True, check=False, env=os.environ
    )
    assert len(process.stdout.splitlines()) == 1
    assert b"Traceback" not in process.stderr
    assert b"BrokenPipe" not in process.stderr
