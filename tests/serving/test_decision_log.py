"""The decision log contains every acknowledged decision, and altered or lost decisions are
detected."""

import hashlib
import json
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from tests.conftest import run
from worldpm.errors import ConfigError, DataError
from worldpm.options.serve import ServeOptions
from worldpm.records import Message
from worldpm.serving import decision_files, decision_log
from worldpm.serving.decision_files import Selection
from worldpm.serving.decision_log import DecisionLog, Retention
from worldpm.serving.decisions import (
    ConversationInputs,
    Decision,
    IdInputs,
    TextInputs,
    hash_of,
)
from worldpm.serving.run import assemble

LOCAL = "http://127.0.0.1"


def decision(number: int) -> Decision:
    return Decision(
        at=f"2026-01-{1 + number // 24:02}T{number % 24:02}:00:00.000000+00:00",
        reply=f"rewards-{number}",
        request=f"request {number}",
        route="/v1/rewards",
        key=("ann", "bob")[number % 2],
        release="0.1.0",
        model="m",
        template="t",
        temperature=1.5,
        calibration="c",
        settings={},
        queues=None,
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
            "DROP TRIGGER no_update; DROP TRIGGER no_delete; DROP TRIGGER no_other_text;"
            + ";".join(statements)
        )
    connection.close()


def test_a_log_continues_where_it_stopped(log: Path) -> None:
    writer = DecisionLog(log)
    assert len(writer) == 5
    assert writer.repaired is None
    writer.append([decision(5), decision(6)]).result()
    writer.close()

    check = decision_files.verify(log)
    assert (check.decisions, check.broken) == (7, None)
    assert [row.rewards for row in decision_files.rows(log)] == [
        [number + 0.1] for number in range(7)
    ]


def test_a_row_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    conversation = ConversationInputs([Message("user", "a \u00e9")], ["b", "c"])
    inputs = (
        conversation,
        TextInputs("a"),
        IdInputs([1, 2]),
        replace(conversation, last=Message("tool", "", '{"name": "look"}')),
    )
    decisions = [
        replace(decision(1), inputs=each, settings={"cut_to": 9}, queues=["review"])
        for each in inputs
    ]
    writer = DecisionLog(path)
    writer.append(decisions).result()
    writer.close()

    rows = list(decision_files.rows(path))
    assert [row.decision() for row in rows] == decisions
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert [row.cut_to for row in rows] == [9] * 4
    assert [row.before for row in rows[1:]] == [row.hash for row in rows[:-1]]


def test_a_decision_that_cannot_be_written_does_not_affect_others(tmp_path: Path) -> None:
    writer = DecisionLog(tmp_path / "log.sqlite")
    with pytest.raises(ValueError, match="JSON compliant"):
        writer.append([replace(decision(0), settings={"bound": float("inf")})])
    writer.append([decision(1)]).result()
    writer.close()
    assert decision_files.verify(tmp_path / "log.sqlite").decisions == 1


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE decisions SET rewards = '[9.9]' WHERE number = 3", "row 3 was altered"),
        ("UPDATE decisions SET key = 'eve' WHERE number = 1", "row 1 was altered"),
        ("UPDATE decisions SET temperature = 9 WHERE number = 1", "row 1 was altered"),
        ("UPDATE texts SET text = 'other' WHERE decision = 3", "row 3 has a text that was altered"),
        ("INSERT INTO texts VALUES (2, 'last', x'00', 'more')", "row 2 has a text"),
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
    head = decision_files.verify(log).head
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
    assert decision_files.verify(log).decisions == 6
    writer.close()


def test_a_file_that_is_not_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("hello, this is not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be written as a decision log"):
        DecisionLog(tmp_path / "log")
    with pytest.raises(DataError, match="not a decision log"):
        decision_files.verify(tmp_path / "log")
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
    assert "--tolerance: has no effect in `worldpm log verify`" in capsys.readouterr().err


def serve_some_requests(road: Path, log: Path) -> None:
    """Log seven decisions of five kinds."""
    application, service = assemble(ServeOptions(model=str(road / "checkpoint"), log=log))
    with TestClient(application, base_url=LOCAL) as client:
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
    # without the files that would reveal the change
    ignored = shutil.ignore_patterns("manifest.json", "worldpm.json")
    shutil.copytree(checkpoint, copy, ignore=ignored)
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"] = 2 * weights["score.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_digests_in_place_of_texts(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.sqlite"
    application, service = assemble(
        ServeOptions(model=str(road / "checkpoint"), log=log, log_hashes=True)
    )
    with TestClient(application, base_url=LOCAL) as client:
        client.post("/v1/rewards", json={"prompt": "a secret", "responses": ["b"]})
    assert service.decisions is not None
    service.decisions.close()

    (row,) = decision_files.rows(log)
    assert row.inputs is None
    assert b"a secret" not in log.read_bytes()
    with closing(sqlite3.connect(log)) as connection:
        (salt,) = connection.execute(
            "SELECT salt FROM texts WHERE place = 'responses.0'"
        ).fetchone()
    assert row.digests["responses.0"] == hashlib.sha256(salt + b"b").hexdigest()
    assert run("log", "replay", log, "--model", road / "checkpoint") == 0
    assert "1 others have no texts" in capsys.readouterr().out
    assert run("log", "verify", log) == 0
    assert "1 of them without texts" in capsys.readouterr().out


def test_a_row_has_everything_that_a_decision_depends_on(road: Path, tmp_path: Path) -> None:
    log, rules = tmp_path / "log.sqlite", tmp_path / "rules.json"
    rules.write_text('{"rules": [{"queue": "top", "reward_at_least": -99}], "otherwise": "b"}')
    options = ServeOptions(
        model=str(road / "checkpoint"), log=log, rules=rules, calibration=road / "results"
    )
    application, service = assemble(options)
    with TestClient(application, base_url=LOCAL) as client:
        body = {"prompt": "a", "responses": ["b", "c"]}
        sent = client.post("/v1/route", json=body, headers={"X-Request-Id": "mine 1"})
        named = client.post("/v1/route", json=body, headers={"X-Request-Id": "mine-1"})
        batch = client.post("/classify", json={"input": ["a", "b"]})
    assert service.decisions is not None
    service.decisions.close()

    rows = list(decision_files.rows(log))
    replies = [sent, named, batch, batch]
    assert [row.reply for row in rows] == [reply.headers["x-reply-id"] for reply in replies]
    assert [row.reply for row in rows] == [reply.json()["id"] for reply in replies]
    assert [row.request for row in rows] == [reply.headers["x-request-id"] for reply in replies]
    assert rows[1].request == "mine-1"
    # an id has no blank
    assert rows[0].request != "mine 1"
    assert [row.queues for row in rows] == [["top", "top"], ["top", "top"], None, None]
    assert rows[0].release == version("worldpm")
    assert rows[0].temperature == service.confidence.temperature
    assert rows[0].calibration == service.confidence.sha256 is not None


@pytest.mark.parametrize(
    ("selection", "numbers"),
    [
        (Selection(key="ann"), [0, 2, 4]),
        (Selection(id="rewards-3"), [3]),
        (Selection(id="request 4"), [4]),
        (Selection(since=datetime(2026, 1, 1, 2)), [2, 3, 4]),
        (Selection(until=datetime(2026, 1, 1, 2)), [0, 1]),
        # two o'clock in Berlin is one o'clock in UTC
        (Selection(until=datetime.fromisoformat("2026-01-01T02:00+01:00")), [0]),
        (Selection(since=datetime(2026, 1, 1, 1), key="bob"), [1, 3]),
        (Selection(id="' OR 1 --"), []),
    ],
)
def test_a_selection_matches_all_its_conditions(
    log: Path, selection: Selection, numbers: list[int]
) -> None:
    rows = decision_files.rows(log, selection)
    assert [row.number - 1 for row in rows] == numbers


def test_erased_texts_are_gone_from_the_disk_and_the_chain_stays_intact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log)
    for number in range(6):
        text = f"unmistakable text {number} " * 500
        writer.append([replace(decision(number), inputs=ConversationInputs([], [text]))]).result()

    # while the server still runs
    assert run("log", "erase", log, "--key", "ann") == 0
    assert "erased the texts of 3 decisions" in capsys.readouterr().out
    assert run("log", "erase", log, "--id", "rewards-1") == 0
    writer.append([decision(6)]).result()
    writer.close()

    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    there = [number for number in range(6) if b"unmistakable text %d" % number in on_disk]
    assert there == [3, 5]
    check = decision_files.verify(log)
    assert (check.decisions, check.broken, check.without_texts) == (7, None, 4)
    rows = list(decision_files.rows(log))
    assert [row.inputs is None for row in rows] == [True, True, True, False, True, False, False]
    assert all(row.digests for row in rows)

    out = tmp_path / "export.parquet"
    assert run("log", "export", log, "--out", out, "--key", "bob") == 0
    exported = pq.read_table(out).to_pylist()
    assert [row["inputs"] is None for row in exported] == [True, False, False]
    assert run("log", "erase", log) == 2
    assert "Name what to erase" in capsys.readouterr().err


def test_a_full_file_is_rotated_and_the_chain_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.sqlite"
    retention = Retention(file_bytes=60_000)
    for start in range(0, 60, 20):
        writer = DecisionLog(log, retention=retention)
        for number in range(start, start + 20):
            inputs = ConversationInputs([], ["text " * 1000])
            writer.append([replace(decision(number), inputs=inputs)]).result()
        writer.close()

    files = decision_files.files_of(log)
    assert len(files) > 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    check = decision_files.verify(log)
    assert (check.decisions, check.broken, check.first) == (60, None, 1)
    assert [row.number for row in decision_files.rows(log)] == [*range(1, 61)]

    # an older file is a complete log
    assert decision_files.verify(files[1]).broken is None
    files[1].unlink()
    assert run("log", "verify", log) == 2
    assert "is missing" in capsys.readouterr().err
    files[0].unlink()
    assert run("log", "verify", log) == 0
    assert "the log begins at decision" in capsys.readouterr().out


def test_a_log_whose_newest_file_is_lost_continues_after_the_older(tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log, retention=Retention(file_bytes=1))
    writer.append([decision(0)]).result()
    writer.close()
    # as if the server was killed between the two steps of a rotation
    log.unlink()

    writer = DecisionLog(log)
    writer.append([decision(1)]).result()
    writer.close()
    assert (decision_files.verify(log).decisions, decision_files.verify(log).broken) == (2, None)


def test_files_older_than_the_retention_are_removed(tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log, retention=Retention(file_bytes=1))
    now = datetime.now(UTC)
    for days in (9, 5, 1):
        at = (now - timedelta(days=days)).isoformat(timespec="microseconds")
        writer.append([replace(decision(1), at=at)]).result()
    writer.close()
    assert len(decision_files.older(log)) == 3

    DecisionLog(log, retention=Retention(days=7)).close()
    assert len(decision_files.older(log)) == 2
    assert decision_files.verify(log).first == 2


def test_a_log_that_cannot_be_written_is_reported_and_recovers(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "RETRY_SECONDS", 0.05)
    log, aside = tmp_path / "log.sqlite", tmp_path / "aside"
    application, _ = assemble(ServeOptions(model=str(road / "checkpoint"), log=log))
    with TestClient(application, base_url=LOCAL) as client:
        body = {"prompt": "a", "responses": ["b"]}
        log.rename(aside)
        refused = client.post("/v1/rewards", json=body)
        assert (refused.status_code, client.get("/ready").status_code) == (503, 503)
        assert refused.json()["error"]["type"] == "LogFailed"
        metrics = client.get("/metrics").text
        assert 'worldpm_errors_total{kind="LogFailed"} 1.0' in metrics
        assert "worldpm_ready 0.0" in metrics

        # the server retries without a request, because a load balancer no longer sends any
        aside.rename(log)
        for _ in range(100):
            if client.get("/ready").status_code == 200:
                break
            time.sleep(0.05)
        assert client.post("/v1/rewards", json=body).status_code == 200
    assert decision_files.verify(log).decisions == 1


def test_a_damaged_old_file_does_not_affect_new_decisions(tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log, retention=Retention(file_bytes=1, days=30))
    (tmp_path / "log.000000000000.sqlite").write_text("no database at all" * 100)
    for number in range(3):
        writer.append([decision(number)]).result(timeout=10)
    assert writer.can_write
    writer.close()


def test_a_failed_rotation_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "RETRY_SECONDS", 0.05)
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log, retention=Retention(file_bytes=1))
    open_file = writer._open
    failures = [OSError("too many open files")] * 2

    def fail_at_first(end: decision_files.End) -> None:
        if failures:
            raise failures.pop()
        open_file(end)

    monkeypatch.setattr(writer, "_open", fail_at_first)
    writer.append([decision(0)]).result(timeout=10)
    for _ in range(200):
        if not failures and writer.can_write:
            break
        time.sleep(0.02)
    writer.append([decision(1)]).result(timeout=10)
    writer.close()
    assert decision_files.verify(log).decisions == 2


def test_a_reader_does_not_slow_a_full_file_down(tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log, retention=Retention(file_bytes=1))
    with closing(sqlite3.connect(log)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM decisions").fetchone()
        started = time.monotonic()
        for number in range(10):
            writer.append([decision(number)]).result(timeout=20)
        assert time.monotonic() - started < 5
    writer.close()


def test_old_files_are_removed_while_no_requests_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "UPKEEP_SECONDS", 0.05)
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log, retention=Retention(file_bytes=1, days=1 / 86_400))
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    writer.append([replace(decision(1), at=now)]).result()
    for _ in range(200):
        if not decision_files.older(log) and len(list(tmp_path.glob("log.*sqlite"))) == 1:
            break
        time.sleep(0.05)
    assert decision_files.older(log) == []
    writer.close()


def test_a_decision_that_lacks_a_text_is_counted(log: Path) -> None:
    writer = DecisionLog(log)
    writer.append([replace(decision(5), inputs=ConversationInputs([], ["a", "b"]))]).result()
    writer.close()
    alter(log, "DELETE FROM texts WHERE decision = 6 AND place = 'responses.1'")
    assert decision_files.verify(log).without_texts == 1


@pytest.mark.parametrize("column", ["inputs = '{'", "inputs = '[]'", "rewards = '\"abc\"'"])
def test_a_row_that_cannot_be_read_is_reported_with_its_number(
    log: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alter(log, f"UPDATE decisions SET {column} WHERE number = 5")
    with closing(sqlite3.connect(log)) as connection, connection:
        row = connection.execute("SELECT * FROM decisions WHERE number = 5").fetchone()
        digest = hash_of(row[:-1])
        connection.execute("UPDATE decisions SET hash = ? WHERE number = 5", (digest,))
    assert run("log", "verify", log) == 2
    assert "row 5 cannot be read" in capsys.readouterr().err
    assert run("log", "export", log, "--out", log.with_name("out.parquet")) == 2
    assert "decision 5 cannot be read" in capsys.readouterr().err


def test_a_head_before_the_remaining_files_is_in_the_chain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log, retention=Retention(file_bytes=1))
    writer.append([decision(0)]).result()
    # A reader that opens the file before the rotation would prevent the rotation
    end = time.monotonic() + 10
    while not decision_files.older(log) and time.monotonic() < end:
        time.sleep(0.01)
    head = decision_files.verify(log).head
    writer.append([decision(1)]).result()
    writer.close()
    decision_files.older(log)[0].unlink()
    assert run("log", "verify", log, "--head", head) == 0


def test_a_new_file_without_tables_after_a_full_one_is_not_damage(tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    writer = DecisionLog(log)
    writer.append([decision(0)]).result()
    writer.close()
    log.rename(decision_files.older_name(log, 1))
    log.touch()
    check = decision_files.verify(log)
    assert (check.decisions, check.finding) == (1, "whole")
    writer = DecisionLog(log)
    writer.append([decision(1)]).result()
    writer.close()
    assert decision_files.verify(log).decisions == 2


def test_a_link_to_a_log_has_the_same_lock(log: Path) -> None:
    link = log.with_name("link.sqlite")
    link.symlink_to(log)
    writer = DecisionLog(log)
    with pytest.raises(ConfigError, match="another process"):
        DecisionLog(link)
    writer.close()


def test_empty_selections_are_reported(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("log", "erase", log, "--id", "nobody") == 2
    assert "Check the selection" in capsys.readouterr().err
    dates = ("--since", "2026-02-01", "--until", "2026-01-01")
    assert run("log", "export", log, "--out", log.with_name("o.parquet"), *dates) == 2
    assert "Swap them" in capsys.readouterr().err


def test_an_export_is_as_private_as_the_log(log: Path) -> None:
    out = log.with_name("out.parquet")
    assert run("log", "export", log, "--out", out) == 0
    assert out.stat().st_mode & 0o777 == 0o600


def test_a_log_of_another_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE decisions (number INTEGER, client TEXT)")
    with pytest.raises(DataError, match="another release"):
        DecisionLog(path)
    with pytest.raises(DataError, match="another release"):
        decision_files.verify(path)
