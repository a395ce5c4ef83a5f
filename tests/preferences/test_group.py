"""Threads to groups: reasons, prompts, splits."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests import foreign_model
from tests.conftest import run, thread_of
from worldpm.errors import ConfigError, DataError
from worldpm.options.group import GroupRules, Rule
from worldpm.preferences import cleaning, grouping, near_duplicates, splits
from worldpm.preferences.grouping import Learned, Tally, group_thread
from worldpm.preferences.near_duplicates import Text
from worldpm.records import Comment, PreferenceGroup, Thread
from worldpm.storage import folders, parquet, schema
from worldpm.storage.json_files import read_json
from worldpm.storage.manifest import read_manifest


def made(
    thread: Thread, rules: GroupRules | None = None, learned: Learned | None = None
) -> tuple[PreferenceGroup | None, dict[str, int]]:
    tally = Tally()
    group = group_thread(thread, rules or GroupRules(), tally, learned or Learned())
    return group, {reason: n for reason, n in tally.drops.items() if n}


def split_of(thread: Thread) -> splits.Split:
    return grouping.split_of(thread, GroupRules(), Learned())


def test_the_prompt_is_title_and_body_and_responses_keep_their_origin() -> None:
    group, drops = made(thread_of(3, 1))
    assert group is not None

    assert drops == {}
    assert [(m.role, m.content) for m in group.prompt] == [("user", "Title: About site/1\n\nBody")]
    assert [r.content for r in group.responses] == ["answer 0", "answer 1"]
    assert group.responses[0].meta == {
        "response_id": "r0",
        "author": "user0",
        "licence": "CC BY-SA 4.0",
        "url": "https://site/q/1",
    }


@pytest.mark.parametrize(
    ("thread", "drops"),
    [
        (thread_of(), {"thread with fewer than two responses": 1}),
        (thread_of(4), {"thread with fewer than two responses": 1}),
        (
            thread_of(4, 2, bodies=["x", "  "]),
            {"response without text": 1, "thread with fewer than two responses": 1},
        ),
        (thread_of(2, 2, 2), {"thread whose responses have equal votes": 1}),
        (
            thread_of(4, 2, bodies=["So  it\nis.", " So it is."]),
            {
                "response that repeats another of the thread": 1,
                "thread with fewer than two responses": 1,
            },
        ),
    ],
)
def test_a_thread_is_dropped_for_a_counted_reason(thread: Thread, drops: dict[str, int]) -> None:
    assert made(thread) == (None, drops)


def test_of_equal_answers_the_most_voted_is_kept_and_in_a_tie_the_earliest() -> None:
    bodies = ["\u306f\u3044\u3002", "no", "\u306f\u3044\u3002\u3000", "\u306f\u3044\u3002\n"]
    group, drops = made(thread_of(1, 2, 5, 5, bodies=bodies))
    assert group is not None
    assert [response.votes for response in group.responses] == [2, 5]
    assert [(p.chosen, p.rejected) for p in group.preferences] == [(1, 0)]
    assert group.responses[1].content == bodies[2]
    assert drops == {"response that repeats another of the thread": 2}


def test_answers_that_masking_makes_equal_form_no_pair() -> None:
    bodies = ["mail a@b.de", "mail c@d.de", "no"]
    group, drops = made(thread_of(3, 2, 1, bodies=bodies), GroupRules(mask_personal=True))
    assert group is not None
    assert [response.content for response in group.responses] == ["mail [e-mail]", "no"]
    assert drops == {"response that repeats another of the thread": 1}


def test_a_thread_without_a_question_is_dropped() -> None:
    thread = thread_of(2, 1)
    blank = Thread(
        **{**{name: getattr(thread, name) for name in Thread.__slots__}, "title": " ", "body": ""}
    )
    assert made(blank) == (None, {"thread without text": 1})


def test_a_huge_thread_is_sampled_and_counted() -> None:
    group, drops = made(thread_of(*range(40)), GroupRules(max_responses=5))
    assert group is not None
    assert len(group.responses) == 5
    assert drops == {"response beyond --max-responses": 35}


def test_the_weights_of_a_thread_add_up_to_one() -> None:
    group, _ = made(thread_of(5, 3, 3, -1))
    assert group is not None
    assert sum(p.weight for p in group.preferences) == pytest.approx(1)
    assert len(group.preferences) == 5


RULES: tuple[Rule, ...] = ("default", "worldpm", "askell", "shp")


def test_every_rule_has_the_same_test_preferences() -> None:
    threads = [thread_of(5, 3, 1, name=f"site/{i}") for i in range(60)]
    groups = {rule: [made(t, GroupRules(rule=rule))[0] for t in threads] for rule in RULES}
    for by_rule in zip(*groups.values(), strict=True):
        made_groups = [group for group in by_rule if group is not None]
        if made_groups[0].split == "train":
            assert len({group.preferences for group in made_groups}) > 1
        else:
            assert len(made_groups) == len(RULES)
            assert len({group.preferences for group in made_groups}) == 1


def test_splits_have_their_shares_and_a_larger_one_only_takes_from_training() -> None:
    keys = [f"site/{i}" for i in range(10_000)]
    small, large = (
        GroupRules(validation_share=0.1, test_share=0.1),
        GroupRules(validation_share=0.1, test_share=0.3),
    )
    counts = Counter(splits.of_key(key, small) for key in keys)
    assert counts == {
        "train": pytest.approx(8000, abs=150),
        "validation": pytest.approx(1000, abs=120),
        "test": pytest.approx(1000, abs=120),
    }

    moved = {(splits.of_key(key, small), splits.of_key(key, large)) for key in keys}
    assert moved == {
        ("train", "train"),
        ("train", "test"),
        ("test", "test"),
        ("validation", "validation"),
    }


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    group, _ = made(thread_of(3, 1))
    assert group is not None
    parquet.write_parquet(
        tmp_path / "g.parquet",
        parquet.rows_to_batches([schema.group_to_row(group)], schema.GROUPS),
        schema.GROUPS,
    )
    (row,) = parquet.read_rows(tmp_path / "g.parquet")
    assert schema.group_from_row(row, tmp_path) == group

    for preference in row["preferences"]:
        del preference["probability"]  # then the label counts as certain
    assert {
        preference.probability for preference in schema.group_from_row(row, tmp_path).preferences
    } == {1.0}


def test_rows_make_the_same_bytes_in_batches_of_any_size(tmp_path: Path) -> None:
    group, _ = made(thread_of(3, 1))
    assert group is not None
    rows = [schema.group_to_row(group)] * 20_000
    for size in (100, 7000):
        parquet.write_parquet(
            tmp_path / str(size),
            parquet.rows_to_batches(rows, schema.GROUPS, size=size),
            schema.GROUPS,
        )
    assert (tmp_path / "100").read_bytes() == (tmp_path / "7000").read_bytes()


def test_the_table_is_readable_without_our_code(road: Path) -> None:
    import duckdb

    query = (
        "SELECT split, count(*), sum(list_sum([p.weight for p in preferences])) FROM"
        f" '{road}/groups/*.parquet' GROUP BY split"
    )
    splits_of_table = {split: (n, weight) for split, n, weight in duckdb.execute(query).fetchall()}
    counts = read_manifest(road / "groups").counts["simulated"]
    assert {split: n for split, (n, _) in splits_of_table.items()} == {
        split: counts["splits"][split]["groups"] for split in splits_of_table
    }
    assert all(weight == pytest.approx(n, rel=1e-5) for n, weight in splits_of_table.values())


def test_a_site_without_a_thread_of_two_answers_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = [thread_of(1, name=f"site/{i}") for i in range(3)]
    output = folders.begin(tmp_path / "threads", step="ingest", config={}, inputs=[])
    assert output is not None
    with output:
        rows = parquet.rows_to_batches(map(schema.thread_to_row, lone), schema.THREADS)
        output.part(
            "site.parquet",
            lambda aside: {"rows": parquet.write_parquet(aside, rows, schema.THREADS)},
        )
        output.finish(counts={})

    assert run("group", tmp_path / "threads", "--out", tmp_path / "groups") == 2
    assert "no group is left, so there is nothing to learn from (" in capsys.readouterr().err
    assert not (tmp_path / "groups" / "manifest.json").exists()


def test_rules_that_drop_everything_do_not_block_the_folder(road: Path, tmp_path: Path) -> None:
    assert (
        run("group", road / "threads", "--out", tmp_path / "groups", "--min-characters", 99_999)
        == 2
    )
    assert run("group", road / "threads", "--out", tmp_path / "groups") == 0


def test_a_parquet_file_of_groups_without_a_manifest_is_trained_and_evaluated_on(
    road: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = list(parquet.read_rows(road / "groups" / "simulated.parquet"))
    for split in ("train", "test"):
        mine = [row for row in rows if row["split"] == split][:12]
        parquet.write_parquet(
            tmp_path / f"{split}.parquet",
            parquet.rows_to_batches(mine, schema.GROUPS),
            schema.GROUPS,
        )
    options = ("--model", "tiny", "--max-steps", 1, "--batch-pairs", 4, "--max-length", 128)
    assert run("train", tmp_path / "train.parquet", *options, "--out", tmp_path / "checkpoint") == 0
    assert "no validation groups" in caplog.text
    assert (
        run(
            "evaluate",
            tmp_path / "checkpoint",
            "--on",
            tmp_path / "test.parquet",
            "--out",
            tmp_path / "results",
        )
        == 0
    )

    benchmarks = read_json(tmp_path / "results" / "metrics.json")["checkpoints"]["checkpoint"][
        "benchmarks"
    ]
    assert benchmarks["test"]["prompts"] == 12


SOUND = {"chosen": 0, "rejected": 1, "strength": 1.0, "probability": 1.0, "weight": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferences": []}, "lacks a prompt, a text or a preference"),
        ({"prompt": []}, "lacks a prompt, a text or a preference"),
        ({"responses": None}, r"chosen is \d; it must be an index of the 0 responses"),
        (
            {"preferences": [{**SOUND, "rejected": 9}]},
            r"rejected is 9; it must be an index of the \d responses",
        ),
        ({"preferences": [{**SOUND, "chosen": -1}]}, "chosen is -1; it must be an index"),
        ({"preferences": [{**SOUND, "rejected": 0}]}, "response 0 is preferred to itself"),
        (
            {"preferences": [{**SOUND, "weight": 0.0}]},
            "the weight 0.0; it must be finite and above 0",
        ),
        ({"preferences": [{**SOUND, "weight": None}]}, "the weight None"),
        ({"preferences": [{**SOUND, "strength": None}]}, "the strength None"),
        ({"preferences": [{**SOUND, "strength": float("nan")}]}, "the strength nan"),
        (
            {"preferences": [{**SOUND, "probability": 1.5}]},
            "the probability 1.5; it must be from 0 to 1",
        ),
    ],
)
def test_an_invalid_group_is_refused(road: Path, change: dict[str, object], message: str) -> None:
    path = road / "groups" / "simulated.parquet"
    row = next(parquet.read_rows(path))
    with pytest.raises(DataError, match=r"simulated.parquet: group 'simulated/\d+'.*" + message):
        schema.group_from_row({**row, **change}, path)


def test_a_table_of_other_columns_is_refused(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        "train",
        road / "threads" / "simulated.parquet",
        "--model",
        "tiny",
        "--out",
        tmp_path / "checkpoint",
    )

    assert run(*command) == 2
    assert "a row with thread_id, source, site" in capsys.readouterr().err


LONG = " ".join(f"word{i} of a long text" for i in range(30))


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        (" \n", GroupRules(), "without text"),
        ("short", GroupRules(min_characters=6), "shorter than --min-characters"),
        ("x" * 101, GroupRules(max_characters=100), "longer than --max-characters"),
        ("[a](http://b.c) http://d.e", GroupRules(), "of nothing but links"),
        ("[a](http://b.c)", GroupRules(keep_link_only=True), None),
        ("```\ncode\n```", GroupRules(), "mostly of code or quotes"),
        ("> all quoted", GroupRules(), "mostly of code or quotes"),
        (
            "[Lambda](https://en.wikipedia.org/wiki/Abstraction_(computer_science))",
            GroupRules(),
            "of nothing but links",
        ),
        ("> all quoted", GroupRules(max_code_share=1.0), None),
        ("see:\n\n    code here", GroupRules(), None),
        (
            "Das ist ein Haus und kein Baum",
            GroupRules(languages=("en",)),
            "in a language not in --languages",
        ),
        ("Das ist ein Haus und kein Baum", GroupRules(languages=("en", "de")), None),
        ("Baby carrots w/hummus", GroupRules(languages=("en",)), None),
        ("Idk bru probs not", GroupRules(languages=("en",)), None),
        (
            "Baby carrots w/hummus",
            GroupRules(languages=("en",), language_confidence=0.0),
            "in a language not in --languages",
        ),
        ("12 + 3 = 15", GroupRules(languages=("en",)), None),
        ("\U0001f44d\U0001f44d", GroupRules(), None),
        ("\U0001f44d http://d.e", GroupRules(), "of nothing but links"),
        ("a\x00b", GroupRules(), "with control characters"),
        ("a\x9bb", GroupRules(), "with control characters"),
        ("a\tb\r\nc\x85", GroupRules(), None),
    ],
)
def test_every_reason_to_drop_an_answer(text: str, rules: GroupRules, reason: str | None) -> None:
    assert cleaning.why_unfit(text, rules, answer=True) == reason


def by(author: str, *bodies: str, name: str = "site/1") -> Thread:
    """A thread whose first answer is by the author."""
    thread = thread_of(*range(len(bodies), 0, -1), bodies=list(bodies), name=name)
    first, *others = thread.responses
    return replace(thread, responses=(replace(first, author=author), *others))


@pytest.mark.parametrize(
    ("rules", "dropped"),
    [
        (GroupRules(), True),
        (GroupRules(keep_bots=True), False),
        (GroupRules(bots=("Helper",)), True),
    ],
)
def test_answers_and_questions_of_bots_are_dropped(rules: GroupRules, dropped: bool) -> None:
    _, drops = made(by("AutoModerator", "I am a bot", "a", "b"), rules)
    assert drops == ({"response written by a bot": 1} if dropped else {})

    asked = replace(thread_of(2, 1), author="RemindMeBot")
    assert made(asked, rules)[1] == ({"thread written by a bot": 1} if dropped else {})


def test_bots_are_named_by_the_user_and_only_whole_names_count() -> None:
    assert made(by("helper", "x", "a", "b"), GroupRules(bots=("Helper",)))[1] == {
        "response written by a bot": 1
    }
    for author in ("talbot", "robot", "automoderator2"):
        assert made(by(author, "x", "a", "b"))[1] == {}


def test_an_answer_that_its_author_repeats_under_ten_threads_is_dropped(tmp_path: Path) -> None:
    # nine threads of one text, ten of another, ten by ten authors
    firsts = [("machine", "Read the manual!")] * 9 + [("machine", "Read the  rules!")] * 10
    firsts += [(f"person{i}", "Read the guide!") for i in range(10)]
    many = [
        by(author, text, f"a{i}", f"b{i}", name=f"site/{i}")
        for i, (author, text) in enumerate(firsts)
    ]
    folder = finished(tmp_path / "threads", site=many)

    assert run("group", folder, "--out", tmp_path / "groups") == 0
    reason = "response that its author repeats under many threads"
    assert read_manifest(tmp_path / "groups").drops["site"] == {reason: 10}
    assert run("group", folder, "--keep-bots", "--out", tmp_path / "kept") == 0
    assert read_manifest(tmp_path / "kept").drops["site"] == {}


def test_questions_with_a_dropped_tag_are_dropped() -> None:
    thread = replace(thread_of(2, 1), tags=("ask", "nsfw"))
    assert made(thread, GroupRules(drop_tags=("nsfw",))) == (
        None,
        {"thread with a tag of --drop-tags": 1},
    )
    assert made(thread)[1] == {}


def test_comments_older_than_all_answers_are_in_the_prompt() -> None:
    thread = thread_of(2, 1)
    first = min(answer.created for answer in thread.responses)
    comments = [
        Comment(str(days), f"{days} days ", 0, first + timedelta(days=days), None, None)
        for days in (-2, -1, 0, 1)
    ]
    group, _ = made(replace(thread, comments=tuple(comments)))
    assert group is not None
    assert group.prompt[0].content == (
        "Title: About site/1\n\nBody\n\nComment: -2 days\n\nComment: -1 days"
    )


@pytest.mark.parametrize(
    ("meta", "sites"),
    [
        ("keep", {"beer.stackexchange.com", "beer.meta.stackexchange.com", "meta.discourse.org"}),
        ("drop", {"beer.stackexchange.com", "meta.discourse.org"}),
        ("only", {"beer.meta.stackexchange.com"}),
    ],
)
def test_sites_about_policy_are_kept_dropped_or_alone(
    tmp_path: Path, meta: str, sites: set[str]
) -> None:
    names = ("beer.stackexchange.com", "beer.meta.stackexchange.com", "meta.discourse.org")
    folder = finished(tmp_path / "threads", **{name: varied(name, 12) for name in names})
    assert run("group", folder, "--meta", meta, "--out", tmp_path / "groups") == 0
    assert {group.site for group in read_groups(tmp_path / "groups")} == sites


def test_without_a_site_left_meta_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path / "threads", a=varied("a", 12))
    assert run("group", folder, "--meta", "only", "--out", tmp_path / "groups") == 2
    assert "--meta only: no site is left" in capsys.readouterr().err


def test_the_share_of_code_by_hand() -> None:
    assert cleaning.code_share("ab\n```\ncd\n```\n    ef\n> gh\nij") == pytest.approx(1 - 4 / 17)


def test_personal_data_is_masked_and_counted() -> None:
    harmless = (
        "not 2020-01-01 15:39, 3.14159265358, 978-3-16-148410-0, 1 2 3 4 5 6 7 8 9, a@b or"
        " `@Override`."
    )
    text, count = cleaning.masked(
        f"Ask @peter or me@x.org, +49 (30) 1234-5678, 030 1234 5678; {harmless}"
    )
    assert text == f"Ask [name] or [e-mail], [phone], [phone]; {harmless}"

    american = "555-123-4567, (212) 555-1234, 1-800-555-0199, +1.212.555.1234"
    assert cleaning.masked(american)[0] == "[phone], [phone], [phone], [phone]"

    for number in (
        "0 1 0 0 1 0 1 1 0",
        "0110 1010 11",
        "10.1145/3292500",
        "2024-05-01",
        "0 64 128 256",
        "0 100 200 300 400",
        "00 11 22 33 44",
        "0123456789",
        "0.5 0.25 0.125",
        "0 000 000 001",
    ):
        assert cleaning.masked(f"matrix {number} there")[0] == f"matrix {number} there"
    assert count == 4

    group, _ = made(thread_of(3, 1, bodies=["mail a@b.de", "no"]), GroupRules(mask_personal=True))
    assert group is not None
    assert group.responses[0].content == "mail [e-mail]"


def test_pairs_of_a_thread_are_sampled_with_a_total_weight_of_1() -> None:
    thread = next(
        t
        for t in (thread_of(*range(6), name=f"site/{i}") for i in range(9))
        if split_of(t) == "train"
    )
    group, drops = made(thread, GroupRules(pairs_per_thread=4))
    assert group is not None
    assert [p.weight for p in group.preferences] == [0.25] * 4
    assert drops == {"pair beyond --pairs-per-thread": 11}
    assert group == made(thread, GroupRules(pairs_per_thread=4))[0]


def test_pairs_of_other_gaps_are_dropped_from_training_only() -> None:
    named = [thread_of(0, 1, 4, 9, name=f"site/{i}") for i in range(40)]  # gaps 1, 3, 4, 5, 8, 9
    rules = GroupRules(least_gap=3, most_gap=5)
    train, test = (next(t for t in named if split_of(t) == split) for split in ("train", "test"))
    group, drops = made(train, rules)
    assert group is not None
    assert sorted(p.strength for p in group.preferences) == [3, 4, 5]
    assert drops == {"pair beyond --least-gap and --most-gap": 3}
    assert made(train, GroupRules(least_gap=10)) == (
        None,
        {"pair beyond --least-gap and --most-gap": 6, "thread without a pair left": 1},
    )

    group, drops = made(test, rules)
    assert group is not None
    assert (len(group.preferences), drops) == (6, {})


def test_close_votes_are_thinned_to_their_share() -> None:
    threads = [
        thread_of(5, 4, 0, name=f"site/{i}") for i in range(600)
    ]  # one controversial pair of three
    rules = GroupRules(controversial_share=0.1)
    kept_share = grouping.controversial_kept([{"clear": 2, "controversial": 1}], 0.1)
    assert kept_share == pytest.approx(0.1 / 0.9 * 2)

    groups = [made(thread, rules, Learned(controversial_kept=kept_share))[0] for thread in threads]
    pairs = [p for group in groups if group and group.split == "train" for p in group.preferences]
    close = sum((p.chosen, p.rejected) == (0, 1) for p in pairs)
    assert close / len(pairs) == pytest.approx(0.1, abs=0.03)

    dropped, _ = made(thread_of(7, 6, name=threads[0].thread_id), rules)
    assert (dropped is None) == (split_of(threads[0]) == "train")


def test_the_most_voted_of_near_duplicates_is_kept(tmp_path: Path) -> None:
    repeat = LONG.replace("word7 of", "Word7, OF")
    texts = [
        Text(1, "b", 3, LONG, "t"),
        Text(1, "a", 5, repeat, "t"),
        Text(1, "c", 3, LONG + " and more", "t"),
        Text(1, "d", 9, "no", "t"),
        Text(1, "e", 1, "no", "t"),
    ]
    texts += [
        Text(1, "e", 1, "no", "t"),
        Text(0, "question", 1, LONG, "question"),
    ]  # too short, and of another kind
    for name, some in (("x", texts[:2]), ("y", texts[2:])):
        parquet.write_parquet(
            tmp_path / name, [near_duplicates.bands(some)], near_duplicates.SCHEMA
        )

    assert near_duplicates.duplicates([tmp_path / "x", tmp_path / "y"], spill=tmp_path) == {
        "b",
        "c",
    }


def test_one_copy_of_a_thread_stays_with_its_answers(tmp_path: Path) -> None:
    answers = [
        LONG.replace("word7", f"other{number}") + " ".join(f"w{number}x{i}" for i in range(60))
        for number in range(2)
    ]
    texts = [
        Text(0, "alpha/1", 10, LONG, "alpha/1"),
        Text(0, "beta/1", 5, LONG, "beta/1"),
        *(
            Text(1, f"{site}/1#{number}", votes, answers[number], f"{site}/1")
            for site, votes in (("alpha", 3), ("beta", 30))
            for number in range(2)
        ),
    ]
    parquet.write_parquet(tmp_path / "x", [near_duplicates.bands(texts)], near_duplicates.SCHEMA)

    assert near_duplicates.duplicates([tmp_path / "x"], spill=tmp_path) == {
        "beta/1"
    }  # its answers are dropped with it, and replace no others


def bands_of(*texts: Text) -> list[list[int]]:
    """The bands of each text, in the order of the texts."""
    rows = near_duplicates.bands(texts).to_pylist()
    return [[row["band"] for row in rows if row["name"] == text.name] for text in texts]


def test_texts_that_share_less_than_half_are_not_duplicates() -> None:
    words = [f"word{i}" for i in range(200)]
    half_shared = [*words[:100], *(f"other{i}" for i in range(100))]
    first, second = bands_of(
        Text(1, "one", 1, " ".join(words), "t"), Text(1, "other", 1, " ".join(half_shared), "t")
    )
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("old", "new"), [(" word7 of", " \u201cword7\u201d of"), (" ", "\u00a0"), (" ", " \u2014 ")]
)
def test_punctuation_beyond_ascii_does_not_change_a_text(old: str, new: str) -> None:
    first, second = bands_of(
        Text(1, "a", 1, LONG, "t"), Text(1, "b", 1, LONG.replace(old, new), "t")
    )
    assert len(first) == 8
    assert first == second


JAPANESE = (
    "\u671d\u306b\u7a93\u3092\u958b\u3051\u308b\u3068\u3001\u98a8\u304c\u5165\u3063\u3066\u304d\u3066\u30d1\u30f3\u306e\u9999\u308a\u304c\u3057\u305f\u3002"
    "\u7aaf\u306f\u3082\u3046\u6e29\u304b\u304f\u3001\u751f\u5730\u306f\u5e03\u306e\u4e0b\u3067\u9759\u304b\u306b\u81a8\u3089\u3093\u3067\u3044\u305f\u3002"
)
CHINESE = (
    "\u65e9\u4e0a\u6253\u5f00\u7a97\u6237\uff0c\u98ce\u5439\u8fdb\u6765\uff0c\u80fd\u95fb\u5230\u9762\u5305\u7684\u9999\u5473\u3002\u70e4\u7089\u5df2\u7ecf\u70ed\u4e86\uff0c"
    "\u9762\u56e2\u5728\u5e03\u4e0b\u6162\u6162\u53d1\u8d77\u6765\uff0c\u4eca\u5929\u53ef\u4ee5\u505a\u4e24\u6761\u9762\u5305\u3002"
)


@pytest.mark.parametrize("text", [LONG, JAPANESE, CHINESE])
def test_copies_are_found_in_scripts_without_spaces_too(text: str, tmp_path: Path) -> None:
    copy = text.replace("\u3002", "\n").replace("\u3001", " ").replace("\uff0c", " ")
    texts = [Text(1, "a", 3, text, "t"), Text(1, "b", 5, copy, "t")]
    first, second = bands_of(*texts)
    assert len(first) == 8
    assert first == second
    assert near_duplicates.words_of_short(text) is None

    parquet.write_parquet(tmp_path / "x", [near_duplicates.bands(texts)], near_duplicates.SCHEMA)
    assert near_duplicates.duplicates([tmp_path / "x"], spill=tmp_path) == {"a"}


def test_letters_of_scripts_without_spaces_are_words() -> None:
    short = "\u30d1\u30f3\u306f3\u56de, \u0e01\u0e02 abc"
    assert near_duplicates.words_of_short(short) == (
        "\u30d1 \u30f3 \u306f 3 \u56de \u0e01 \u0e02 abc"
    )
    assert near_duplicates.words_of_short(JAPANESE[:39]) is not None


def test_a_texts_bands_do_not_depend_on_its_neighbours() -> None:
    texts = [
        Text(1, "a", 1, LONG, "t"),
        Text(1, "b", 1, "", "t"),
        Text(1, "c", 1, "\u00e9" + LONG, "t"),
        Text(0, "d", 1, "...", "d"),
    ]
    together = bands_of(*texts)
    assert together == [bands_of(text)[0] for text in texts]
    assert [len(bands) for bands in together] == [8, 0, 8, 0]
    assert near_duplicates.bands([]).num_rows == 0


def finished(folder: Path, **sites: list[Thread]) -> Path:
    """Write a folder of threads as `ingest` does."""
    output = folders.begin(folder, step="ingest", config={}, inputs=[])
    assert output is not None
    with output:
        for site, threads in sites.items():
            rows = parquet.rows_to_batches(map(schema.thread_to_row, threads), schema.THREADS)
            output.part(
                f"{site}.parquet",
                lambda aside, rows=rows: {  # type: ignore[misc]
                    "rows": parquet.write_parquet(aside, rows, schema.THREADS)
                },
            )
        output.finish(counts={})

    return folder


def read_groups(folder: Path) -> list[PreferenceGroup]:
    return [group for path in parquet.paths_of(folder) for group in schema.read_groups(path)]


def varied(site: str, count: int) -> list[Thread]:
    base = thread_of(4, 1)
    return [
        replace(
            base,
            thread_id=f"{site}/{i}",
            site=site,
            title=f"{site} {i}",
            created=base.created + timedelta(days=i),
            responses=tuple(replace(r, author=f"{r.author} of {site}/{i}") for r in base.responses),
        )
        for i in range(count)
    ]


def test_threads_with_the_same_short_question_are_in_one_split() -> None:
    enough, few = (
        "word " * (near_duplicates.LEAST_WORDS - len(["title", "which", "then", *less]))
        for less in ([], ["one"])
    )
    texts = [
        grouping.question_of(replace(thread_of(2, 1), title="Which, then?", body=body))
        for body in (enough, few)
    ]
    bands = bands_of(*(Text(0, text, 1, text, text) for text in texts))
    assert [bool(text_bands) for text_bands in bands] == [True, False]
    assert (
        len(
            {
                split_of(replace(thread, title="Which, then?", body=enough))
                for thread in varied("a", 40)
            }
        )
        == 3
    )

    short = [replace(thread, title="WHICH then", body=few) for thread in varied("a", 40)]
    repeats = [replace(thread, title="which, then?", body=few) for thread in varied("b", 40)]
    assert len({split_of(thread) for thread in (*short, *repeats)}) == 1

    other_bodies = [replace(t, body=f"Body {i}") for i, t in enumerate(short)]
    assert len({split_of(thread) for thread in other_bodies}) == 3


def test_a_near_duplicate_of_another_site_is_never_in_another_split(tmp_path: Path) -> None:
    first_site = [replace(t, body=f"{t.title} {LONG}", votes=1) for t in varied("a", 30)]
    second_site = [
        replace(t, body=first.body, title=first.title, votes=2)
        for t, first in zip(varied("b", 30), first_site, strict=True)
    ]
    command = (
        "group",
        finished(tmp_path / "threads", a=first_site[:1], b=second_site[:1]),
        "--rejects",
        "--out",
        tmp_path / "groups",
    )
    assert run(*command) == 0
    assert [group.site for group in read_groups(tmp_path / "groups")] == ["b"]

    rejects = [
        json.loads(line)
        for line in (tmp_path / "groups" / "rejects.jsonl").read_text().splitlines()
    ]
    assert [(row["name"], row["reason"]) for row in rejects] == [
        ("a/0", "thread that nearly repeats another with more votes")
    ]
    assert run("report", tmp_path / "groups", "--out", tmp_path / "r.html") == 0
    assert "Examples of what was dropped" in (tmp_path / "r.html").read_text()


def test_a_thread_that_is_dropped_anyway_does_not_replace_its_duplicate(tmp_path: Path) -> None:
    lonely, useful = varied("a", 2)
    same = f"a question {LONG}"
    lonely = replace(lonely, body=same, title="", votes=10, responses=lonely.responses[:1])
    useful = replace(useful, body=same, title="", votes=5)

    assert (
        run(
            "group",
            finished(tmp_path / "threads", a=[lonely, useful]),
            "--out",
            tmp_path / "groups",
        )
        == 0
    )
    assert [group.group_id for group in read_groups(tmp_path / "groups")] == ["a/1"]


def test_splits_by_site_and_by_time(tmp_path: Path) -> None:
    threads = finished(tmp_path / "threads", **{name: varied(name, 20) for name in "abcdefgh"})
    assert (
        run("group", threads, "--split-by", "site", "--test-share", 0.3, "--out", tmp_path / "site")
        == 0
    )

    by_site = {(group.site, group.split) for group in read_groups(tmp_path / "site")}
    assert len(by_site) == 8
    assert run("group", threads, "--split-by", "time", "--out", tmp_path / "time") == 0

    days = {
        split: {
            int(g.group_id.split("/")[1])
            for g in read_groups(tmp_path / "time")
            if g.split == split
        }
        for split in SPLITS
    }
    assert (
        max(days["train"]) < min(days["validation"]) <= max(days["validation"]) < min(days["test"])
    )
    assert days["test"] == {16, 17, 18, 19}


SPLITS = ("train", "validation", "test")


def test_a_table_lists_everyone_to_credit(tmp_path: Path) -> None:
    import csv

    assert (
        run("group", finished(tmp_path / "threads", a=varied("a", 2)), "--out", tmp_path / "groups")
        == 0
    )
    with (tmp_path / "groups" / "ATTRIBUTION.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    question, answer = rows[:2]
    assert question == {**answer, "response_id": "", "author": ""}
    assert answer == {
        "site": "a",
        "group_id": "a/0",
        "response_id": "r0",
        "author": "user0 of a/0",
        "url": "https://site/q/1",
        "licence": "CC BY-SA 4.0",
    }
    assert len(rows) == 6


@pytest.mark.parametrize(
    "author", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\uff1d1", '=HYPERLINK("http://x")']
)
def test_no_name_in_the_table_of_credits_is_a_formula(tmp_path: Path, author: str) -> None:
    import csv

    threads = [
        replace(thread, responses=tuple(replace(one, author=author) for one in thread.responses))
        for thread in varied("a", 2)
    ]
    assert (
        run("group", finished(tmp_path / "threads", a=threads), "--out", tmp_path / "groups") == 0
    )
    with (tmp_path / "groups" / "ATTRIBUTION.csv").open(newline="") as file:
        names = {row["author"] for row in csv.DictReader(file) if row["response_id"]}
    assert names == {f"'{author}"}


def test_groups_that_overlap_with_a_benchmark_are_reported_and_dropped(tmp_path: Path) -> None:
    bad, good = varied("a", 2)
    threads = finished(tmp_path / "threads", a=[replace(bad, body=LONG), good])
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": LONG}) + "\n")
    command = ("group", threads, "--decontaminate", tmp_path / "bench.jsonl")
    assert run(*command, "--out", tmp_path / "dropped") == 0
    assert [group.group_id for group in read_groups(tmp_path / "dropped")] == ["a/1"]

    (row,) = [
        json.loads(line)
        for line in (tmp_path / "dropped" / "contamination.jsonl").read_text().splitlines()
    ]
    assert (
        row["group_id"],
        row["benchmark"],
        row["item"],
        row["shared_words"],
        row["dropped"],
    ) == (
        "a/0",
        "bench.jsonl",
        "0",
        150,
        True,
    )
    assert run("report", threads, tmp_path / "dropped", "--out", tmp_path / "r.html") == 0

    page = (tmp_path / "r.html").read_text()
    assert "Overlap with benchmarks: 1 places in 1 groups" in page
    assert "worldpm group threads --decontaminate bench.jsonl --out dropped" in page
    assert run(*command, "--contaminated", "report", "--out", tmp_path / "kept") == 0
    assert len(read_groups(tmp_path / "kept")) == 2


def test_pairs_that_a_reward_model_contradicts_are_dropped_from_training(
    road: Path, tmp_path: Path
) -> None:
    command = ("group", road / "threads", "--filter-with", road / "checkpoint")
    assert run(*command, "--out", tmp_path / "strict") == 0
    assert run(*command, "--filter-margin", 1000, "--out", tmp_path / "lenient") == 0
    plain, strict, lenient = (
        {g.group_id: g for g in read_groups(p)}
        for p in (road / "groups", tmp_path / "strict", tmp_path / "lenient")
    )
    assert lenient == plain
    assert {i: g for i, g in strict.items() if g.split != "train"} == {
        i: g for i, g in plain.items() if g.split != "train"
    }
    remaining = sum(len(g.preferences) for g in strict.values() if g.split == "train")
    assert 0 < remaining < sum(len(g.preferences) for g in plain.values() if g.split == "train")
    drops = read_manifest(tmp_path / "strict").drops["simulated"]
    assert drops["pair that --filter-with contradicts"] > 0
    assert run(*command, "--filter-keep", "contradicted", "--out", tmp_path / "rest") == 0

    def pairs(groups: Iterable[PreferenceGroup]) -> set[tuple[str, int, int]]:
        return {
            (g.group_id, p.chosen, p.rejected)
            for g in groups
            if g.split == "train"
            for p in g.preferences
        }

    rest = pairs(read_groups(tmp_path / "rest"))
    assert rest == pairs(plain.values()) - pairs(strict.values())


def test_threads_that_the_filters_template_refuses_are_dropped_and_counted(
    road: Path, tmp_path: Path
) -> None:
    odd = "{% if messages[0].content | length % 2 %}{{ raise_exception('odd') }}{% endif %}"
    model = foreign_model.make(tmp_path / "model", odd + foreign_model.CHATML)
    command = ("group", road / "threads", "--filter-with", model, "--filter-margin", 1000)
    assert run(*command, "--out", tmp_path / "groups") == 0

    even, plain = read_groups(tmp_path / "groups"), read_groups(road / "groups")
    accepted = [
        group for group in plain if group.split != "train" or len(group.prompt[0].content) % 2 == 0
    ]
    assert {group.group_id for group in even} == {group.group_id for group in accepted}
    drops = read_manifest(tmp_path / "groups").drops["simulated"]
    reason = "thread that the chat template of --filter-with refuses"
    assert drops[reason] == len(plain) - len(accepted)


SITE_RULES = GroupRules(split_by="site", validation_share=0.1, test_share=0.2)


@pytest.mark.parametrize("count", [3, 4, 7, 40])
def test_a_split_by_site_fills_every_split(count: int) -> None:
    for start in range(50):
        sites = [f"site{number}" for number in range(start, start + count)]
        split_of = splits.of_sites(sites, SITE_RULES)
        assert set(split_of) == set(sites)
        assert set(split_of.values()) == set(splits.SPLITS)
        # a site is moved only to fill a split
        moved = [site for site in sites if split_of[site] != splits.of_key(site, SITE_RULES)]
        assert len(moved) <= 2
        assert splits.of_sites(reversed(sites), SITE_RULES) == split_of


def test_too_few_sites_for_the_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="--split-by site: 2 sites cannot fill 3 splits"):
        splits.of_sites(["a", "b"], SITE_RULES)
    without_validation = replace(SITE_RULES, validation_share=0.0)
    assert sorted(splits.of_sites(["a", "b"], without_validation).values()) == ["test", "train"]


def test_an_empty_split_is_a_warning_with_its_cure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    threads = tmp_path / "threads"
    assert run("simulate", "--threads", 8, "--out", threads) == 0
    shares = ("--validation-share", 0.001, "--test-share", 0.3)
    assert run("group", threads, *shares, "--out", tmp_path / "groups") == 0
    assert (
        "the validation split is empty: no group of it is left. Add threads, or raise"
        " --validation-share."
    ) in caplog.text
    assert "the test split is empty" not in caplog.text
