"""Exports: pairs, ONNX graphs and model folders for other programs."""

import csv
from pathlib import Path

import pytest
import yaml

from tests.conftest import run
from worldpm import Message, Scorer
from worldpm.datasets import preference_sets
from worldpm.errors import WorldPMError
from worldpm.exports import model_folder
from worldpm.model import chat
from worldpm.storage import parquet
from worldpm.storage.json_files import Json, read_json
from worldpm.storage.manifest import read_manifest


@pytest.fixture(scope="module")
def exported(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "pairs"
    assert run("export", road / "groups", "--out", folder) == 0
    return folder


def test_every_pair_of_every_group_is_written_with_its_prompt(road: Path, exported: Path) -> None:
    groups = {
        row["group_id"]: row for row in parquet.read_rows(road / "groups" / "simulated.parquet")
    }
    for split in ("train", "validation", "test"):
        rows = list(parquet.read_rows(exported / "data" / f"{split}.parquet"))
        mine = [group for group in groups.values() if group["split"] == split]
        assert len(rows) == sum(len(group["preferences"]) for group in mine)
        for row in rows:
            group = groups[row["group_id"]]
            texts = [response["content"] for response in group["responses"]]
            pair = next(
                p
                for p in group["preferences"]
                if [texts[p["chosen"]], texts[p["rejected"]]]
                == [row["chosen"][0]["content"], row["rejected"][0]["content"]]
            )
            assert (row["prompt"], row["strength"], row["weight"]) == (
                group["prompt"],
                pair["strength"],
                pair["weight"],
            )


def test_huggingface_datasets_loads_the_folder(exported: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    splits = datasets.load_dataset(str(exported), cache_dir=str(exported.parent / "cache"))
    assert set(splits) == {"train", "validation", "test"}
    assert splits["train"][0]["chosen"][0]["role"] == "assistant"
    assert splits["train"].num_rows == read_manifest(exported).counts["train"]["pairs"]


def test_pairs_have_the_origin_of_their_responses(road: Path, exported: Path) -> None:
    groups = {
        row["group_id"]: row for row in parquet.read_rows(road / "groups" / "simulated.parquet")
    }
    row = next(parquet.read_rows(exported / "data" / "train.parquet"))
    responses = groups[row["group_id"]]["responses"]
    assert (row["source"], row["site"]) == ("simulated", "simulated")
    for side in ("chosen", "rejected"):
        (response,) = [r for r in responses if r["content"] == row[side][0]["content"]]
        assert (row[f"{side}_votes"], row[f"{side}_created"]) == (
            response["votes"],
            response["created"],
        )
        assert row[f"{side}_licence"] == "CC0-1.0"


@pytest.mark.parametrize("kind", ["groups", "pairs"])
def test_the_card_names_licence_languages_sources_rules_counts_and_splits(
    road: Path, exported: Path, kind: str
) -> None:
    folder = road / "groups" if kind == "groups" else exported
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == ["cc0-1.0"]
    assert facts["language"] == ["en"]
    files = facts["configs"][0]["data_files"]
    if kind == "groups":
        assert files == [{"split": "groups", "path": "*.parquet"}]
    else:
        assert [file["split"] for file in files] == ["train", "validation", "test"]
        assert all((folder / file["path"]).is_file() for file in files)

    counts = read_manifest(road / "groups").counts["simulated"]["splits"]["train"]
    line = f"| train | {counts['groups']} | {counts['responses']} | {counts['pairs']} |"
    for part in ("| simulated | simulated |", line, "| rule | default |", "@article{worldpm2025"):
        assert part in text
    assert "CC0-1.0" in text


def test_meta_of_responses_is_a_list_of_pairs_that_datasets_can_read(road: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    groups = road / "groups"
    splits = datasets.load_dataset(str(groups), cache_dir=str(road.parent / "datasets-cache"))
    meta = splits["groups"][0]["responses"][0]["meta"]
    assert {"key": "licence", "value": "CC0-1.0"} in meta


def test_training_reads_exported_pairs(exported: Path) -> None:
    from collections import Counter

    drops: Counter[str] = Counter()
    groups = list(
        preference_sets.read(
            [exported / "data" / f"{split}.parquet" for split in ("train", "validation")],
            "train",
            drops,
        )
    )
    assert (
        sum(len(group.preferences) for group in groups)
        == read_manifest(exported).counts["train"]["pairs"]
    )
    assert sum(drops.values()) == 0


def test_the_export_includes_credits(road: Path, exported: Path) -> None:
    with (exported / "ATTRIBUTION.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    responses = sum(
        len(row["responses"]) for row in parquet.read_rows(road / "groups" / "simulated.parquet")
    )
    groups = sum(1 for _ in parquet.read_rows(road / "groups" / "simulated.parquet"))
    assert len(rows) == responses + groups  # one credit per answer and one per question
    assert "`ATTRIBUTION.csv` lists the author, the licence" in (exported / "README.md").read_text()


def test_a_folder_of_something_else_is_refused(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", road / "threads", "--out", tmp_path / "x") == 2
    assert "made by `worldpm simulate`" in capsys.readouterr().err
    assert run("export", "--out", tmp_path / "x") == 2


def test_an_onnx_graph_gives_the_same_rewards(road: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("worldpm.exports.onnx", reason="onnxruntime is not installed")
    # the export of a graph with fewer layers is faster
    small = ("--model", "w64", "--max-steps", 2, "--max-length", 128, "--dtype", "float32")
    checkpoint = tmp_path / "checkpoint"
    assert run("train", road / "groups", *small, "--out", checkpoint) == 0
    probe = ("--probe", road / "groups")
    words = ("export", checkpoint, "--to", "onnx", "--int8", *probe, "--out", tmp_path / "onnx")
    assert run(*words) == 0
    counts = read_manifest(tmp_path / "onnx").counts
    assert counts["largest_difference"] <= 1e-4
    assert abs(counts["accuracy_int8"] - counts["accuracy"]) < 0.1
    scorer = Scorer.load(checkpoint)
    prompt, responses = (
        "How long should I bake a loaf?",
        ["Two words.", "Many more words than that, in fact.", ""],
    )
    group = scorer.encoder.encode([Message("user", prompt)], responses)
    rewards = onnx.Runtime(tmp_path / "onnx" / "model.onnx").rewards([group])[0]
    assert rewards == pytest.approx(scorer.rewards(prompt, responses), abs=1e-4)
    # an eighth of the model is the graph itself, which int8 does not shrink
    sizes = [(tmp_path / "onnx" / f).stat().st_size for f in ("model_int8.onnx", "model.onnx")]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_probe_without_validation_groups_is_refused(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert (
        run("group", road / "threads", "--validation-share", 0, "--out", tmp_path / "groups") == 0
    )
    assert (
        run(
            "export",
            road / "checkpoint",
            "--to",
            "onnx",
            "--probe",
            tmp_path / "groups",
            "--out",
            tmp_path / "onnx",
        )
        == 2
    )
    assert "has no validation groups to compare on" in capsys.readouterr().err


def test_a_graph_that_is_not_exact_is_refused() -> None:
    onnx = pytest.importorskip("worldpm.exports.onnx", reason="onnxruntime is not installed")
    assert onnx.check([[1.0, 10.0]], [[1.00005, 10.0005]]) == pytest.approx(5e-5)
    for wrong in (1.001, float("nan")):
        with pytest.raises(WorldPMError, match="differ by"):
            onnx.check([[1.0]], [[wrong]])


def test_a_model_folder_scores_the_same_and_has_its_card(road: Path, tmp_path: Path) -> None:
    out = tmp_path / "published"
    (tmp_path / "note.md").write_text("Not for **children**.\n")
    note = ("--note", tmp_path / "note.md")
    words = ("--licence", "apache-2.0", "--results", road / "results", *note)
    assert run("export", road / "checkpoint", "--to", "model", "--out", out, *words) == 0
    assert Scorer.load(out).rewards("a", ["b"]) == Scorer.load(road / "checkpoint").rewards(
        "a", ["b"]
    )
    card = (out / "README.md").read_text()
    accuracy = read_json(road / "results" / "metrics.json")["checkpoints"]["checkpoint"][
        "benchmarks"
    ]["groups"]["accuracy"]
    for expected in (
        "license: apache-2.0",
        f"| groups | {accuracy:.3f} |",
        "began from | `tiny`",
        "Conditions: dtype float32",
        "A high reward does not make an answer\nright.\n\nNot for **children**.\n",
    ):
        assert expected in card
    # engines read their limit from the positions, and vLLM reads pairs by the score template
    length = read_json(out / "worldpm.json")["max_length"]
    assert read_json(out / "config.json")["max_position_embeddings"] == length
    assert (
        f"vllm serve published --runner pooling --max-model-len {length} --chat-template"
        " published/score_template.jinja\n" in card
    )
    assert "raw rewards, because `problem_type` is `regression`" in card
    scorer = Scorer.load(out)
    pair = [{"role": "query", "content": "Why?"}, {"role": "document", "content": "So."}]
    template = (out / "score_template.jinja").read_text()
    text = scorer.encoder.tokenizer.apply_chat_template(
        pair, chat_template=template, tokenize=False
    )
    group = scorer.encoder.encode([Message("user", "Why?")], ["So."])
    ids = scorer.encoder.tokenizer(str(text))["input_ids"]
    assert ids == [*group.prefix, *group.suffixes[0]]

    assert (
        run("export", road / "checkpoint", "--out", tmp_path / "x") == 2
    )  # pairs come from groups, not from a checkpoint
    assert run("export", road / "groups", "--to", "onnx", "--out", tmp_path / "y") == 2
    assert run("export", road / "groups", "--int8", "--out", tmp_path / "z") == 2


@pytest.mark.parametrize(
    ("config", "limited"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, True),
        ({"rope_parameters": {"rope_theta": 1e4}}, True),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, True),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, False),
        ({"rope_parameters": {"a": {"rope_type": "default"}, "b": {"rope_type": "linear"}}}, False),
        ({"n_positions": 1024}, False),
    ],
)
def test_positions_are_limited_only_where_their_number_does_not_change_the_model(
    config: Json, limited: bool
) -> None:
    whole = {**config, "max_position_embeddings": 4096}
    assert model_folder._limited(whole, 512)["max_position_embeddings"] == (
        512 if limited else 4096
    )


def test_the_card_of_a_model_with_another_template_tells_which_routes_read_other_text(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MADE_HERE", "a text of no template")
    out = tmp_path / "other"
    assert run("export", road / "checkpoint", "--to", "model", "--out", out) == 0
    assert not (out / "score_template.jinja").exists()
    card = (out / "README.md").read_text()
    assert "give the model other text there" in card
    assert "--chat-template" not in card


def test_the_packaged_checkpoint_is_exported_by_its_name(tmp_path: Path) -> None:
    out = tmp_path / "forum"
    assert run("export", "worldpm/tiny-forum", "--to", "model", "--out", out) == 0
    rewards = [Scorer.load(name).rewards("a", ["b"]) for name in (out, "worldpm/tiny-forum")]
    assert rewards[0] == rewards[1]
