"""Spark and DuckDB write the same rows."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import TWO_ANSWERS, posts_xml, run, spawn
from worldpm.storage import parquet
from worldpm.storage.json_files import Json

NO_SPARK = find_spec("pyspark") is None or shutil.which("java") is None


def rows(folder: Path) -> dict[str, list[Json]]:
    return {path.name: list(parquet.read_rows(path)) for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.skipif(NO_SPARK, reason="Spark (the extra spark) or Java is not installed")
def test_threads_and_groups_are_the_same_row_by_row(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sites = sorted((request.config.getoption("--data") / "stackexchange").glob("[am]*.7z"))
    if not sites:
        (tmp_path / "site" / "Posts.xml").parent.mkdir()
        (tmp_path / "site" / "Posts.xml").write_bytes(posts_xml(TWO_ANSWERS))
        sites = [tmp_path / "site" / "Posts.xml"]
    for engine in ("duckdb", "spark"):
        process = spawn(
            "ingest", *sites, "--out", tmp_path / f"threads-{engine}", "--engine", engine
        )
        assert process.returncode == 0, process.stderr.decode()[-3000:]
        process = spawn(
            "group",
            tmp_path / "threads-duckdb",
            "--out",
            tmp_path / f"groups-{engine}",
            "--engine",
            engine,
        )
        assert process.returncode == 0, process.stderr.decode()[-3000:]

    for kind in ("threads", "groups"):
        duckdb_rows, spark_rows = (
            rows(tmp_path / f"{kind}-{engine}") for engine in ("duckdb", "spark")
        )
        assert duckdb_rows == spark_rows
        assert sum(map(len, duckdb_rows.values())) > 0


@pytest.mark.skipif(find_spec("pyspark") is not None, reason="pyspark is installed")
def test_without_spark_one_message_names_the_missing_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Posts.xml").write_bytes(posts_xml(TWO_ANSWERS))
    assert (
        run("ingest", tmp_path / "Posts.xml", "--out", tmp_path / "threads", "--engine", "spark")
        == 2
    )
    assert (
        "--engine spark: pyspark is not installed. Install the extra spark"
        in capsys.readouterr().err
    )
