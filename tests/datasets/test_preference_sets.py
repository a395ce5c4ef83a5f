"""Plain preference sets, in each of the forms that others publish."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldpm.benchmarks import preference_set
from worldpm.datasets import preference_sets
from worldpm.datasets.training_data import TrainingData
from worldpm.errors import ConfigError, DataError
from worldpm.records import Message, PreferenceGroup


def read(
    folder: Path, *rows: Any, name: str = "train.jsonl"
) -> tuple[list[PreferenceGroup], Counter[str]]:
    """The groups of both splits, and the drops."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drops: Counter[str] = Counter()
    train = list(preference_sets.read([path], "train", drops))
    return train + list(preference_sets.read([path], "validation", Counter())), +drops


def test_a_set_is_what_lies_in_the_folder_itself(tmp_path: Path) -> None:
    rows = [{"prompt": f"How {n}?", "chosen": "So.", "rejected": "No."} for n in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pointer.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1"
    )
    assert TrainingData.find([str(tmp_path)]).plain == (tmp_path / "mine.jsonl",)
    assert len(preference_set.read(tmp_path)) == 40

    (tmp_path / "mine.jsonl").rename(tmp_path / "other" / "mine.jsonl")
    with pytest.raises(ConfigError, match=r"Name one of its folders \(other\)"):
        preference_set.read(tmp_path)


def test_an_unpaired_surrogate_is_refused_however_it_is_written(tmp_path: Path) -> None:
    for surrogate in (b"\\ud800", "\ud800".encode("utf-8", "surrogatepass")):
        path = tmp_path / "train.jsonl"
        path.write_bytes(
            b'{"prompt": "Caf\\u00e9?", "chosen": "a", "rejected": "b"}\n{"prompt": "'
            + surrogate
            + b'", "chosen": "a", "rejected": "b"}\n'
        )
        with pytest.raises(DataError, match=r"train.jsonl:2: contains an unpaired surrogate"):
            list(preference_sets.read([path], "train", Counter()))


def turns(*words: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(words)]


USER = (Message("user", "How?"),)
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "How?", "chosen": "So.", "rejected": "No."},
    "messages": {
        "prompt": turns("How?"),
        "chosen": turns("x", "So.")[1:],
        "rejected": turns("x", "No.")[1:],
    },
    "implicit prompt": {"chosen": turns("How?", "So."), "rejected": turns("How?", "No.")},
    "whole dialogues beside the prompt": {
        "prompt": "How?",
        "chosen": turns("How?", "So."),
        "rejected": turns("How?", "No."),
    },
    "the first question beside whole dialogues": {
        "prompt": "Hi",
        "chosen": turns("How?", "So."),
        "rejected": turns("How?", "No."),
    },
    "an empty prompt beside whole dialogues": {
        "prompt": "",
        "chosen": turns("How?", "So."),
        "rejected": turns("How?", "No."),
    },
    "question": {"question": "How?", "chosen": "So.", "rejected": "No."},
    "a prompt that opens the answer": {
        "prompt": "\n\nHuman: How?\n\nAssistant:",
        "chosen": "So.",
        "rejected": "No.",
    },
    "hh-rlhf": {
        "chosen": "\n\nHuman: How?\n\nAssistant: So.",
        "rejected": "\n\nHuman: How?\n\nAssistant: No.",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_in_any_form_is_a_group_of_two(form: str, tmp_path: Path) -> None:
    (group,), drops = read(tmp_path, FORMS[form])
    assert group.prompt == USER
    assert [response.content for response in group.responses] == ["So.", "No."]
    assert [(p.chosen, p.rejected, p.weight) for p in group.preferences] == [(0, 1, 1.0)]
    assert not drops


def test_a_dialogue_of_many_turns_keeps_them_as_its_prompt(tmp_path: Path) -> None:
    shared = "\n\nHuman: Hi\n\nAssistant: Hello: you\n\nHuman: How?\n\nAssistant: "
    (group,), _ = read(
        tmp_path, {"chosen": shared + "So.\n\nHuman stays", "rejected": shared + "No."}
    )
    assert [(m.role, m.content) for m in group.prompt] == [
        ("user", "Hi"),
        ("assistant", "Hello: you"),
        ("user", "How?"),
    ]
    assert group.responses[0].content == "So.\n\nHuman stays"


def test_a_system_column_stands_before_the_question(tmp_path: Path) -> None:
    (group,), _ = read(
        tmp_path,
        {
            "system": "Be brief.",
            "question": "How?",
            "chosen": "A cat is so.",
            "rejected": "A cat is not.",
        },
    )

    assert group.prompt == (Message("system", "Be brief."), *USER)
    assert [response.content for response in group.responses] == ["A cat is so.", "A cat is not."]


def test_what_stands_beside_whole_dialogues_is_not_lost(tmp_path: Path) -> None:
    opened = [{"role": "assistant", "content": "Hello."}, *turns("How?")]
    sides = {"chosen": [*opened, *turns("x", "So.")[1:]], "rejected": turns("x", "No.")[1:]}
    (group,), drops = read(tmp_path, {"prompt": opened, **sides})
    assert [(m.role, m.content) for m in group.prompt] == [
        ("assistant", "Hello."),
        ("user", "How?"),
    ]
    assert [response.content for response in group.responses] == ["So.", "No."]
    assert not drops

    prompt = [{"role": "system", "content": "Be brief."}, *turns("How?")]
    for row in ({"prompt": prompt}, {"system": "Be brief."}):
        (group,), _ = read(
            tmp_path, {**row, "chosen": turns("How?", "So."), "rejected": turns("How?", "No.")}
        )
        assert group.prompt == (Message("system", "Be brief."), *USER)
    (group,), _ = read(
        tmp_path,
        {
            "instruction": "Translate to French",
            "input": "cheese",
            "chosen": "fromage",
            "rejected": "pain",
        },
    )
    assert group.prompt == (Message("user", "Translate to French\n\ncheese"),)


def test_turns_that_helpsteer2_marks_are_messages(tmp_path: Path) -> None:
    prompt = "2 + 2?\n<extra_id_1>Assistant\n4\n<extra_id_1>User\nAnd 3 + 3?"
    (group,), _ = read(
        tmp_path,
        *({"prompt": prompt, "response": str(n), "helpfulness": h} for n, h in ((6, 4), (7, 0))),
    )
    assert [(m.role, m.content) for m in group.prompt] == [
        ("user", "2 + 2?"),
        ("assistant", "4"),
        ("user", "And 3 + 3?"),
    ]


def test_the_prompt_of_bare_texts_is_what_both_begin_with(tmp_path: Path) -> None:
    (group,), _ = read(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is bleak."})
    assert group.prompt == (Message("user", "The sky is"),)
    assert [response.content for response in group.responses] == ["blue.", "bleak."]


def test_a_line_break_ends_a_word_of_an_implicit_prompt(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"chosen": "What is it?\nYes, sure", "rejected": "What is it?\nNo"}))
    (group,) = preference_sets.groups_of(path, Counter())
    assert ([m.content for m in group.prompt], [r.content for r in group.responses]) == (
        ["What is it?"],
        ["Yes, sure", "No"],
    )


def test_pairs_of_one_prompt_become_one_group_with_each_response_once(tmp_path: Path) -> None:
    rows = [
        {"prompt": "How?", "chosen": a, "rejected": b}
        for a, b in (("A", "B"), ("A", "C"), ("B", "C"))
    ]
    (group,), _ = read(tmp_path, *rows)
    assert [response.content for response in group.responses] == ["A", "B", "C"]
    assert [(p.chosen, p.rejected) for p in group.preferences] == [(0, 1), (0, 2), (1, 2)]


def test_helpsteer2_rows_that_share_a_prompt_are_compared_by_helpfulness(tmp_path: Path) -> None:
    rows = [
        {"prompt": "How?", "response": text, "helpfulness": rating, "verbosity": 4}
        for text, rating in (("A", 1), ("B", 4))
    ]
    (group,), _ = read(tmp_path, *rows)
    assert [(p.chosen, p.rejected, p.strength, p.weight) for p in group.preferences] == [
        (1, 0, 3.0, 1.0)
    ]


def test_ultrafeedback_ratings_give_all_pairs_that_weigh_one_together(tmp_path: Path) -> None:
    answers = [
        {"response": str(rating), "overall_score": rating} for rating in (4.0, 2.0, 2.0, 1.0)
    ]
    (group,), _ = read(tmp_path, {"instruction": "How?", "completions": answers})

    assert [(p.chosen, p.rejected) for p in group.preferences] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 3),
        (2, 3),
    ]
    assert sum(p.weight for p in group.preferences) == pytest.approx(1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "How?", "chosen": "So.", "rejected": "So."}, "pair of equal responses"),
        ({"instruction": "How?", "completions": []}, "prompt without responses"),
        ({"chosen": "So.", "rejected": "No."}, "prompt without text"),
        ({"prompt": " ", "chosen": "So.", "rejected": "No."}, "prompt without text"),
        (
            {"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "x", "c", "d")},
            "pair whose sides differ before the last response",
        ),
        (
            {
                side: f"\n\nHuman: How?\n\nAssistant: So.\n\nHuman: {side}"
                for side in ("chosen", "rejected")
            },
            "pair that does not end with the assistant's words",
        ),
        (
            {"instruction": "How?", "completions": [{"response": "a", "score": 1}] * 2},
            "prompt whose responses have equal ratings",
        ),
    ],
)
def test_what_holds_no_preference_is_dropped_with_its_reason(
    row: Any, reason: str, tmp_path: Path
) -> None:
    groups, drops = read(tmp_path, row, FORMS["texts"])
    assert len(groups) == 1
    assert drops == {reason: 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"question": "How?"}',
            "train.jsonl:2: a row with question; expected chosen and rejected",
        ),
        (
            '{"prompt": "How?", "chosen": 3, "rejected": "No."}',
            "train.jsonl:2: a row that cannot be read",
        ),
        ('{"prompt": "How?", "response": "a"}', "train.jsonl:2: a row that cannot be read"),
        ("{", "train.jsonl:2: not JSON"),
    ],
)
def test_a_row_of_no_known_form_stops_the_run_with_its_line(
    line: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(FORMS["texts"]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        list(preference_sets.read([path], "train", Counter()))


def test_a_torn_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(FORMS["texts"]).encode() * 1000, mtime=0)[:50])
    with pytest.raises(DataError, match="not readable"):
        list(preference_sets.read([path], "train", Counter()))


def test_a_set_without_a_validation_file_lends_a_share_of_its_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": f"How {i}?", "chosen": "So.", "rejected": "No."} for i in range(2000)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, validation = (
        list(preference_sets.read([path], split, Counter())) for split in ("train", "validation")
    )
    assert len(train) + len(validation) == 2000
    assert 70 <= len(validation) <= 130

    validation_file = tmp_path / "val.jsonl"
    validation_file.write_text(json.dumps(rows[0]) + "\n")
    assert len(list(preference_sets.read([path, validation_file], "train", Counter()))) == 2000
    assert len(list(preference_sets.read([path, validation_file], "validation", Counter()))) == 1


def test_a_folder_of_parquet_is_data_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(
        pa.Table.from_pylist([FORMS["implicit prompt"]] * 3),
        tmp_path / "set" / "train-00000-of-00001.parquet",
    )
    data = TrainingData.find([str(tmp_path / "set")])
    assert (
        len(list(data.groups("train", Counter())) + list(data.groups("validation", Counter()))) == 1
    )

    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"neither groups .* nor a preference set"):
        TrainingData.find([str(tmp_path / "empty")])


def test_hh_rlhf_is_read_whole_but_for_the_five_pairs_that_differ_earlier(real_data: Path) -> None:
    drops: Counter[str] = Counter()
    path = real_data / "benchmarks" / "hh-rlhf" / "harmless-base_test.jsonl.gz"
    groups = list(preference_sets.read([path], "test", drops))
    assert (
        sum(len(group.preferences) for group in groups) + drops["pair of equal responses"] == 2307
    )
    assert drops["pair whose sides differ before the last response"] == 5
