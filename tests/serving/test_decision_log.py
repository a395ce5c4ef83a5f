"""The decision log: what was acknowledged is there, and what was altered or lost is found."""

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from tests.conftest import run
from worldpm.errors import ConfigError, DataError
from worldpm.options.serve import ServeOptions
from worldpm.serving import decision_log
from worldpm.serving.decision_log import Decision, DecisionLog
from worldpm.serving.run import assemble


def decision(number: int) -> Decision:
    return Decision(
        at=f"2026-01-01T00:00:{number:02}+00:00",
        route="/v1/rewards",
        client=None,
        model="m",
        template="t",
        settings={},
        inputs={"prompt": [], "responses": [str(number)]},
        rewards=[number + 0.1],
        probabilities=[0.5],
        milliseconds=1.5,
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.sqlite"
    written = DecisionLog(path)
    for number in range(5):
        written.append([decision(number)]).result()
    written.close()
    return path


def alter(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "DROP TRIGGER no_update; DROP TRIGGER no_delete;" + ";".join(statements)
        )
    connection.close()


def test_a_log_goes_on_where_it_stopped(log: Path) -> None:
    written = DecisionLog(log)
    assert len(written) == 5
    assert written.repaired is None
    written.append([decision(5), decision(6)]).result()
    written.close()
    found = decision_log.verify(log)
    assert (found.decisions, found.broken) == (7, None)
    assert [json.loads(row["rewards"])[0] for row in decision_log.rows(log)] == [
        number + 0.1 for number in range(7)
    ]


def test_a_decision_that_cannot_be_written_harms_no_other(tmp_path: Path) -> None:
    written = DecisionLog(tmp_path / "log.sqlite")
    with pytest.raises(ValueError, match="JSON compliant"):
        written.append([replace(decision(0), settings={"bound": float("inf")})])
    written.append([decision(1)]).result()
    written.close()
    assert decision_log.verify(tmp_path / "log.sqlite").decisions == 1


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE decisions SET rewards = '[9.9]' WHERE number = 3", "row 3 was altered"),
        ("UPDATE decisions SET client = 'eve' WHERE number = 1", "row 1 was altered"),
        ("DELETE FROM decisions WHERE number = 2", "row 2 is missing"),
        ("UPDATE decisions SET before = hash WHERE number = 4", "row 4 does not follow"),
    ],
)
def test_what_was_altered_is_found(
    log: Path, statement: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alter(log, statement)
    assert run("log", "verify", log) == 2
    assert what in capsys.readouterr().err


def test_rows_cannot_be_changed_by_accident(log: Path) -> None:
    with (
        sqlite3.connect(log) as connection,
        pytest.raises(sqlite3.IntegrityError, match="never changed"),
    ):
        connection.execute("UPDATE decisions SET rewards = '[]'")
    with (
        sqlite3.connect(log) as connection,
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
    written = DecisionLog(log)
    with pytest.raises(ConfigError, match="another process is writing"):
        DecisionLog(log)
    written.append([decision(5)]).result()
    assert decision_log.verify(log).decisions == 6
    written.close()


def test_a_log_that_is_none_is_refused(tmp_path: Path) -> None:
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
    assert run("log", "export", log, "--out", table) == 0
    rows = pq.read_table(table).to_pylist()
    assert [len(row["rewards"]) for row in rows] == [2, 1, 1, 1, 1, 1, 1]
    assert [json.loads(row["settings"]).get("cut_to") for row in rows] == [None] * 4 + [40, 8, 256]
    assert max(rows[0]["probabilities"]) > 0.5 == min(rows[0]["probabilities"])
    assert run("log", "replay", log, "--model", road / "checkpoint") == 0
    assert "7 decisions scored again" in capsys.readouterr().out
    other = shutil.copytree(
        road / "checkpoint",
        tmp_path / "other",
        ignore=shutil.ignore_patterns("manifest.json", "worldpm.json"),
    )
    weights = load_file(other / "model.safetensors")
    save_file(
        {**weights, "score.weight": 2 * weights["score.weight"]},
        other / "model.safetensors",
        {"format": "pt"},
    )
    assert run("log", "replay", log, "--model", other) == 1
    assert "differ by more than 0.0001" in capsys.readouterr().err
    assert run("log", "replay", log, "--model", other, "--tolerance", 100) == 0
    assert run("log", "verify", log, "--tolerance", 1) == 2
    assert "--tolerance does nothing in `worldpm log verify`" in capsys.readouterr().err


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
    assert list(json.loads(row["inputs"])) == ["sha256"]
    assert run("log", "replay", log, "--model", road / "checkpoint") == 2
