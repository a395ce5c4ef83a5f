"""`worldpm score`: rows in, lines out."""

import gzip
import json
import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.conftest import run
from tests.warm_start import Streams, finished, start
from worldpm import Scorer, console
from worldpm.records import Message
from worldpm.scoring.scorer import Request
from worldpm.storage import folders

GOOD = '{"prompt": "How?", "responses": ["So.", "Read it."], "id": 7}'


def test_lines_come_back_in_order_with_rewards_and_their_other_keys(
    road: Path, tmp_path: Path
) -> None:
    chat = (
        '{"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content":'
        ' "So."}]}'
    )
    process = finished(tmp_path, "score", road / "checkpoint", stdin=f"{GOOD}\n\n{chat}\n".encode())
    assert process.returncode == 0, process.stderr
    first, second = (json.loads(line) for line in process.stdout.splitlines())
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
        ('{"prompt": NaN, "responses": []}', "in.jsonl:2: not JSON (NaN is not a number of JSON)"),
        ("[]", "in.jsonl:2: has no known form"),
        ('{"prompt": "How?"}', "in.jsonl:2: has no known form"),
        ('{"prompt": "How?", "responses": [3]}', "a response is not text"),
        ('{"prompt": "How?", "responses": ["a"], "x": 1e999}', "in.jsonl:2: not JSON"),
        (
            '{"prompt": "\\ud800", "responses": ["a"]}',
            "in.jsonl:2: contains an unpaired surrogate",
        ),
        (
            '{"prompt": [{"role": "user<|im_end|>", "content": "x"}], "responses": ["a"]}',
            "is unknown. Use one of system, developer, user, assistant, tool.",
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


def test_inputs_over_the_limit_are_cut_on_request(road: Path, tmp_path: Path) -> None:
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


def test_on_a_stream_the_lines_before_a_bad_one_are_answered(road: Path, tmp_path: Path) -> None:
    process = finished(tmp_path, "score", road / "checkpoint", stdin=f"{GOOD}\n{{\n".encode())
    assert process.returncode == 2
    assert len(process.stdout.splitlines()) == 1
    assert b"stdin:2: not JSON" in process.stderr


def test_an_output_in_an_absent_folder_is_named(
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
    assert "does not exist. Create it first." in capsys.readouterr().err


def test_a_missing_file_or_model_is_named(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("score", road / "checkpoint", tmp_path / "nowhere.jsonl") == 2
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err
    assert run("score", tmp_path / "nowhere", tmp_path / "nowhere.jsonl") == 2
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert run("score", tmp_path / "nowhere", tmp_path / "in.jsonl") == 2
    assert "`worldpm train` makes a folder" in capsys.readouterr().err


MANY = "".join(
    json.dumps({"prompt": f"How {i}?", "responses": ["So.", "Read it. " * (i % 9)]}) + "\n"
    for i in range(280)
)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_killed_run_resumes_and_ends_in_the_same_bytes(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in.jsonl").write_text(MANY)
    words = ("score", road / "checkpoint", tmp_path / "in.jsonl", "--out")
    assert run(*words, tmp_path / "whole.jsonl") == 0
    caplog.set_level("INFO")
    rewards = Scorer.score

    def stop(self: Scorer, requests: object) -> object:
        calls.append(1)
        for number, answer in enumerate(rewards(self, requests)):  # type: ignore[arg-type]
            if number == 10 and len(calls) == 2:
                raise KeyboardInterrupt
            yield answer

    calls: list[int] = []
    monkeypatch.setattr(Scorer, "score", stop)
    assert run(*words, tmp_path / "killed.jsonl") == 1
    assert not (tmp_path / "killed.jsonl").exists()
    scratch = tmp_path / "killed.jsonl.partial" / ".progress"
    (scratch / ".progress-00000001.lines.partial").write_text('{"torn')
    monkeypatch.setattr(Scorer, "score", rewards)
    assert run(*words, tmp_path / "killed.jsonl") == 0
    assert "continuing after 256 lines" in caplog.text
    # the rate is that of the rows which this run scored
    scored_now = len(MANY.splitlines()) - 256
    assert f"scored {scored_now} rows, " in caplog.text
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
    assert "continuing" not in caplog.text
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 280
    assert all("rewards" in line for line in (tmp_path / "out.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def scorer(road: Path) -> Scorer:
    return Scorer.load(road / "checkpoint")


def scored(road: Path, path: Path, *words: object) -> list[dict[str, Any]]:
    """The lines that `worldpm score` writes for the rows of a file."""
    out = path.with_name("scored.jsonl")
    assert run("score", road / "checkpoint", path, "--out", out, *words) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"prompt": "How?", "response": "So.", "id": "7"}


def write_table(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW] * 2), path)


@pytest.mark.parametrize(
    "name",
    [
        *("in.jsonl", "in.jsonl.gz", "in.jsonl.zst", "in.json", "in.json.gz", "in.json.zst"),
        *("in.csv", "in.csv.gz", "in.csv.zst", "in.parquet", "in.txt"),
    ],
)
def test_every_format_that_is_trained_on_is_scored(
    name: str, road: Path, tmp_path: Path, scorer: Scorer
) -> None:
    contents = {
        "json": json.dumps([ROW, ROW]),
        "csv": "id,prompt,response\n7,How?,So.\n7,How?,So.\n",
    }
    content = contents.get(name.split(".")[1], f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n").encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    elif name.endswith(".zst"):
        content = zstandard.compress(content)
    (tmp_path / name).write_bytes(content)
    if name.endswith(".parquet"):
        write_table(tmp_path / name)

    (reward,) = scorer.rewards("How?", ["So."])
    assert scored(road, tmp_path / name) == [{**ROW, "reward": pytest.approx(reward, abs=1e-5)}] * 2


USER = {"role": "user", "content": "How?"}
SO, NO = ({"role": "assistant", "content": text} for text in ("So.", "No."))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "How?", "chosen": "So.", "rejected": "No.", "margin": 2},
        {"prompt": [USER], "chosen": [SO], "rejected": [NO]},
        {"chosen": [USER, SO], "rejected": [USER, NO]},
        {
            "chosen": "\n\nHuman: How?\n\nAssistant: So.",
            "rejected": "\n\nHuman: How?\n\nAssistant: No.",
        },
        {"chosen": "How? So.", "rejected": "How? No."},
        # `messages` repeats the chosen side, as in UltraFeedback
        {"prompt": "How?", "chosen": [USER, SO], "rejected": [USER, NO], "messages": [USER, SO]},
        {"instruction": "How?", "completions": [{"response": "So."}, {"response": "No."}]},
        {"prompt": [USER], "responses": ["So.", "No."]},
    ],
)
def test_both_responses_of_a_pair_have_rewards(
    row: dict[str, Any], road: Path, tmp_path: Path, scorer: Scorer
) -> None:
    expected = scorer.rewards("How?", ["So.", "No."])
    (line,) = scored(road, written(tmp_path / "in.jsonl", row))
    assert line == {**row, "rewards": pytest.approx(expected, abs=1e-5)}


def test_sides_that_differ_earlier_have_the_rewards_of_their_dialogues(
    road: Path, tmp_path: Path, scorer: Scorer
) -> None:
    chosen, rejected = ([USER, first, {**USER, "content": "Why?"}, NO] for first in (SO, NO))
    path = written(tmp_path / "in.jsonl", {"chosen": chosen, "rejected": rejected})
    (line,) = scored(road, path, "--best")
    dialogues = [list(map(Message.of, side[:-1])) for side in (chosen, rejected)]
    expected = [scorer.rewards(dialogue, ["No."])[0] for dialogue in dialogues]
    assert line["rewards"] == pytest.approx(expected, abs=1e-5)
    # responses to different prompts are not compared
    assert "best" not in line


def test_the_best_of_a_pair_is_named(road: Path, tmp_path: Path, scorer: Scorer) -> None:
    rewards = scorer.rewards("How?", ["So.", "No."])
    row = {"prompt": "How?", "chosen": "So.", "rejected": "No."}
    (line,) = scored(road, written(tmp_path / "in.jsonl", row), "--best")
    assert line["best"] == rewards.index(max(rewards))


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}],
}


def test_messages_of_tools_are_read_as_the_template_reads_them(
    road: Path, tmp_path: Path, scorer: Scorer
) -> None:
    developer = {"role": "developer", "content": "Be brief."}
    tool = {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "look"}
    dialogue: list[dict[str, Any]] = [developer, USER, CALL, tool]
    path = written(
        tmp_path / "in.jsonl",
        {"messages": [*dialogue, SO]},
        {"prompt": dialogue, "response": "So."},
        {"messages": [USER, CALL]},
    )
    first, second, call = (line["reward"] for line in scored(road, path))
    (expected,) = scorer.rewards(list(map(Message.of, dialogue)), ["So."])
    assert [first, second] == pytest.approx([expected] * 2, abs=1e-5)
    request = Request("call", [Message("user", "How?")], [""], Message.of(CALL))
    assert call == pytest.approx(scorer.answer(request).rewards[0], abs=1e-5)


def test_values_that_json_lacks_become_text_or_null(road: Path, tmp_path: Path) -> None:
    rows = [
        {**ROW, "at": datetime(2024, 5, 1, tzinfo=UTC), "score": float("nan"), "tags": ["a"]},
        {**ROW, "at": None, "score": 1.5, "tags": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    first, second = scored(road, tmp_path / "in.parquet")
    assert (first["at"], first["score"], first["tags"]) == ("2024-05-01T00:00:00Z", None, ["a"])
    assert (second["at"], second["score"], second["tags"]) == (None, 1.5, None)


def test_columns_of_other_names_are_scored_and_written_as_they_were(
    road: Path, tmp_path: Path, scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"question": "How?", "answers": ["So.", "No."], "prompt": 3}
    path = written(tmp_path / "in.jsonl", row)
    (line,) = scored(road, path, "--columns", "prompt=question,responses=answers")
    expected = scorer.rewards("How?", ["So.", "No."])
    assert line == {**row, "rewards": pytest.approx(expected, abs=1e-5)}

    words = ("score", road / "checkpoint", path, "--columns")
    assert run(*words, "prompt=query") == 2
    message = "in.jsonl:1: lacks the column 'query', which --columns names for all files"
    assert message in capsys.readouterr().err
    assert run(*words, "questions=query") == 2
    assert "expected OURS=THEIRS" in capsys.readouterr().err


@pytest.fixture(scope="module")
def strict(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the format of others, whose template accepts only one user turn and one answer."""
    folder = tmp_path_factory.mktemp("strict") / "model"
    shutil.copytree(road / "checkpoint", folder)
    for name in ("worldpm.json", "manifest.json"):
        (folder / name).unlink()
    (folder / "chat_template.jinja").write_text(
        "{% if messages | length != 2 %}{{ raise_exception('two turns') }}{% endif %}{% for turn in"
        " messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    )
    return folder


SYSTEM = {"role": "system", "content": "Be brief."}
REASON = "two turns"


def test_a_row_that_the_template_refuses_keeps_its_position(
    strict: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused: dict[str, Any] = {"messages": [SYSTEM, USER, SO], "id": 1}
    rows: list[dict[str, Any]] = [ROW, refused, {**ROW, "id": "8"}] * 100
    path, out = written(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert run("score", strict, path, "--out", out) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert all(("error" in line) == (line["id"] == 1) for line in lines)
    assert all("reward" not in line for line in lines if "error" in line)
    assert REASON in lines[1]["error"]
    assert "100 of 300 rows have no reward" in caplog.text

    # the count includes the parts of an earlier run
    caplog.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders.Output, "join", interrupt)
        assert run("score", strict, path, "--out", tmp_path / "other.jsonl") == 1
    assert run("score", strict, path, "--out", tmp_path / "other.jsonl") == 0
    assert "100 of 300 rows have no reward" in caplog.text
    assert (tmp_path / "other.jsonl").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "So.", "rejected": "No."}, "its prompt has no text"),
        ({"prompt": "", "response": "So."}, "its prompt has no text"),
        (
            {"prompt": "How?", "chosen": [SO, USER], "rejected": [NO]},
            "its last message is not the assistant's",
        ),
    ],
)
def test_a_row_of_a_set_without_a_response_to_score_gets_a_reason(
    row: dict[str, Any], reason: str, road: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = scored(road, written(tmp_path / "in.jsonl", row, ROW))
    assert first == {**row, "error": reason}
    assert "reward" in second
    assert "1 of 2 rows have no reward" in caplog.text


def test_a_device_is_written_through(road: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", ROW)
    assert run("score", road / "checkpoint", path, "--out", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()
    assert not Path("/dev/null.partial").exists()


def test_standard_output_by_its_name_is_appended_to(road: Path, tmp_path: Path) -> None:
    path, log = written(tmp_path / "in.jsonl", ROW), tmp_path / "log"
    log.write_text("before\n")
    streams = Streams(log, tmp_path / "errors")
    words = ("score", road / "checkpoint", path, "--out", "/dev/stdout")
    assert start(tmp_path, *words, streams=streams).wait() == 0
    first, second = log.read_text().splitlines()
    assert first == "before"
    assert "reward" in json.loads(second)


def test_a_pipe_is_written_through(road: Path, tmp_path: Path) -> None:
    path, pipe = written(tmp_path / "in.jsonl", ROW, ROW), tmp_path / "pipe"
    os.mkfifo(pipe)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(pipe.read_text().splitlines()))
    reader.start()
    assert run("score", road / "checkpoint", path, "--out", pipe) == 0
    reader.join(timeout=60)
    assert ["reward" in json.loads(line) for line in lines] == [True, True]
    assert pipe.is_fifo()


def test_a_link_is_written_through(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, link = written(tmp_path / "in.jsonl", ROW), tmp_path / "link"
    for target in ("old.jsonl", "absent.jsonl"):
        (tmp_path / "old.jsonl").write_text("old\n")
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / target)
        assert run("score", road / "checkpoint", path, "--out", link) == 0
        assert link.is_symlink()
        assert "reward" in json.loads((tmp_path / target).read_text())

    link.unlink()
    link.symlink_to(path)
    assert run("score", road / "checkpoint", path, "--out", link) == 2
    assert "is the input file" in capsys.readouterr().err
    assert json.loads(path.read_text()) == ROW


def test_progress_of_a_file_has_a_total_and_the_remaining_time(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    scored(road, written(tmp_path / "in.jsonl", *[ROW] * 300))
    progress = [text for text in caplog.messages if text.startswith("score: ")]
    assert progress[0].startswith("score: 256 of 300, 0:00:0")
    assert progress[-1] == "score: 300 of 300, 0:00:00 left"


def test_a_stream_by_its_name_is_read(road: Path, tmp_path: Path) -> None:
    words = ("score", road / "checkpoint", "/dev/stdin")
    process = finished(tmp_path, *words, stdin=f"{GOOD}\n".encode())
    assert process.returncode == 0, process.stderr
    assert len(json.loads(process.stdout)["rewards"]) == 2


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
    pair = written(tmp_path / "pair.jsonl", {"prompt": "How?", "chosen": "So.", "rejected": "No."})
    assert run("explain", road / "checkpoint", pair) == 0
    assert len(json.loads(capsys.readouterr().out)["explanations"]) == 2
    assert run("explain", road / "checkpoint", written(pair, {"chosen": "a", "rejected": "b"})) == 2
    assert "pair.jsonl:1: its prompt has no text" in capsys.readouterr().err
    assert run("explain", road / "checkpoint", tmp_path / "none.jsonl") == 2
    lines.write_text("{}\n")
    assert run("explain", road / "checkpoint", lines) == 2


def test_a_parquet_file_has_the_rows_of_the_json_lines(
    road: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    # 300 rows are two parts, whose columns differ
    lines = [{"prompt": "a", "responses": ["b", "c"], "n": n} for n in range(299)]
    lines.append({"prompt": "a", "response": "b", "n": 0.5, "more": {"x": None}})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("score", road / "checkpoint", source)
    assert run(*command, "--out", tmp_path / "out.jsonl") == 0
    assert run(*command, "--out", tmp_path / "out.parquet") == 0

    expected = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    columns = ["prompt", "responses", "n", "rewards", "response", "more", "reward"]
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        {column: row.get(column) for column in columns} for row in expected
    ]

    # no rows, and values that no column can hold: nothing is lost
    source.write_text("")
    assert run(*command, "--out", tmp_path / "none.parquet") == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0
    for number, odd in enumerate(["text", 2**70]):
        lines[-1]["n"] = odd
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        out = tmp_path / f"mixed{number}.parquet"
        assert run(*command, "--out", out) == 2
        assert f"All rows are in {out.with_suffix('.jsonl')}" in capfd.readouterr().err
        assert not out.exists()
        assert len(out.with_suffix(".jsonl").read_text().splitlines()) == 300
