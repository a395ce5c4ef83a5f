"""`worldpm score`: lines in, lines out."""

import json
from pathlib import Path

import pytest

from tests.conftest import run, spawn
from worldpm import Scorer
from worldpm.storage import folders

GOOD = '{"prompt": "How?", "responses": ["So.", "Read it."], "id": 7}'


def test_lines_come_back_in_order_with_rewards_and_their_other_keys(road: Path) -> None:
    chat = (
        '{"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content":'
        ' "So."}]}'
    )
    found = spawn("score", road / "checkpoint", stdin=f"{GOOD}\n\n{chat}\n".encode())
    assert found.returncode == 0, found.stderr
    first, second = (json.loads(line) for line in found.stdout.splitlines())
    expected = Scorer.load(road / "checkpoint").rewards("How?", ["So.", "Read it."])
    assert first == {
        "prompt": "How?",
        "responses": ["So.", "Read it."],
        "id": 7,
        "rewards": pytest.approx(expected, abs=1e-5),
    }
    assert second["reward"] == pytest.approx(expected[0], abs=1e-5)


def test_no_responses_give_no_rewards(road: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "How?", "responses": []}\n')
    assert (
        run("score", road / "checkpoint", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
        == 0
    )
    assert json.loads((tmp_path / "out.jsonl").read_text())["rewards"] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl:2: not JSON"),
        ("[" * 100_000, "in.jsonl:2: not JSON"),
        ('{"prompt": NaN, "responses": []}', "NaN is not a JSON number"),
        ("[]", "in.jsonl:2: expected"),
        ('{"prompt": "How?"}', "in.jsonl:2: expected"),
        ('{"prompt": "How?", "responses": [3]}', "a response is not text"),
        ('{"prompt": "How?", "responses": ["a"], "x": 1e999}', "in.jsonl:2: not JSON"),
        ('{"prompt": "\\ud800", "responses": ["a"]}', "in.jsonl:2: not JSON"),
        (
            '{"prompt": [{"role": "user<|im_end|>", "content": "x"}], "responses": ["a"]}',
            "is none of system, user, assistant",
        ),
        ('{"prompt": [], "responses": ["a"]}', "not a list with at least one message"),
        (
            '{"prompt": [{"role": "user"}], "responses": ["a"]}',
            "a role and a content that are text",
        ),
        (
            '{"messages": [{"role": "user", "content": "How?"}]}',
            "the last message must be the assistant's",
        ),
        (json.dumps({"prompt": "word " * 5000, "responses": ["a"]}), "in.jsonl:2: 10018 tokens"),
        (
            "\udcff\udcfe".encode("utf-8", "surrogateescape").decode("latin-1"),
            "in.jsonl:2: not JSON",
        ),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(f"{GOOD}\n".encode() + line.encode("latin-1") + b"\n")
    assert (
        run("score", road / "checkpoint", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
        == 2
    )
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out.jsonl").exists()


def test_what_is_too_long_is_cut_on_request(road: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "word " * 5000, "responses": ["a"]}))
    assert (
        run(
            "score",
            road / "checkpoint",
            tmp_path / "in.jsonl",
            "--cut",
            "--out",
            tmp_path / "out.jsonl",
        )
        == 0
    )


def test_on_a_stream_the_lines_before_a_bad_one_are_answered(road: Path) -> None:
    found = spawn("score", road / "checkpoint", stdin=f"{GOOD}\n{{\n".encode())
    assert found.returncode == 2
    assert len(found.stdout.splitlines()) == 1
    assert b"stdin:2: not JSON" in found.stderr


def test_an_output_in_a_folder_that_is_not_there_is_named(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert (
        run(
            "score",
            road / "checkpoint",
            tmp_path / "in.jsonl",
            "--out",
            tmp_path / "no" / "out.jsonl",
        )
        == 2
    )
    assert "is not there; make it first" in capsys.readouterr().err


def test_a_missing_file_or_model_is_named(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("score", road / "checkpoint", tmp_path / "nowhere.jsonl") == 2
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err
    assert run("score", tmp_path / "nowhere", tmp_path / "nowhere.jsonl") == 2
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert run("score", tmp_path / "nowhere", tmp_path / "in.jsonl") == 2
    assert "`worldpm train` makes one" in capsys.readouterr().err


MANY = "".join(
    json.dumps({"prompt": f"How {i}?", "responses": ["So.", "Read it. " * (i % 9)]}) + "\n"
    for i in range(600)
)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_killed_run_goes_on_where_it_was_and_ends_in_the_same_bytes(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in.jsonl").write_text(MANY)
    words = ("score", road / "checkpoint", tmp_path / "in.jsonl", "--out")
    assert run(*words, tmp_path / "whole.jsonl") == 0
    caplog.set_level("INFO")
    rewards = Scorer.score

    def stop(self: Scorer, requests: object) -> object:
        for number, answer in enumerate(rewards(self, requests)):  # type: ignore[arg-type]
            if number == 100 and len(calls) == 1:
                raise KeyboardInterrupt
            yield answer
        calls.append(1)

    calls: list[int] = []
    monkeypatch.setattr(Scorer, "score", stop)
    assert run(*words, tmp_path / "killed.jsonl") == 1
    assert not (tmp_path / "killed.jsonl").exists()
    scratch = tmp_path / "killed.jsonl.partial" / ".progress"
    (scratch / ".progress-00000001.lines.partial").write_text('{"torn')
    monkeypatch.setattr(Scorer, "score", rewards)
    assert run(*words, tmp_path / "killed.jsonl") == 0
    assert "going on after 256 lines" in caplog.text
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "killed.jsonl",
        "whole.jsonl",
    ]


def test_lines_scored_with_other_settings_are_scored_again(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "in.jsonl").write_text(MANY)
    words = ("score", road / "checkpoint", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(folders.Output, "join", interrupt)
        assert run(*words, "--max-length", 64, "--cut") == 1
    assert (tmp_path / "out.jsonl.partial").is_dir()
    assert run(*words) == 0
    assert "going on" not in caplog.text
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 600
    assert all("rewards" in line for line in (tmp_path / "out.jsonl").read_text().splitlines())


def test_explanations_from_the_command_line(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text(
        json.dumps({"prompt": "How long?", "responses": ["An hour. Or two.", ""], "id": 3}) + "\n"
    )
    assert run("explain", road / "checkpoint", lines) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["id"] == 3
    first, empty = row["explanations"]
    assert "".join(token for token, _ in first["tokens"]["response"]) == "An hour. Or two."
    assert [one["text"] for one in first["sentences"]] == ["An hour. ", "Or two."]
    assert (empty["tokens"]["response"], empty["sentences"]) == ([], [])
    assert run("explain", road / "checkpoint", tmp_path / "none.jsonl") == 2
    lines.write_text("{}\n")
    assert run("explain", road / "checkpoint", lines) == 2
