"""Published raw rewards give the published figures. Only these tests read the formats of the
rewards."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import run
from worldpm.benchmarks import rewardbench1
from worldpm.storage.json_files import Json, Plain, read_json


@pytest.fixture
def published_scores(real_data: Path) -> Path:
    return real_data / "published"


def evaluated(rows: Sequence[Plain], name: str, folder: Path) -> Json:
    """The results of `worldpm evaluate` on raw rewards, by model."""
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(json.dumps({"benchmark": name, **row}) for row in rows))
    assert (
        run(
            "evaluate",
            "--rewards",
            file,
            "--on",
            name,
            "--benchmarks",
            folder / "none",
            "--out",
            folder / "results",
        )
        == 0
    )
    checkpoints: Json = read_json(folder / "results" / "metrics.json")["checkpoints"]
    return {model: result["benchmarks"][name] for model, result in checkpoints.items()}


def test_rewardbench2_gives_the_published_scores_and_the_ties_formula(
    published_scores: Path, tmp_path: Path
) -> None:
    rows = []
    for path in sorted((published_scores / "rewardbench2").glob("*.jsonl")):
        head, *items = map(json.loads, path.read_text().splitlines())
        for item in items:
            names = {"checkpoint": head["model"], "subset": item["subset"], "item": item["id"]}
            for index, score in enumerate(item["scores"]):
                rows.append(
                    {
                        **names,
                        "response": index,
                        "preferred": index < item["num_correct"],
                        "reward": score[0] if isinstance(score, list) else score,
                    }
                )

    results = evaluated(rows, "rewardbench2", tmp_path)
    computed = json.loads((published_scores / "rewardbench2" / "computed.json").read_text())
    assert len(results) == 2
    for model, result in results.items():
        published, native = computed[model], result["native"]
        scores = {
            name: native[name.lower() if name == "AVERAGE" else name]
            for name in published["scores"]
        }
        assert scores == pytest.approx(published["scores"], abs=1e-6)
        assert native["ties"]["correctness preferred hard"] == pytest.approx(
            published["ties_parts"]["hard"]
        )
        assert result["items"] == 1865
        assert result["missing_items"] == {}


def test_rewardmath_gives_the_published_accuracies_and_ranks(
    published_scores: Path, tmp_path: Path
) -> None:
    files = {
        "ArmoRM": "ArmoRM",
        "beaver-7b-v2.0-reward?": "beaver",
        "internlm2-7b-reward": "internlm2",
        "oasst-rm-2.1-pythia-1.4b": "oasst-rm",
        "Skywork-Reward-Llama-3.1-8B": "skywork_llama3",
    }
    rows = []
    for name, file in files.items():
        with (published_scores / "rewardmath" / f"{file}_reward.csv").open() as table:
            for line in csv.DictReader(table):
                rewards = [float(line[key]) for key in ("chosen", *(f"rej{i}" for i in range(9)))]
                names = {"checkpoint": name, "subset": "math", "item": line["idx"]}
                rows += [
                    {**names, "response": i, "preferred": i == 0, "reward": reward}
                    for i, reward in enumerate(rewards)
                ]

    results = evaluated(rows, "rewardmath", tmp_path)
    published = json.loads((published_scores / "rewardmath" / "computed.json").read_text())[
        "computed"
    ]
    for name in files:
        native = results[name]["native"]
        assert 100 * native["accuracy"] == pytest.approx(published[name]["acc_1_of_10"], abs=0.006)
        assert 100 * native["accuracy with ties"] == pytest.approx(
            published[name]["acc_with_ties"], abs=0.006
        )
        assert native["mean reciprocal rank"] == pytest.approx(published[name]["mrr"], abs=6e-5)
        assert 100 * native["pairwise"] == pytest.approx(published[name]["pairwise"], abs=0.006)


@pytest.mark.parametrize(
    "model", ["RM-R1-DeepSeek-Distilled-Qwen-32B", "RM-R1-Qwen2.5-Instruct-32B"]
)
def test_rewardbench1_sections_follow_from_the_subsets(published_scores: Path, model: str) -> None:
    folder = published_scores / "rewardbench1"
    subsets = json.loads((folder / f"{model}.each_small_section_score.json").read_text())
    published = json.loads((folder / f"{model}.main_score.json").read_text())
    sections = rewardbench1.sections(
        {name: value for name, value in subsets.items() if isinstance(value, float | int)}
    )
    assert {name: sections[name] for name in rewardbench1.SECTIONS} == pytest.approx(
        {name: published[name] for name in rewardbench1.SECTIONS}
    )
    assert sections["average"] == pytest.approx(published["avg_Result_each_section"])


def test_rewardbench1_counts_are_the_published_ones(published_scores: Path) -> None:
    published = json.loads(
        (published_scores / "rewardbench1" / "constants_and_beaver.json").read_text()
    )
    assert published["EXAMPLE_COUNTS"] == rewardbench1.WEIGHTS
    assert {name: list(subsets) for name, subsets in rewardbench1.SECTIONS.items()} == published[
        "SUBSET_MAPPING"
    ]
