"""Plain preference sets in each of the forms that others publish."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from worldpm.benchmarks import preference_set
from worldpm.datasets import preference_sets
from worldpm.datasets.training_data import TrainingData
from worldpm.errors import ConfigError, DataError
from worldpm.options.shared import column_names
from worldpm.records import Message, PreferenceGroup
from worldpm.stats.bradley_terry import target_margins
from worldpm.storage import rows as rows_of_files


def read(
    folder: Path, *rows: Any, name: str = "train.jsonl"
) -> tuple[list[PreferenceGroup], Counter[str]]:
    """The groups of both splits, and the drops."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drops: Counter[str] = Counter()
    train = list(preference_sets.read([path], "train", drops))
    return train + list(preference_sets.read([path], "validation", Counter())), +drops


def test_a_set_contains_only_files_directly_in_its_folder(tmp_path: Path) -> None:
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
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"type": "function", "function": {"name": "look", "arguments": {"at": "\u6771"}}}
    ],
}
"""A message that calls a tool."""
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


def test_a_system_column_becomes_the_first_message(tmp_path: Path) -> None:
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


def test_columns_beside_whole_dialogues_are_not_lost(tmp_path: Path) -> None:
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


def test_the_prompt_of_plain_texts_is_their_common_beginning(tmp_path: Path) -> None:
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


def test_ultrafeedback_ratings_give_all_pairs_with_a_total_weight_of_1(tmp_path: Path) -> None:
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
        (
            {"prompt": "How?", "chosen": "So  so.", "rejected": " So so.\n"},
            "pair of equal responses",
        ),
        (
            {
                "instruction": "How?",
                "completions": [
                    {"response": text, "score": len(text)} for text in ("a", "a\u3000")
                ],
            },
            "pair of equal responses",
        ),
        (
            {"prompt": "How?", "chosen": "So.", "rejected": "No.", "margin": -0.5},
            "pair with a margin below 0",
        ),
        (
            {"prompt": "How?", "chosen": [CALL], "rejected": turns("x", "No.")[1:]},
            "pair with a response of tool calls or separate reasoning",
        ),
        (
            {"prompt": "How?", "response": [CALL], "score": 1},
            "response of tool calls or separate reasoning",
        ),
        (
            {"prompt": "How?", "response": turns("Why?"), "score": 1},
            "response that is not the assistant's words",
        ),
    ],
)
def test_rows_without_a_preference_are_dropped_with_their_reason(
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
        (
            '{"prompt": "How?", "chosen": "a", "rejected": "b", "margin": 81}',
            "margin 81.0 is not a number of at most 80.0 logits",
        ),
        (
            '{"prompt": "How?", "chosen": "a", "rejected": "b", "margin": "nan"}',
            "margin nan is not a number",
        ),
        (
            '{"prompt": [{"role": "user", "content": null}], "chosen": "a", "rejected": "b"}',
            "train.jsonl:2: a row that cannot be read",
        ),
        ("[]", "train.jsonl:2: a row that is not an object"),
        ("{", "train.jsonl:2: not JSON"),
    ],
)
def test_a_row_of_unknown_form_stops_the_run_with_its_line(
    line: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(FORMS["texts"]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        list(preference_sets.read([path], "train", Counter()))


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(FORMS["texts"]).encode() * 1000, mtime=0)[:50])
    with pytest.raises(DataError, match="not readable"):
        list(preference_sets.read([path], "train", Counter()))


def test_without_a_validation_file_a_share_of_the_prompts_is_held_out(tmp_path: Path) -> None:
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


PAIR = {"prompt": "How?", "chosen": "So.", "rejected": "No."}


def groups_of(path: Path) -> list[PreferenceGroup]:
    return list(preference_sets.groups_of(path, Counter()))


def table(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([PAIR]), path)


CSV = b"prompt,chosen,rejected\r\nHow?,So.,No.\r\n"
LINE = json.dumps(PAIR).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINE),
        ("a.jsonl.gz", gzip.compress(LINE, mtime=0)),
        ("a.jsonl.zst", zstandard.compress(LINE[:9]) + zstandard.compress(LINE[9:])),
        ("a.json", b"[" + LINE + b"]"),
        ("a.json.gz", gzip.compress(b"[" + LINE + b"]", mtime=0)),
        ("a.json.zst", zstandard.compress(b"[" + LINE + b"]")),
        ("a.csv", b"\xef\xbb\xbf" + CSV),
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.csv.zst", zstandard.compress(CSV)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_set_may_be_in_any_format_alone_or_in_a_folder(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        (group,) = groups_of(TrainingData.find([str(path)]).plain[0])
        assert group.prompt == USER
        assert [response.content for response in group.responses] == ["So.", "No."]
    assert rows_of_files.count(tmp_path / name) == 1


def test_the_rows_of_a_parquet_file_are_counted_by_its_footer(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet")
    assert rows_of_files.count(tmp_path / "a.parquet") == 1


def test_cells_of_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\nHow?, So. ,\nWhy?,{long},No.\n")
    first, second = groups_of(tmp_path / "a.csv")
    assert [response.content for response in first.responses] == [" So. ", ""]
    assert second.responses[0].content == long


def test_a_truncated_zstandard_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress((LINE + b"\n") * 1000)[:-9])
    with pytest.raises(DataError, match=r"a.jsonl.zst: not readable \(Truncated"):
        groups_of(path)


def test_tables_and_lists_beside_rows_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "credits.csv").write_bytes(CSV)
    assert preference_sets.files_in(tmp_path) == [tmp_path / "credits.csv"]
    (tmp_path / "train.jsonl").write_bytes(LINE)
    assert preference_sets.files_in(tmp_path) == [tmp_path / "train.jsonl"]
    assert "credits.csv, notes.json not read, because the folder also has" in caplog.text


def test_a_line_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + LINE + b"\n\n{}\n")
    with pytest.raises(DataError, match=r"a.jsonl:4: a row with"):
        groups_of(path)


def test_a_margin_is_the_target_margin_at_a_scale_of_one(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"How {m}?", "margin": m} for m in (3.0, 0.2, "1.5", 0, None, 80)]
    groups, drops = read(tmp_path, *rows)
    strengths = {group.prompt[0].content: group.preferences[0].strength for group in groups}
    assert strengths["How 3.0?"] == pytest.approx(math.e**3 - 1)

    targets = target_margins(torch.tensor(list(strengths.values()), dtype=torch.float32), 1.0)
    assert targets.tolist() == pytest.approx([3.0, 0.2, 1.5, 0.0, math.log(2), 80.0], rel=1e-6)
    assert not drops


@pytest.mark.parametrize(
    ("scores", "strength"),
    [((8.5, 6), 2.5), ((6, 6), 0.0), ((5, 6), 0.0), ((8.5, None), 1.0), (("a", "b"), 1.0)],
)
def test_scores_beside_a_pair_give_its_strength(
    scores: tuple[object, object], strength: float, tmp_path: Path
) -> None:
    chosen, rejected = scores
    (group,), _ = read(tmp_path, {**PAIR, "score_chosen": chosen, "score_rejected": rejected})
    assert group.preferences[0].strength == strength


def test_a_split_under_several_names_counts_once(tmp_path: Path) -> None:
    lines = [json.dumps({**PAIR, "prompt": f"How {i}?"}) + "\n" for i in range(40)]
    for name in ("train_prefs", "train_sft", "train_gen", "test_prefs", "test_sft"):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    # a row that is twice in one file counts as two rows
    (tmp_path / "train_gen.jsonl").write_text("".join([*lines, lines[0]]))

    drops: Counter[str] = Counter()
    data = TrainingData.find([str(tmp_path)])
    groups = [*data.groups("train", drops), *data.groups("validation", Counter())]
    assert len(groups) == 41
    assert drops == {"row that an earlier file has too": 80}
    assert len(preference_set.read(tmp_path)) == 40


def test_rows_that_differ_in_ratings_or_tool_calls_are_not_copies(tmp_path: Path) -> None:
    rated = {"prompt": "How?", "response": "So."}
    called = [{**CALL, "tool_call_id": name} for name in "ab"]
    for number in range(2):
        dialogue = [*turns("How?"), called[number], *turns("x")]
        rows: list[dict[str, Any]] = [
            *({**rated, "helpfulness": rating} for rating in (number, number + 1)),
            {side: [*dialogue, turns("x", side)[1]] for side in ("chosen", "rejected")},
        ]
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    drops: Counter[str] = Counter()
    paths = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    groups = list(preference_sets.groups_of_files(paths, drops))
    # the rating of 1 is in both files
    assert drops["row that an earlier file has too"] == 1
    assert sum(group.prompt[-1].content == "x" for group in groups) == 2


def test_messages_keep_the_keys_that_templates_read(tmp_path: Path) -> None:
    prompt = [
        {"role": "developer", "content": "Be brief."},
        *turns("How?"),
        CALL,
        {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "look"},
    ]
    (group,), drops = read(tmp_path, {"prompt": prompt, "chosen": "So.", "rejected": "No."})
    assert [(m.role, m.content) for m in group.prompt] == [
        ("developer", "Be brief."),
        ("user", "How?"),
        ("assistant", ""),
        ("tool", "5"),
    ]
    assert [json.loads(m.more) if m.more else {} for m in group.prompt] == [
        {},
        {},
        {"tool_calls": CALL["tool_calls"]},
        {"tool_call_id": "c1", "name": "look"},
    ]
    assert not drops


def test_columns_of_other_names_are_read_under_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "How?", "rejected": "So.", "bad": "No.", "prompt": 7}))
    columns = column_names(["prompt=question,chosen=rejected", "rejected=bad"])
    data = TrainingData.find([str(path)], columns=columns)
    (group,) = [*data.groups("train", Counter()), *data.groups("validation", Counter())]
    assert group.prompt == USER
    assert [response.content for response in group.responses] == ["So.", "No."]
    assert data.with_column("chosen") == [path]
    assert data.with_column("bad") == []


def test_a_rating_that_columns_name_takes_precedence(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"prompt": "How?", "response": text, "helpfulness": 3, "correctness": rating}
        for text, rating in (("So.", 4), ("No.", 1))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (group,) = preference_sets.groups_of(path, Counter(), {"rating": "correctness"})
    assert group.preferences[0].strength == 3.0


def test_a_column_that_is_absent_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE)
    with pytest.raises(
        DataError, match=r"a.jsonl:1: lacks the column 'gap', which --columns names"
    ):
        list(preference_sets.groups_of(path, Counter(), {"margin": "gap"}))


@pytest.mark.parametrize("words", ["prompt", "prompt=", "answer=good", "prompt=a,prompt=b"])
def test_wrong_columns_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="--columns "):
        column_names([words])


def test_columns_need_a_plain_set(road: Path) -> None:
    with pytest.raises(ConfigError, match="--columns: applies only to plain preference sets"):
        TrainingData.find([str(road / "groups")], columns={"prompt": "question"})


def held(data: TrainingData) -> tuple[list[str], list[str]]:
    """The prompts of both splits."""
    train, validation = (
        [group.prompt[0].content for group in data.groups(split, Counter())]
        for split in ("train", "validation")
    )
    return train, validation


def pairs_of(path: Path, name: str, count: int) -> None:
    rows = [json.dumps({**PAIR, "prompt": f"{name} {i}?"}) + "\n" for i in range(count)]
    path.write_text("".join(rows))


def test_with_a_validation_set_no_training_prompt_is_held_out(tmp_path: Path) -> None:
    pairs_of(tmp_path / "train.jsonl", "train", 200)
    pairs_of(tmp_path / "val.jsonl", "val", 3)
    pairs_of(tmp_path / "test.jsonl", "test", 3)
    (tmp_path / "mine.jsonl").write_bytes(LINE)

    places = [
        str(tmp_path / "train.jsonl"),
        str(tmp_path / "val.jsonl"),
        str(tmp_path / "test.jsonl"),
    ]
    data = TrainingData.find(places, validation=[str(tmp_path / "mine.jsonl")])
    train, validation = held(data)
    assert train == [f"train {i}?" for i in range(200)]
    assert validation == ["How?"]
    assert data.inputs[-1] == tmp_path / "mine.jsonl"


def test_a_validation_file_is_not_trained_on(tmp_path: Path) -> None:
    pairs_of(tmp_path / "a.jsonl", "a", 5)
    pairs_of(tmp_path / "b.jsonl", "b", 5)
    names = [str(tmp_path)]
    data = TrainingData.find(names, validation=[str(tmp_path / "." / "b.jsonl")])
    train, validation = held(data)
    assert {prompt[0] for prompt in train} == {"a"}
    assert {prompt[0] for prompt in validation} == {"b"}
    with pytest.raises(ConfigError, match="contains all training files"):
        TrainingData.find(names, validation=names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("train", "test", "dev"), "dev"), (("train", "test"), "test"), (("train",), "train")],
)
def test_a_folder_to_validate_on_gives_its_held_out_files(
    names: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    for name in names:
        pairs_of(tmp_path / "set" / f"{name}.jsonl", name, 1)
    pairs_of(tmp_path / "mine.jsonl", "mine", 1)
    data = TrainingData.find([str(tmp_path / "mine.jsonl")], validation=[str(tmp_path / "set")])
    assert held(data) == (["mine 0?"], [f"{expected} 0?"])


def test_groups_to_validate_on_give_their_validation_split(road: Path, tmp_path: Path) -> None:
    pairs_of(tmp_path / "mine.jsonl", "mine", 3)
    groups = TrainingData.find([str(road / "groups")])
    data = TrainingData.find([str(tmp_path / "mine.jsonl")], validation=[str(road / "groups")])
    assert held(data)[1] == held(groups)[1]
    assert len(held(data)[0]) == 3


def test_hh_rlhf_is_read_completely_except_five_pairs_that_differ_earlier(real_data: Path) -> None:
    drops: Counter[str] = Counter()
    path = real_data / "benchmarks" / "hh-rlhf" / "harmless-base_test.jsonl.gz"
    groups = list(preference_sets.read([path], "test", drops))
    assert (
        sum(len(group.preferences) for group in groups) + drops["pair of equal responses"] == 2307
    )
    assert drops["pair whose sides differ before the last response"] == 5
