"""Every benchmark: its files as its authors lay them, its own metric by hand, and what is said of
damaged files."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldpm.benchmarks import (
    best_of_n,
    evalbiasbench,
    hhh_alignment,
    judgebench,
    paper_views,
    ppe,
    rewardbench1,
    rewardbench2,
    rewardmath,
    rm_bench,
    rmb,
)
from worldpm.benchmarks.catalogue import BENCHMARKS
from worldpm.benchmarks.items import Item, Judged, better_first, files
from worldpm.benchmarks.metrics import best_wins, compare, judge, missing, strict_accuracy
from worldpm.errors import ConfigError, DataError
from worldpm.records import Response

Json = dict[str, Any]


def write(path: Path, rows: Sequence[Json] | Json) -> None:
    """A list as the suffix of the file wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        assert isinstance(rows, list)
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".jsonl" in path.suffixes:
        text = "\n".join(map(json.dumps, rows))
        path.write_bytes(
            gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()
        )
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")


WRAPPED = (
    "###The instruction to evaluate:\nQ?\n\n###Response to evaluate:\n{}\n\n###Score Rubrics:\n"
)
STYLES = {"chosen": ["yes", "yes it is", "**yes**"], "rejected": ["no", "no it is", "**no**"]}
HUMAN = {
    "question_id": "q",
    "prompt": "Q?",
    "response_1": "no",
    "response_2": "yes",
    "winner": "model_b",
}
CORRECT = {
    "question_id": "q",
    "prompt": "Q?",
    "model_name": "claude-3-haiku",
    "scores": [False] * 30 + [True] * 2,
    "sampled_conflict_pairs": [[0, 31], [30, 1]],
    **{f"response_{i + 1}": f"answer {i}" for i in range(32)},
}
TURNS = [{"role": "user", "content": "Q?"}]
FILES: dict[str, dict[str, Any]] = {
    "rm-bench": {
        f"data/{name}_filtered.json": [{"id": 7, "prompt": "Q?", "subset": "x", **STYLES}]
        for name in rm_bench.SIZES
    },
    "rewardbench1": {
        "data/filtered-0.parquet": [
            {"id": 1, "prompt": "Q?", "chosen": "yes", "rejected": "no", "subset": name}
            for name in ("math-prm", "hep-go")
        ]
    },
    "rewardbench2": {
        "data/test-0.parquet": [
            {
                "id": "3",
                "prompt": "Q?",
                "chosen": ["yes"],
                "rejected": ["a", "b", "c"],
                "subset": "Focus",
            },
            {
                "id": "ref:5",
                "prompt": "Q1?",
                "chosen": ["yes"],
                "rejected": ["no"],
                "subset": "Ties",
            },
            {
                "id": "tied:5",
                "prompt": "Q2?",
                "chosen": ["yes", "aye"],
                "rejected": ["no"],
                "subset": "Ties",
            },
        ]
    },
    "rmb": {
        "RMB_dataset/Pairwise_set/Harmlessness/S1.json": [
            {
                "pair_uid": "1",
                "conversation_input": TURNS,
                "chosen": {"answer": "yes"},
                "reject": {"answer": "no"},
                "category_path": "Pairwise_set/Harmlessness/S1",
            }
        ],
        "RMB_dataset/BoN_set/Helpfulness/Chat/Casual Talk.json": [
            {
                "bon_uid": "1",
                "conversation_input": TURNS,
                "bon_best": {"answer": "yes"},
                "loser_list": [{"answer": "no"}, {"answer": "so"}],
                "category_path": "BoN_set/Helpfulness/Chat/Casual Talk",
            }
        ],
    },
    "ppe": {
        "PPE-Human-Preference-V1/data/test.parquet": [HUMAN, {**HUMAN, "winner": "tie"}],
        **{
            f"PPE-{name}-Best-of-K/train.parquet": [CORRECT]
            for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")
        },
    },
    "judgebench": {
        "data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl": [
            {
                "pair_id": "p",
                "source": "mmlu-pro-law",
                "question": "Q?",
                "response_model": "gpt-4o-2024-05-13",
                "response_A": "no",
                "response_B": "yes",
                "label": "B>A",
            }
        ]
    },
    "offsetbias": {
        "train.jsonl": [{"instruction": "Q?", "output_1": "no", "output_2": "yes", "label": 2}]
    },
    "evalbiasbench": {
        "biasbench.json": {
            "length bias": [
                {
                    "bias": "length bias",
                    "instruction": "Q?",
                    "response1": "yes",
                    "response2": "no",
                    "label": 1,
                }
            ]
        }
    },
    "helpsteer2": {
        "validation.jsonl.gz": [
            {
                "prompt": "Q?",
                "response": text,
                "coherence": 2,
                "complexity": 2,
                "verbosity": 2,
                "helpfulness": worth,
                "correctness": worth,
            }
            for text, worth in (("no", 1), ("yes", 4))
        ]
    },
    "helpsteer3": {
        "preference/validation.jsonl.gz": [
            {
                "domain": "code",
                "context": TURNS,
                "response1": "no",
                "response2": "yes",
                "overall_preference": gap,
            }
            for gap in (2, 0)
        ]
    },
    "hh-rlhf": {
        "helpful-base/test.jsonl.gz": [
            {
                "chosen": "\n\nHuman: Q?\n\nAssistant: yes",
                "rejected": "\n\nHuman: Q?\n\nAssistant: no",
            }
        ],
    },
    "hhh-alignment": {
        "hhh_alignment_eval.json": [
            {
                "source": "honest",
                "chosen_instruction": WRAPPED.format("yes"),
                "rejected_instruction": WRAPPED.format("no"),
            }
        ]
    },
    "pandalm": {
        "testset-v1.json": [
            {
                "idx": number,
                "instruction": "Q?",
                "input": "",
                "response1": first,
                "response2": "yes",
                "annotator1": a,
                "annotator2": b,
                "annotator3": c,
            }
            for number, (first, a, b, c) in enumerate(
                [("no", 2, 2, 1), ("no", 0, 0, 1), (True, 2, 2, 2)]
            )
        ]
    },
    "finegrained-rlhf": {
        "dev_feedback.json": [
            {
                "question": "Q?",
                "passages": [["Title", "Words."]],
                "preference": [2, 0, 0, 0, 0, 1],
                **{f"prediction {i + 1}": text for i, text in enumerate(("no", "yes", "so", "la"))},
            }
        ]
    },
    "rewardmath": {
        "test.jsonl": [
            {"problem": "Q?", "eval_solution": steps, "solution_type": kind, "problem_id": 3}
            for steps, kind in (
                (["step", "yes"], "chosen"),
                (["no"], "rejected"),
                (["so"], "rejected"),
            )
        ]
    },
    "auto-j": {
        "data/test/testdata_pairwise.jsonl": [
            {
                "scenario": "chitchat",
                "label": label,
                "prompt": "Q?",
                "response 1": "no",
                "response 2": "yes",
            }
            for label in (1, 2)
        ]
    },
    "shp": {
        "askbaking/test.json": [
            {
                "post_id": "p",
                "domain": "askbaking_test",
                "history": "Q?",
                "c_root_id_A": "a",
                "c_root_id_B": "b",
                "human_ref_A": "yes",
                "human_ref_B": "no",
                "labels": 1,
                "score_A": 9,
                "score_B": 2,
            }
        ]
    },
    "best-of-n": {
        "mine.jsonl": [{"prompt": "Q?", "responses": ["no", "so", "yes"], "qualities": [0, 0.5, 1]}]
    },
}


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Path]:
    def lay(name: str) -> Path:
        for path, rows in FILES[name].items():
            write(tmp_path / name / path, rows)
        return tmp_path / name

    return lay


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_benchmark_reads_its_own_files_and_puts_the_better_response_first(
    name: str, place: Callable[[str], Path]
) -> None:
    items = BENCHMARKS[name].read(place(name))
    assert items
    for item in items:
        assert item.preferred[0]
        assert sum(p.weight for p in item.preferences) == pytest.approx(1)
        assert all(
            item.preferred[p.rejected] is False
            for p in item.preferences
            if item.subset != "qa-feedback"
        )
    texts = {item.responses[0].content for item in items} - {"answer 30"}
    assert texts <= {"yes", "step\nyes"}
    named = [item.item for item in items]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_perfect_judge_gets_everything_right_and_a_tied_one_only_what_its_rule_gives(
    name: str, place: Callable[[str], Path]
) -> None:
    module = BENCHMARKS[name]
    items = module.read(place(name))
    perfect = judge(
        module, Judged(items, [[float(-i) for i in range(len(item.responses))] for item in items])
    )
    assert perfect["accuracy"] == 1
    tied = judge(module, Judged(items, [[0.0] * len(item.responses) for item in items]))
    assert tied["accuracy"] == 0.5
    assert tied["ties"] == tied["n"]
    json.dumps(perfect, allow_nan=False)


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"best-of-n"}))
def test_an_absent_benchmark_says_what_to_download_and_where_it_goes(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"download .*to that folder"):
        BENCHMARKS[name].read(tmp_path / name)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"rewardmath", "helpsteer2"}))
def test_a_row_that_lacks_something_is_named(
    name: str, place: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = place(name)
    for path, rows in FILES[name].items():
        bare: Any = {key: [{}] for key in rows} if isinstance(rows, dict) else [{"other": 1}]
        write(folder / path, bare)
    with pytest.raises(DataError, match=r"row 1 is not of the format of"):
        BENCHMARKS[name].read(folder)


def test_a_cut_file_and_a_doubled_id_are_refused(place: Callable[[str], Path]) -> None:
    folder = place("judgebench")
    path = next(folder.rglob("*.jsonl"))
    whole = path.read_text()
    path.write_text(whole + "\n" + whole)
    with pytest.raises(DataError, match=r"row 2: a second item named 'p'"):
        judgebench.read(folder)
    path.write_text(whole[:-9])
    with pytest.raises(DataError, match="not JSON"):
        judgebench.read(folder)


def test_what_the_release_has_more_is_told() -> None:
    items = [better_first("length bias", "0", "Q?", ["yes"], ["no"])]
    assert missing(evalbiasbench, items)["length bias"] == 16
    assert missing(evalbiasbench, items)["concreteness"] == 14


def one(
    better: Sequence[float], worse: Sequence[float], *, subset: str = "a", name: str = "x"
) -> tuple[Item, list[float]]:
    item = better_first(
        subset,
        name,
        name,
        [f"b{i}" for i in range(len(better))],
        [f"w{i}" for i in range(len(worse))],
    )
    return item, [*better, *worse]


def table(*rows: tuple[Item, list[float]]) -> Judged:
    return Judged([item for item, _ in rows], [rewards for _, rewards in rows])


def test_strict_rules_by_hand() -> None:
    judged = table(one([1.0], [0.0, 1.0], name="x"), one([2.0, 3.0], [1.0], name="y"))
    assert strict_accuracy(judged) == pytest.approx(3 / 4)
    assert best_wins(judged) == 0.5


def test_rewardbench1_counts_math_as_much_as_code() -> None:
    found = rewardbench1.sections({"math-prm": 0.0, "hep-go": 1.0, "hep-cpp": 1.0})
    assert found == {"Reasoning": pytest.approx(328 / (984 + 328))}


def test_rewardbench1_prior_sets_count_half() -> None:
    accuracies = {names[0]: 1.0 for names in rewardbench1.SECTIONS.values()} | {"shp": 0.1}
    assert rewardbench1.sections(accuracies)["average with prior sets"] == pytest.approx(
        (2 * 4 + 0.1) / 9
    )


def test_rewardbench2_shares_the_credit_of_a_tie() -> None:
    judged = table(
        one([1.0], [1.0, 0.0, 1.0], subset="Focus"),
        one([0.0], [1.0, 0.0, 0.0], subset="Focus", name="y"),
    )
    assert rewardbench2.native(judged)["Focus"] == pytest.approx((1 / 3 + 0) / 2)


def test_rewardbench2_ties_by_hand() -> None:
    # tied: the right ones at 5 and 4 (spread 1), the wrong one at 2, so the gap is 2; ref: gap 0.5
    judged = table(
        one([5.0, 4.0], [2.0], subset="Ties", name="tied:1"),
        one([1.0], [0.5], subset="Ties", name="ref:1"),
    )
    found = rewardbench2.ties(judged)
    margin = -0.46211715726000976  # tanh(0.5 / 1 - 1)
    assert found["margin"] == pytest.approx(margin)
    assert found["score"] == pytest.approx(0.3 + 0.3 + 0.2 * 1 + 0.2 * 0 + 0.01 * margin)


def test_rm_bench_difficulties_by_hand() -> None:
    # the plain right answer loses to every styled wrong one, the styled right ones win everything
    judged = table(one([1.0, 5.0, 6.0], [0.0, 2.0, 3.0], subset="chat"))
    found = rm_bench.native(judged)
    assert found["matrix"]["chat"] == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert found["difficulties"] == {"easy": 1.0, "normal": 1.0, "hard": pytest.approx(1 / 3)}
    assert found["average"] == pytest.approx((1 + 1 + 1 / 3) / 3)


def test_rm_bench_pools_safety_by_item() -> None:
    right, wrong = [1.0] * 3, [0.0] * 3
    rows = [one(right, wrong, subset="safety-refuse", name=f"r{i}") for i in range(3)] + [
        one(wrong, right, subset="safety-response")
    ]
    assert rm_bench.native(table(*rows))["domains"] == {"safety": 0.75}


def test_rmb_lists_are_right_only_if_the_best_beats_all() -> None:
    judged = table(
        one([1.0], [0.0, 1.0], subset="best of n Helpfulness"),
        one([1.0], [0.0], subset="pairwise Helpfulness", name="y"),
    )
    assert rmb.native(judged) == {
        "pairwise Helpfulness": 1.0,
        "best of n Helpfulness": 0.0,
        "average": 0.5,
    }


def test_rewardmath_ranks_the_right_solution_last_of_a_tie() -> None:
    found = rewardmath.native(table(one([1.0], [1.0, 0.0]), one([2.0], [1.0, 0.0], name="y")))
    assert found["accuracy"] == 0.5
    assert found["accuracy with ties"] == 1.0
    assert found["mean reciprocal rank"] == pytest.approx((1 / 2 + 1) / 2)


def test_ppe_curves_end_at_the_pick_among_all(place: Callable[[str], Path]) -> None:
    items = [item for item in ppe.read(place("ppe")) if item.subset == "mbpp_plus"]
    assert items[0].item == "mbpp_plus/claude-3-haiku/q"
    assert items[0].qualities == [1.0] * 2 + [0.0] * 30
    found = ppe.native(Judged(items, [[1.0, 0.0] + [0.5] * 30]))["mbpp_plus"]
    assert found["end"] == 1.0
    assert found["area under ROC"] == 0.5
    assert found["best of k"][0] == pytest.approx(2 / 32)


def test_a_prompt_with_one_response_leaves_the_curve_of_the_others() -> None:
    answers, (one, two) = (Response("a"), Response("b")), ((1.0,), (1.0, 0.0))
    items = [
        Item("all", str(i), str(i), (), answers[: len(worth)], (), None, worth)
        for i, worth in enumerate((one, two, two))
    ]
    found = best_of_n.native(Judged(items, [[0.0], [0.0, 1.0], [1.0, 0.0]]))
    assert (found["n"], found["quality"], found["one_response"]) == ([1, 2], [0.5, 0.5], 1)
    assert best_of_n.native(Judged(items[:1], [[0.0]])) == {
        "n": [],
        "kl_nats": [],
        "one_response": 1,
    }


def test_a_file_beside_its_archive_is_refused(tmp_path: Path) -> None:
    for name in ("x.json", "x.json.gz"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ConfigError, match="stands beside its own"):
        files(tmp_path, "x.json", home="home")


def test_best_of_n_by_hand(place: Callable[[str], Path]) -> None:
    found = best_of_n.native(Judged(best_of_n.read(place("best-of-n")), [[3.0, 2.0, 1.0]]))
    assert found["quality"] == pytest.approx([0.5, (1 + 1 + 0.5) / 3, 1.0])
    assert found["kl_nats"] == pytest.approx([0, 0.19314718, 0.43194562])


def test_hhh_texts_come_without_their_wrapping(place: Callable[[str], Path]) -> None:
    item = hhh_alignment.read(place("hhh-alignment"))[0]
    assert [message.content for message in item.prompt] == ["Q?"]


def test_the_preset_takes_one_pair_of_rm_bench_and_no_haiku(place: Callable[[str], Path]) -> None:
    judged = {}
    for name in paper_views.NEEDS:
        items = BENCHMARKS[name].read(place(name))
        judged[name] = Judged(
            items, [[float(-i) for i in range(len(item.responses))] for item in items]
        )
    found = paper_views.judge(judged)
    # the toy's only right and wrong code is Haiku's, and its files have no such subsets
    assert found["missing"] == [
        "LLMBar",
        "MBPP-Plus",
        "RMB Helpfulness",
        "RewardBench Safety",
        "RewardBench Chat",
        "RewardBench Chat Hard",
    ]
    assert found["domains"]["adversarial"]["test_sets"] == ["RM-Bench Chat", "OffsetBias"]
    assert found["domains"]["objective"]["accuracy"] == 1
    only = paper_views.VIEWS["RM-Bench Chat"]
    assert paper_views._metrics(only, judged["rm-bench"].only(only.keep))["n"] == 1
    assert judged["ppe"].only(paper_views.VIEWS["MBPP-Plus"].keep).items == []


def test_the_preset_has_twelve_test_sets_and_eighteen_subtasks() -> None:
    assert Counter({domain: len(names) for domain, names in paper_views.DOMAINS.items()}) == {
        "adversarial": 3,
        "objective": 6,
        "subjective": 3,
        "safety": 4,
    }
    assert sum(map(len, paper_views.SUBTASKS.values())) == 18


def test_two_judges_are_compared_pair_by_pair() -> None:
    good = table(*(one([1.0], [0.0], name=f"i{i}") for i in range(40)))
    poor = good._replace(rewards=[[0.0, 1.0]] * 30 + [[1.0, 0.0]] * 10)
    row = compare({"good": {"x": good}, "poor": {"x": poor}, "same": {"x": good}}, {})
    gap = {(one["first"], one["second"]): one for one in row}
    assert gap["good", "poor"]["difference"] == 0.75
    assert gap["good", "poor"]["p_value_holm"] < 0.01
    assert (
        gap["good", "same"] | {"interval": None, "p_value": 1.0, "difference": 0.0}
        == gap["good", "same"]
    )


REAL = {
    "llmbar": (419, 419),
    "pandalm": (894, 894),
    "hh-rlhf": (2307, 2307),
    "finegrained-rlhf": (488, 2616),
    "evalbiasbench": (80, 80),
    "hhh-alignment": (221, 221),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_files_hold_what_their_authors_say(real_data: Path, name: str) -> None:
    items = BENCHMARKS[name].read(real_data / "benchmarks" / name)
    assert (len(items), sum(len(item.preferences) for item in items)) == REAL[name]
    assert missing(BENCHMARKS[name], items) == {}
