"""Overlap with benchmarks, stratified sets, and rows of files that others made."""

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from worldpm.benchmarks.items import Item, better_first
from worldpm.errors import ConfigError, DataError
from worldpm.evaluation import strata
from worldpm.preferences.contamination import BenchmarkItem, Index, texts_in
from worldpm.records import Message, Preference, PreferenceGroup, Response
from worldpm.storage import rows

WORDS = " ".join(f"word{i}" for i in range(20))


def group(prompt: str, *responses: str) -> PreferenceGroup:
    texts = responses or ("a", "b")
    return PreferenceGroup(
        "g",
        "s",
        "s",
        "train",
        (Message("user", prompt),),
        tuple(map(Response, texts)),
        (Preference(0, 1, 1.0),),
    )


def test_the_longest_run_of_words_is_found_despite_case_and_punctuation() -> None:
    index = Index({"bench": [better_first("a", "x", f"Before. {WORDS}", ["yes"], ["no"])]})
    shared = " ".join(WORDS.upper().split()[:15])
    (overlap,) = index.overlaps(group(f"so, {shared}!"))
    assert (overlap.item, overlap.length_words) == (BenchmarkItem("bench", "x"), 15)
    assert index.overlaps(group(" ".join(WORDS.split()[:12]))) == []
    assert [overlap.length_words for overlap in index.overlaps(group("Q", "a", WORDS))] == [20]


def test_letters_of_scripts_without_spaces_count_as_words() -> None:
    text = "\u6211\u4eec\u7684\u57ce\u5e02\u5728\u6cb3\u8fb9\u6709\u4e00\u5ea7\u53e4\u6865"
    index = Index({"bench": [better_first("a", "x", text, ["yes"], ["no"])]})
    (overlap,) = index.overlaps(group(f"\u4eca\u5929\uff1a{text}\u3002"))
    assert overlap.length_words == len(text) == 13
    assert index.overlaps(group(text[:12])) == []


def test_a_phrase_that_many_items_share_is_not_an_overlap() -> None:
    index = Index(
        {"bench": [better_first("a", str(i), f"{i} {WORDS}", ["yes"], ["no"]) for i in range(11)]}
    )
    assert index.overlaps(group(WORDS)) == []


def test_a_prompt_that_many_items_share_is_an_overlap() -> None:
    items = [better_first("a", str(i), WORDS, [f"yes {i}"], ["no"]) for i in range(30)]
    assert len(Index({"bench": items}).overlaps(group(WORDS))) == 30


def test_items_that_overlap_are_listed_by_benchmark() -> None:
    index = Index(
        {name: [better_first("a", name, WORDS, ["yes"], ["no"])] for name in ("one", "two")}
    )
    assert index.found_in([group("Q"), group(WORDS)]) == {"one": {"one"}, "two": {"two"}}


def forum(name: str, votes: tuple[int, int], text: str = "words") -> Item:
    day = datetime(2020, 1, 1, tzinfo=UTC)
    responses = [Response(text, votes=vote, created=day) for vote in votes]
    return Item("site", name, name, (Message("user", "Q"),), responses, [Preference(0, 1, 1.0)])


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (forum("a", (6, 4)), "controversial"),
        (forum("a", (7, 4)), "open"),
        (forum("a", (1, 0)), "open"),
        (forum("a", (9, 1), "use `ls`"), "technical"),
        (forum("a", (9, 1), "so $x^2$ is"), "technical"),
        (forum("a", (9, 1), "text\n    code()"), "technical"),
        (better_first("sub", "a", "Q", ["yes"], ["no"]), "sub"),
    ],
)
def test_the_kind_of_an_item(item: Item, kind: str) -> None:
    assert strata.stratum(item) == kind


def test_the_rarest_kind_decides_the_size_of_a_stratified_set() -> None:
    items = (
        [forum(f"o{i}", (9, 1)) for i in range(50)]
        + [forum(f"t{i}", (9, 1), "`x`") for i in range(14)]
        + [forum("c", (3, 3))] * 1
    )
    drawn = strata.draw(items, {"technical": 0.7, "open": 0.3})
    assert Counter(map(strata.stratum, drawn)) == {"technical": 14, "open": 6}
    assert strata.draw(items[::-1], {"technical": 0.7, "open": 0.3}) == drawn[::-1]


def test_strata_are_named_with_their_shares() -> None:
    assert strata.shares("a=7,b=3") == {"a": 0.7, "b": 0.3}
    assert strata.shares("forum") == strata.FORUM
    for text in ("a", "a=x", "a=0,b=1", "a=inf,b=1", "a=nan", ""):
        with pytest.raises(ConfigError, match="NAME=share"):
            strata.shares(text)
    with pytest.raises(ConfigError, match="no item is 'open'"):
        strata.draw([forum("c", (3, 3))], {"open": 1.0})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b'[{"x": 1}, {"x": 2}]', [{"x": 1}, {"x": 2}]),
        ("a.json", b'{"k": [{"x": 1}], "l": [{"x": 2}]}', [{"x": 1}, {"x": 2}]),
        ("a.json", b'{"x": 1}\n{"x": 2}\n', [{"x": 1}, {"x": 2}]),
        ("a.jsonl", b'{"x": 1}\n\n{"x": 2}', [{"x": 1}, {"x": 2}]),
        ("a.jsonl.gz", gzip.compress(b'{"x": 1}', mtime=0), [{"x": 1}]),
    ],
)
def test_rows_of_every_kind_of_file(
    tmp_path: Path, name: str, content: bytes, expected: list[object]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(rows.read(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"x": 1}\n{"x":', r"a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"x": NaN}', "NaN is not a number"),
        ("a.json", b'{"x": 1}', "a dict, not a list of rows"),
        ("a.json", b'[{"x": 1}', "not JSON"),
        ("a.jsonl", b"[" * 100_000, "not JSON"),
        (
            "a.jsonl.gz",
            gzip.compress(json.dumps({"x": "y" * 999}).encode(), mtime=0)[:-9],
            "not readable",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"x": 1}' * 99, mtime=0)[:20] + b"garbage" * 9,
            "not readable",
        ),
        ("a.parquet", b"PAR1 no", "not a readable Parquet file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(rows.read(tmp_path / name))


def test_all_texts_of_a_file_are_compared(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({"a": [{"b": WORDS}], "c": 3}) + "\n")
    assert Index({"mine": texts_in(tmp_path / "mine.jsonl")}).found_in([group(WORDS)]) == {
        "mine": {"0"}
    }


def test_a_prompt_that_many_rows_share_is_an_overlap(tmp_path: Path) -> None:
    (tmp_path / "best.jsonl").write_text(
        "".join(json.dumps({"prompt": WORDS, "response": str(i)}) + "\n" for i in range(11))
    )
    assert len(Index({"best": texts_in(tmp_path / "best.jsonl")}).overlaps(group(WORDS))) == 11
