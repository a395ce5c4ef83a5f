"""Uploads to a substitute for the hub, with their cards, and downloads of benchmarks from it."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from tests import local_hub
from tests.conftest import run
from tests.local_hub import Hub
from worldpm.benchmarks import downloading
from worldpm.errors import WorldPMError

FOLDERS = (
    "Natural",
    *(f"Adversarial/{name}" for name in ("Neighbor", "GPTInst", "GPTOut", "Manual")),
)
"""Folders of LLMBar."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with local_hub.running() as hub:
        yield hub


def at_hub(hub: Hub, cache: Path, *words: object) -> tuple[int, str]:
    """Run a verb that sees the substitute as the hub."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-m", "worldpm.cli", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_an_exported_checkpoint_is_a_private_model_with_a_full_card(
    road: Path, tmp_path: Path, hub: Hub
) -> None:
    out = tmp_path / "model"
    command = ["export", road / "checkpoint", "--to", "model", "--out", out, "--licence", "mit"]
    command += ["--base-model", "Qwen/Qwen2.5-0.5B", "--datasets", "owner/votes"]
    assert run(*command, "--results", road / "results") == 0
    code, errors = at_hub(hub, tmp_path, "push", out, "owner/reward")
    assert code == 0, errors

    files = hub.files["models/owner/reward"]
    assert hub.private["models/owner/reward"] is True
    assert hub.tokens == {"Bearer hf_test"}
    assert files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode()).data
    assert isinstance(card, ModelCardData)
    assert (card.license, card.base_model) == ("mit", "Qwen/Qwen2.5-0.5B")
    assert card.datasets == ["owner/votes"]
    (result,) = card.eval_results or []
    metrics = json.loads((road / "results" / "metrics.json").read_text())["checkpoints"]
    (expected,) = metrics["checkpoint"]["benchmarks"].values()
    assert result.metric_value == pytest.approx(expected["accuracy"], abs=1e-4)


def test_groups_and_results_are_data_sets_with_cards(road: Path, tmp_path: Path, hub: Hub) -> None:
    assert at_hub(hub, tmp_path, "push", road / "groups", "owner/votes", "--public")[0] == 0
    assert hub.private["datasets/owner/votes"] is False
    files = hub.files["datasets/owner/votes"]
    assert {"README.md", "ATTRIBUTION.csv", "manifest.json"} <= files.keys()

    before = {path: path.read_bytes() for path in (road / "results").rglob("*") if path.is_file()}
    assert at_hub(hub, tmp_path, "push", road / "results", "owner/results")[0] == 0
    files = hub.files["datasets/owner/results"]
    assert b"| checkpoint | set | accuracy |" in files["README.md"]
    assert files["metrics.json"] == (road / "results" / "metrics.json").read_bytes()
    # the folder itself has no card, and stays as it was
    assert before == {
        path: path.read_bytes() for path in (road / "results").rglob("*") if path.is_file()
    }


def test_what_cannot_be_pushed_gets_one_message(road: Path, tmp_path: Path, hub: Hub) -> None:
    onnx = tmp_path / "onnx"
    assert run("export", road / "checkpoint", "--to", "onnx", "--out", onnx) == 0
    for folder, name, message in (
        (onnx, "owner/name", "has no card"),
        (road / "checkpoint", "owner/name", "Write one with `worldpm export"),
        (road / "threads", "owner/name", "Name one of export, group or evaluate"),
        (road / "groups", "not a name", "Set OWNER/NAME"),
    ):
        code, errors = at_hub(hub, tmp_path, "push", folder, name)
        assert (code, message in errors) == (2, True), errors
        assert errors.count("\n") == 1
    hub.url = "http://127.0.0.1:9"
    code, errors = at_hub(hub, tmp_path, "push", road / "groups", "owner/name")
    assert code == 1
    assert "is unchanged. Log in with `hf auth login`" in errors


def test_a_benchmark_of_the_hub_is_downloaded_and_read(tmp_path: Path, hub: Hub) -> None:
    row = {"instruction": "Q?", "output_1": "Yes.", "output_2": "No.", "label": 1}
    good, folder = json.dumps(row).encode(), tmp_path / "benchmarks"
    words = ("benchmarks", "download", "offsetbias", "--benchmarks", folder)
    # rows of another form: reading them fails, and no folder is left under the name
    hub.files["datasets/NCSOFT/offsetbias"] = {"train.jsonl": b'{"a": 1}'}
    assert at_hub(hub, tmp_path / "first", *words)[0] == 2
    assert not (folder / "offsetbias").exists()

    hub.files["datasets/NCSOFT/offsetbias"] = {"train.jsonl": good, "model.bin": b"no"}
    code, errors = at_hub(hub, tmp_path / "second", *words)
    assert code == 0, errors
    assert "offsetbias: 1 items" in errors
    assert [path.name for path in (folder / "offsetbias").iterdir()] == ["train.jsonl"]


def archive(files: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for name, content in files.items():
            written.writestr(name, content)
    return buffer.getvalue()


def test_a_benchmark_of_github_is_unpacked_inside_its_folder_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    item = {"input": "Q?", "output_1": "Yes.", "output_2": "No.", "label": 1}
    data = json.dumps([item]).encode()
    content = archive(
        {f"LLMBar-main/Dataset/LLMBar/{path}/dataset.json": data for path in FOLDERS}
        | {"LLMBar-main/../../evil.json": b"[]", "LLMBar-main/run.py": b"print()"}
    )
    source = tmp_path / "princeton-nlp" / "LLMBar" / "zip"
    source.mkdir(parents=True)
    (source / "HEAD").write_bytes(content)
    monkeypatch.setattr(downloading, "GITHUB", tmp_path.as_uri())
    folder = tmp_path / "benchmarks"
    assert run("benchmarks", "download", "llmbar", "--benchmarks", folder) == 0
    assert "llmbar: 5 items" in capfd.readouterr().err
    assert not list(tmp_path.rglob("evil.json"))
    assert not list(folder.rglob("run.py"))

    assert run("benchmarks", "list", "--benchmarks", folder) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if " llmbar " in line]
    assert "yes" in line
    assert run("benchmarks", "download", "llmbar", "--benchmarks", folder) == 2
    assert "exists. Remove it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("download",), "no benchmark given"),
        (("list", "llmbar"), "Leave the names out"),
        (("download", "nothing"), "no such benchmark"),
        (("download", "ppe"), "cannot be downloaded in one step"),
    ],
)
def test_wrong_words_are_named(
    words: tuple[str, ...], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("benchmarks", *words, "--benchmarks", tmp_path / "b") == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "b").exists()


def test_an_archive_that_is_absent_or_damaged_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "GITHUB", (tmp_path / "nowhere").as_uri())
    assert run("benchmarks", "download", "llmbar", "--benchmarks", tmp_path / "b") == 1
    assert not (tmp_path / "b" / "llmbar").exists()
    with pytest.raises(WorldPMError, match="damaged"):
        downloading._unpack(b"not a zip", tmp_path)
