"""The decision log: acknowledged decisions are in it, and altered or lost ones are detected."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from tests.conftest import run
from worldpm.errors import ConfigError, DataError
from worldpm.options.serve import ServeOptions
from worldpm.records import Message
from worldpm.serving import decision_log
from worldpm.serving.decision_log import (
    ConversationInputs,
    Decision,
    DecisionLog,
    DecisionRow,
    HashedInputs,
    IdInputs,
    TextInputs,
)
from worldpm.serving.run import assemble


def decision(number: int) -> Decision:
    return Decision(
        at=f"2026-01-01T00:00:{number:02}+00:00",
        route="/v1/rewards",
        client=None,
        model="m",
        template="t",
        settings={},
        inputs=ConversationInputs([], [str(number)]),
        rewards=[number + 0.1],
        probabilities=[0.5],
        milliseconds=1.5,
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.sqlite"
    writer = DecisionLog(path)
    for number in range(5):
        writer.append([decision(number)]).result()
    writer.close()
    return path


def alter(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(
            "DROP TRIGGER no_update; DROP TRIGGER no_delete;" + ";".join(statements)
        )
    connection.close()


def test_a_log_goes_on_where_it_stopped(log: Path) -> None:
    writer = DecisionLog(log)
    assert len(writer) == 5
    assert writer.repaired is None
    writer.append([decision(5), decision(6)]).result()
    writer.close()

    check = decision_log.verify(log)
    assert (check.decisions, check.broken) == (7, None)
    assert [row.rewards for row in decision_log.rows(log)] == [
        [number + 0.1] for number in range(7)
    ]


def decision_of(row: DecisionRow) -> Decision:
    """The decision without its place in the chain."""
    return Decision(**{field.name: getattr(row, field.name) for field in fields(Decision)})


def test_a_row_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    conversation = ConversationInputs([Message("user", "a \u00e9")], ["b", "c"])
    inputs = (conversation, TextInputs("a"), IdInputs([1, 2]), decision_log.hashed(conversation))
    decisions = [replace(decision(1), inputs=each, settings={"cut_to": 9}) for each in inputs]
    writer = DecisionLog(path)
    writer.append(decisions).result()
    writer.close()

    rows = list(decision_log.rows(path))
    assert [decision_of(row) for row in rows] == decisions
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert [row.cut_to for row in rows] == [9] * 4
    assert [row.before for row in rows[1:]] == [row.hash for row in rows[:-1]]


def test_a_decision_that_cannot_be_written_harms_no_other(tmp_path: Path) -> None:
    writer = DecisionLog(tmp_path / "log.sqlite")
    with pytest.raises(ValueError, match="JSON compliant"):
        writer.append([replace(decision(0), settings={"bound": float("inf")})])
    writer.append([decision(1)]).result()
    writer.close()
    assert decision_log.verify(tmp_path / "log.sqlite").decisions == 1


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE decisions SET rewards = '[9.9]' WHERE number = 3", "row 3 was altered"),
        ("UPDATE decisions SET client = 'eve' WHERE number = 1", "row 1 was altered"),
        ("DELETE FROM decisions WHERE number = 2", "row 2 is missing"),
        ("UPDATE decisions SET before = hash WHERE number = 4", "row 4 does not follow"),
    ],
)
def test_an_altered_or_missing_row_is_detected(
    log: Path, statement: str, finding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alter(log, statement)
    assert run("log", "verify", log) == 2
    assert finding in capsys.readouterr().err


def test_rows_cannot_be_changed_by_accident(log: Path) -> None:
    with (
        closing(sqlite3.connect(log)) as connection,
        connection,
        pytest.raises(sqlite3.IntegrityError, match="never changed"),
    ):
        connection.execute("UPDATE decisions SET rewards = '[]'")
    with (
        closing(sqlite3.connect(log)) as connection,
        connection,
        pytest.raises(sqlite3.IntegrityError, match="never deleted"),
    ):
        connection.execute("DELETE FROM decisions")


def test_a_head_kept_elsewhere_shows_that_the_end_is_missing(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = decision_log.verify(log).head
    assert run("log", "verify", log, "--head", head) == 0
    assert head in capsys.readouterr().out
    alter(log, "DELETE FROM decisions WHERE number = 5")
    assert run("log", "verify", log) == 0
    assert run("log", "verify", log, "--head", head) == 2
    assert "at the end are missing" in capsys.readouterr().err


def test_one_process_writes_and_others_read(log: Path) -> None:
    writer = DecisionLog(log)
    with pytest.raises(ConfigError, match="another process is writing"):
        DecisionLog(log)
    writer.append([decision(5)]).result()
    assert decision_log.verify(log).decisions == 6
    writer.close()


def test_a_file_that_is_not_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("hello, this is no database" * 100)
    with pytest.raises(ConfigError, match="cannot be written as a decision log"):
        DecisionLog(tmp_path / "log")
    with pytest.raises(DataError, match="not a decision log"):
        decision_log.verify(tmp_path / "log")
    assert run("log", "verify", tmp_path / "none") == 2
    assert run("log", "export", tmp_path / "log") == 2  # no --out
    with pytest.raises(ConfigError, match="cannot be written"):
        DecisionLog(tmp_path / "no" / "log")


def test_export_and_replay_of_a_served_log(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, table = tmp_path / "log.sqlite", tmp_path / "log.parquet"
    serve_some_requests(road, log)

    assert run("log", "export", log, "--out", table) == 0
    rows = pq.read_table(table).to_pylist()
    assert [len(row["rewards"]) for row in rows] == [2, 1, 1, 1, 1, 1, 1]
    assert [json.loads(row["settings"]).get("cut_to") for row in rows] == [None] * 4 + [40, 8, 256]
    assert max(rows[0]["probabilities"]) > 0.5 == min(rows[0]["probabilities"])

    assert run("log", "replay", log, "--model", road / "checkpoint") == 0
    assert "7 decisions scored again" in capsys.readouterr().out

    doubled = with_doubled_rewards(road / "checkpoint", tmp_path / "doubled")
    assert run("log", "replay", log, "--model", doubled) == 1
    assert "differ by more than 0.0001" in capsys.readouterr().err
    assert run("log", "replay", log, "--model", doubled, "--tolerance", 100) == 0
    assert run("log", "verify", log, "--tolerance", 1) == 2
    assert "--tolerance does nothing in `worldpm log verify`" in capsys.readouterr().err


def serve_some_requests(road: Path, log: Path) -> None:
    """Log seven decisions of five kinds."""
    application, service = assemble(ServeOptions(model=str(road / "checkpoint"), log=log))
    with TestClient(application) as client:
        client.post("/v1/rewards", json={"prompt": "a", "responses": ["b", "c d"]})
        client.post("/classify", json={"input": ["a text", "another"]})
        client.post("/v1/embeddings", json={"input": [1, 2, 3]})
        client.post(
            "/rerank",
            json={
                "query": "word " * 50,
                "documents": ["answer " * 50],
                "truncate_prompt_tokens": 40,
            },
        )
        client.post("/classify", json={"input": "word " * 50, "truncate_prompt_tokens": 8})
        client.post("/v1/rewards", json={"prompt": "word " * 400, "responses": ["b"], "cut": True})
    assert service.decisions is not None
    service.decisions.close()


def with_doubled_rewards(checkpoint: Path, copy: Path) -> Path:
    """A copy of a checkpoint whose rewards are twice as large."""
    # without the files that would notice the change
    ignored = shutil.ignore_patterns("manifest.json", "worldpm.json")
    shutil.copytree(checkpoint, copy, ignore=ignored)
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"] = 2 * weights["score.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_hashes_in_place_of_inputs(road: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    application, service = assemble(
        ServeOptions(model=str(road / "checkpoint"), log=log, log_hashes=True)
    )
    with TestClient(application) as client:
        client.post("/v1/rewards", json={"prompt": "a secret", "responses": ["b"]})
    assert service.decisions is not None
    service.decisions.close()

    (row,) = decision_log.rows(log)
    assert isinstance(row.inputs, HashedInputs)
    assert run("log", "replay", log, "--model", road / "checkpoint") == 2
