"""Output folders: finished or not, resumed, refused, locked."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from worldpm.errors import ConfigError, DataError
from worldpm.storage import folders
from worldpm.storage.json_files import Json, to_json
from worldpm.storage.manifest import Input, describe, read_manifest, sha256


def begin(path: Path, **config: int) -> folders.Output | None:
    return folders.begin(
        path, step="group", config=dict(config), inputs=[Input(name="in", sha256="0")]
    )


def finish(path: Path, **config: int) -> None:
    output = begin(path, **config)
    assert output is not None
    with output:
        output.part("a.parquet", build)
        output.finish(counts={"rows": 1})


def build(aside: Path) -> Json:
    aside.write_bytes(b"content")
    return {"rows": 1}


def test_a_folder_is_finished_when_its_manifest_exists(tmp_path: Path) -> None:
    finish(tmp_path / "out", n=1)
    manifest = read_manifest(tmp_path / "out", made_by="group")
    assert manifest.config == {"n": 1}
    assert manifest.counts == {"rows": 1}
    assert manifest.files == {
        "a.parquet": sha256(tmp_path / "out" / "a.parquet"),
        "timings.jsonl": None,
    }
    assert set(manifest.versions) >= {"python", "worldpm", "torch", "duckdb"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.parquet",
        "manifest.json",
        "timings.jsonl",
    ]


@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"other")]
)
def test_a_finished_folder_that_lost_or_changed_a_file_is_refused(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    finish(tmp_path / "out")
    harm(tmp_path / "out" / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: missing or changed since it was written"):
        describe(tmp_path / "out")


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "out", n=1)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert begin(tmp_path / "out", n=1) is None
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}


def test_other_settings_never_touch_a_finished_folder(tmp_path: Path) -> None:
    finish(tmp_path / "out", n=1)
    with pytest.raises(
        ConfigError, match=r"finished output of `worldpm group` .*config.n was 1, now 2"
    ):
        begin(tmp_path / "out", n=2)


def test_a_stopped_step_keeps_its_finished_parts(tmp_path: Path) -> None:
    output = begin(tmp_path / "out")
    assert output is not None
    with output:
        output.part("a.parquet", build)
    with pytest.raises(ConfigError, match="not finished"):
        read_manifest(tmp_path / "out")
    again = begin(tmp_path / "out")
    assert again is not None
    with again:
        assert again.part("a.parquet", lambda aside: pytest.fail("built twice")) == {"rows": 1}


def test_a_part_that_was_altered_is_built_again(tmp_path: Path) -> None:
    output = begin(tmp_path / "out")
    assert output is not None
    with output:
        output.part("a.parquet", build)
        (tmp_path / "out" / "a.parquet").write_bytes(b"torn")
        output.part("a.parquet", build)
    assert (tmp_path / "out" / "a.parquet").read_bytes() == b"content"


def test_other_settings_do_not_resume_a_stopped_step(tmp_path: Path) -> None:
    output = begin(tmp_path / "out", n=1)
    assert output is not None
    with output:
        output.part("a.parquet", build)
    with pytest.raises(ConfigError, match="unfinished output"):
        begin(tmp_path / "out", n=2)


def test_a_step_that_did_nothing_does_not_block_the_folder(tmp_path: Path) -> None:
    output = begin(tmp_path / "out", n=1)
    assert output is not None
    with output:
        pass
    finish(tmp_path / "out", n=2)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"contains other files \(notes.txt\)"):
        begin(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is a file, and the output is a folder"):
        begin(tmp_path / "out")


def test_two_runs_into_one_folder_at_once_are_refused(tmp_path: Path) -> None:
    output = begin(tmp_path / "out")
    assert output is not None
    with output, pytest.raises(ConfigError, match="another process is writing"):
        begin(tmp_path / "out")


def test_a_kill_between_the_manifest_and_the_cleaning_leaves_a_finished_folder(
    tmp_path: Path,
) -> None:
    finish(tmp_path / "out")
    (tmp_path / "out" / ".progress").mkdir()
    assert begin(tmp_path / "out") is None
    assert not (tmp_path / "out" / ".progress").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"no": "step"}'])
def test_an_invalid_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest.json: not"):
        read_manifest(tmp_path)


def test_the_output_of_another_step_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"made by `worldpm group`, but a folder of `worldpm train` is needed"
    ):
        read_manifest(tmp_path / "out", made_by="train")


def test_nan_never_reaches_a_json_file() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": float("nan")})
    assert json.loads(to_json({"a": "é"})) == {"a": "é"}
