"""Reddit's dumps and threads of other forums, as JSON lines."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.conftest import run
from worldpm.errors import DataError
from worldpm.forums import generic, json_lines, reddit
from worldpm.forums.counts import Drops, no_drops
from worldpm.records import Thread
from worldpm.storage import parquet, schema
from worldpm.storage.json_files import Json
from worldpm.storage.manifest import read_manifest

SUBMISSION: Json = {
    "id": "s1",
    "title": "Why &amp; how?",
    "selftext": "Tell me &gt; all",
    "score": 9,
    "created_utc": 1577836800,
    "author": "asker",
    "subreddit": "ask",
    "permalink": "/r/ask/s1",
    "is_self": True,
}
COMMENT: Json = {
    "id": "c1",
    "link_id": "t3_s1",
    "parent_id": "t3_s1",
    "body": "Because.",
    "score": 4,
    "created_utc": "1577836900",
    "author": "a",
}
THREAD: Json = {
    "id": 7,
    "title": "T",
    "body": "B",
    "votes": 3,
    "created": "2024-05-01T12:00:00+02:00",
    "tags": ["x"],
    "responses": [
        {
            "id": 1,
            "body": "first",
            "votes": 5,
            "created": 1714560000,
            "accepted": True,
            "author": "b",
        },
        {"id": 2, "body": "second", "votes": -1, "created": "2024-05-02"},
    ],
}


def lines(*rows: Json) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read_threads(folder: Path) -> list[Thread]:
    return [
        thread
        for path in parquet.paths_of(folder)
        for batch in parquet.read_batches(path)
        for thread in schema.threads_of(batch)
    ]


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".zst": lambda text: zstandard.ZstdCompressor(write_content_size=False).compress(text),
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
}


@pytest.mark.parametrize("suffix", sorted(PACK))
def test_submissions_and_comments_become_threads_of_top_level_comments(
    tmp_path: Path, suffix: str
) -> None:
    reply = {**COMMENT, "id": "c3", "parent_id": "t1_c1"}
    gone = {**COMMENT, "id": "c4", "body": "[removed]"}
    second = {**COMMENT, "id": "c2", "score": 8, "created_utc": 1577836850}
    (tmp_path / f"ask_submissions{suffix}").write_bytes(
        PACK[suffix](lines(SUBMISSION, {**SUBMISSION, "id": "s2", "selftext": "[deleted]"}))
    )
    (tmp_path / f"ask_comments{suffix}").write_bytes(
        PACK[suffix](lines(COMMENT, second, reply, gone))
    )
    assert run("ingest", *tmp_path.glob("ask_*"), "--out", tmp_path / "threads") == 0

    (thread,) = read_threads(tmp_path / "threads")
    assert (thread.thread_id, thread.source, thread.site, thread.tags) == (
        "ask/t3_s1",
        "reddit",
        "ask",
        ("ask",),
    )
    assert (thread.title, thread.body, thread.votes) == ("Why & how?", "Tell me > all", 9)
    assert thread.created == datetime(2020, 1, 1, tzinfo=UTC)
    assert [(r.response_id, r.votes) for r in thread.responses] == [
        ("t1_c2", 8),
        ("t1_c1", 4),
    ]  # in the order of their dates, not of the file
    assert read_manifest(tmp_path / "threads").drops["ask"] == {
        "deleted or removed": 2,
        "reply to a comment": 1,
    }


def test_a_link_post_has_its_link_as_text() -> None:
    (batch,) = reddit_posts({**SUBMISSION, "selftext": "", "is_self": False, "url": "https://x.y"})
    assert batch["body"].to_pylist() == ["https://x.y"]


def reddit_posts(*rows: Json, drops: Drops | None = None) -> list[Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "x.jsonl"
        path.write_bytes(lines(*rows))
        counted = no_drops() if drops is None else drops
        return list(reddit.read_posts(path, site="x", drops=counted))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body": "[deleted]"}, "deleted or removed"),
        ({"body": None}, "deleted or removed"),
        ({"parent_id": "t1_x"}, "reply to a comment"),
        ({"stickied": True}, "put up by moderators"),
        ({"removed_by_category": "moderator"}, "removed by moderators"),
        ({"distinguished": "moderator"}, "written by moderators in their office"),
        ({"subreddit": "../x"}, "subreddit with an odd name"),
        ({"score_hidden": True}, "post whose votes are hidden"),
        ({"score": None}, "row without score or date"),
        ({"created_utc": "soon"}, "row without score or date"),
        ({"id": 3}, "row without id"),
        ({"link_id": 5}, "row without id"),
        ({"link_id": None}, "row without id"),
        ({"score": 2**70}, "row without score or date"),
        ({"score": 2.5}, "row without score or date"),
        ({"body": "\ud800"}, "text that cannot be written"),
    ],
)
def test_every_reason_to_leave_out_a_row_of_reddit(change: Json, reason: str) -> None:
    drops = no_drops()
    assert reddit_posts({**COMMENT, **change}, drops=drops) == []
    assert drops["x"] == {reason: 1}


def test_posts_with_hidden_votes_are_left_out_and_others_stay() -> None:
    drops = no_drops()
    hidden = {**SUBMISSION, "score_hidden": True}
    assert reddit_posts(hidden, drops=drops) == []
    assert drops["ask"] == {"post whose votes are hidden": 1}
    (batch,) = reddit_posts({**COMMENT, "score_hidden": False})
    assert batch.num_rows == 1


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("RS_2015-01.zst", "reddit-2015-01"),
        ("RC_2015-01.zst", "reddit-2015-01"),
        ("beer_comments.jsonl.gz", "beer"),
        ("x.jsonl", "x"),
    ],
)
def test_rows_without_subreddit_have_the_site_of_their_file(name: str, site: str) -> None:
    assert reddit.site_of(Path(name)) == site


def test_rows_of_our_thread_tables_can_be_ingested(tmp_path: Path) -> None:
    (tmp_path / "desk.jsonl").write_bytes(lines(THREAD))
    assert run("ingest", tmp_path / "desk.jsonl", "--out", tmp_path / "threads") == 0

    (row,) = (
        row for path in parquet.paths_of(tmp_path / "threads") for row in parquet.read_rows(path)
    )
    odd = {**row, "thread_id": "desk/9", "responses": 5}
    rows = [
        json.loads(json.dumps(source, default=str))
        for source in (row, {**row, "thread_id": "other/7"}, odd)
    ]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "desk.jsonl").write_bytes(lines(*rows))
    assert run("ingest", tmp_path / "again" / "desk.jsonl", "--out", tmp_path / "twice") == 0

    threads = read_threads(tmp_path / "twice")
    assert [thread.thread_id for thread in threads] == [
        "desk/7",
        "desk/other/7",
    ]  # threads of both sites are kept
    assert [answer.response_id for answer in threads[0].responses] == [
        answer["response_id"] for answer in row["responses"]
    ]
    assert read_manifest(tmp_path / "twice").drops == {
        "desk": {"thread without id, text or date, or with an odd value": 1}
    }


def test_the_accepted_answer_is_one_that_was_read(tmp_path: Path) -> None:
    first, second = THREAD["responses"]
    broken = {key: value for key, value in first.items() if key != "id"}
    rows = [
        {**THREAD, "responses": [broken, {**second, "accepted": True}]},
        {**THREAD, "id": 8, "responses": [first, {**second, "accepted": "false"}]},
        {**THREAD, "id": 9, "title": ["T"]},
        {**THREAD, "id": 10, "created": True},
    ]
    (tmp_path / "desk.jsonl").write_bytes(lines(*rows))
    assert run("ingest", tmp_path / "desk.jsonl", "--out", tmp_path / "threads") == 0

    accepted = {
        thread.thread_id: [answer.accepted for answer in thread.responses]
        for thread in read_threads(tmp_path / "threads")
    }
    assert accepted == {"desk/7": [True], "desk/8": [True]}
    assert read_manifest(tmp_path / "threads").drops["desk"] == {
        "response without id, body, votes or date, or with an odd value": 2,
        "thread without id, text or date, or with an odd value": 2,
    }


def test_a_months_submissions_and_comments_become_threads(tmp_path: Path) -> None:
    for name, row in (("RS_2015-01.jsonl", SUBMISSION), ("RC_2015-01.jsonl", COMMENT)):
        (tmp_path / name).write_bytes(lines(row))
    assert (
        run(
            "ingest",
            tmp_path / "RS_2015-01.jsonl",
            tmp_path / "RC_2015-01.jsonl",
            "--out",
            tmp_path / "threads",
        )
        == 0
    )

    (thread,) = read_threads(tmp_path / "threads")
    assert (thread.site, [answer.body for answer in thread.responses]) == ("ask", ["Because."])


def write_months(folder: Path) -> list[Path]:
    """Two months of two subreddits; the second month has a comment on the first."""
    other = {**SUBMISSION, "id": "s9", "subreddit": "tell", "over_18": True}
    months = {
        "RS_2021-09.jsonl": [SUBMISSION, other],
        "RC_2021-09.jsonl": [COMMENT, {**COMMENT, "id": "c9", "link_id": "t3_s9"}],
        "RS_2021-10.jsonl": [{**SUBMISSION, "id": "s2", "created_utc": 1580000000}],
        "RC_2021-10.jsonl": [{**COMMENT, "id": "c2", "created_utc": 1580000000}],
    }
    for name, rows in months.items():
        (folder / name).write_bytes(lines(*rows))
    return [folder / name for name in months]


def answers_of(folder: Path) -> dict[str, list[str]]:
    return {
        thread.thread_id: [answer.response_id for answer in thread.responses]
        for thread in read_threads(folder)
    }


def test_monthly_files_join_across_months_in_any_order_with_a_site_per_subreddit(
    tmp_path: Path,
) -> None:
    paths = write_months(tmp_path)
    for number, order in enumerate((paths, paths[::-1])):
        assert run("ingest", *order, "--out", tmp_path / f"threads-{number}") == 0
        assert answers_of(tmp_path / f"threads-{number}") == {
            "ask/t3_s1": ["t1_c1", "t1_c2"],
            "ask/t3_s2": [],
            "tell/t3_s9": ["t1_c9"],
        }

    tables = [path.name for path in parquet.paths_of(tmp_path / "threads-0")]
    assert tables == ["ask.parquet", "tell.parquet"]
    tags = {thread.site: thread.tags for thread in read_threads(tmp_path / "threads-0")}
    assert tags == {"ask": ("ask",), "tell": ("tell", "nsfw")}


def test_subreddits_are_selected_by_name_or_by_their_number_of_threads(tmp_path: Path) -> None:
    paths = write_months(tmp_path)
    assert run("ingest", *paths, "--subreddits", "Tell", "--out", tmp_path / "named") == 0
    assert answers_of(tmp_path / "named") == {"tell/t3_s9": ["t1_c9"]}
    # comments of this fixture name no subreddit, as in old dumps
    assert read_manifest(tmp_path / "named").drops["reddit"] == {
        "answer without its question": 2,
        "of a site not in --subreddits": 2,
    }

    assert run("ingest", *paths, "--min-threads", 2, "--out", tmp_path / "large") == 0
    assert answers_of(tmp_path / "large").keys() == {"ask/t3_s1", "ask/t3_s2"}
    assert read_manifest(tmp_path / "large").drops == {
        "ask": {},
        "reddit": {"post of a site below --min-threads": 2},
    }


@pytest.mark.parametrize(
    "bad", [("RC_2021-10.jsonl",), ("RS_2021-10.jsonl",), ("RC_2021-10.jsonl", "RS_2021-10.jsonl")]
)
def test_skip_bad_goes_on_past_broken_files_and_names_them_at_the_end(
    tmp_path: Path, bad: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    # a plain file with the name of a gzipped one
    paths = [
        path.rename(tmp_path / f"{path.name}.gz") if path.name in bad else path
        for path in write_months(tmp_path)
    ]
    assert run("ingest", *paths, "--out", tmp_path / "stopped", "--format", "reddit") == 2
    capsys.readouterr()

    command = ["ingest", *paths, "--format", "reddit", "--skip-bad"]
    assert run(*command, "--out", tmp_path / "threads") == 0
    messages = capsys.readouterr().err
    assert f"files that were skipped, because they cannot be read: {len(bad)}" in messages
    for name in bad:
        assert f"{name}.gz: damaged or truncated" in messages
    assert "ask/t3_s1" in answers_of(tmp_path / "threads")
    drops = read_manifest(tmp_path / "threads").drops
    assert drops["reddit"]["file that cannot be read"] == len(bad)


def test_two_files_of_comments_of_one_site_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".jsonl", ".jsonl.gz"):
        (tmp_path / f"ask_comments{suffix}").write_bytes(PACK[suffix](lines(COMMENT)))
    assert run("ingest", *tmp_path.glob("ask_*"), "--out", tmp_path / "threads") == 2
    assert "is also a dump of reddit" in capsys.readouterr().err


def test_threads_of_any_forum_are_read_as_documented(tmp_path: Path) -> None:
    (tmp_path / "tickets.jsonl").write_bytes(
        lines(
            THREAD,
            {"id": 8, "created": "2024-01-01"},
            {**THREAD, "id": 9, "responses": [{"id": 3}]},
        )
    )
    assert run("ingest", tmp_path / "tickets.jsonl", "--out", tmp_path / "threads") == 0

    first, second = read_threads(tmp_path / "threads")
    assert (first.thread_id, first.source, first.votes, first.tags) == (
        "tickets/7",
        "threads",
        3,
        ("x",),
    )
    assert first.created == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert [(r.body, r.votes, r.accepted) for r in first.responses] == [
        ("first", 5, True),
        ("second", -1, False),
    ]
    assert second.responses == ()
    assert read_manifest(tmp_path / "threads").drops["tickets"] == {
        "response without id, body, votes or date, or with an odd value": 1,
        "thread without id, text or date, or with an odd value": 1,
    }
    assert run("group", tmp_path / "threads", "--out", tmp_path / "groups") == 0


@pytest.mark.parametrize(
    "change",
    [{"votes": None}, {"votes": 2.9}, {"votes": 2**70}, {"body": "\ud800"}, {"created": 1e99}],
)
def test_odd_values_of_a_response_are_counted(change: Json) -> None:
    drops = Counter[str]()
    answers = [THREAD["responses"][0], {**THREAD["responses"][1], **change}]
    assert len(list(generic._posts({**THREAD, "responses": answers}, drops))) == 2
    assert drops == {"response without id, body, votes or date, or with an odd value": 1}


def test_a_long_line_is_not_kept_in_memory(tmp_path: Path) -> None:
    import resource

    (tmp_path / "x.zst").write_bytes(
        PACK[".zst"](b'{"a": 1}\n' + b"x" * (300 << 20) + b'\n{"a": 2}\n')
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [row["a"] for row in json_lines.read(tmp_path / "x.zst", Counter())] == [1, 2]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250 * 1024


def test_broken_lines_are_counted_up_to_a_share(tmp_path: Path) -> None:
    path, drops = tmp_path / "x.jsonl", Counter[str]()
    path.write_bytes(b'{"a": 1}\n' * 900 + b"{broken\n" * 9 + b"[1]\n" + b'{"a": 1}\n' * 100)
    assert len(list(json_lines.read(path, drops))) == 1000
    assert drops == {"line that is not a JSON object": 10}

    for content in (
        b'{"a": 1}\n' * 500 + b"{broken\n" * 11,
        b"{broken\n" * 11 + b'{"a": 1}\n' * 500,
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"11 of 511 lines are not JSON objects, more than 1%"):
            list(json_lines.read(path, Counter()))
    path.write_bytes(b"{broken\n" * 5000)
    with pytest.raises(DataError, match=r"x.jsonl:1000: 1000 of the first 1000 lines"):
        list(json_lines.read(path, Counter()))


def test_an_endless_line_is_skipped_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "LINE_LIMIT_BYTES", 1000)
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 100)
    path, drops = tmp_path / "x.jsonl", Counter[str]()
    path.write_bytes(
        b'{"a": 1}\n' + b'{"a": "' + b"x" * 5000 + b'"}\n' + b'{"a": 2}\n' + b"y" * 3000
    )
    assert [row["a"] for row in json_lines.read(path, drops)] == [1, 2]
    assert drops == {"line longer than 64 MiB": 2}


def test_several_frames_are_read_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "x.zst").write_bytes(PACK[".zst"](lines({"a": 1})) + PACK[".zst"](lines({"a": 2})))
    assert [row["a"] for row in json_lines.read(tmp_path / "x.zst", Counter())] == [1, 2]


@pytest.mark.parametrize("suffix", [".zst", ".jsonl.gz"])
def test_a_truncated_archive_gives_its_first_rows_and_then_an_error(
    tmp_path: Path, suffix: str
) -> None:
    rows = [{"a": i, "text": f"{i * 7919 % 1000003} {i}" * 20} for i in range(20_000)]
    content = PACK[suffix](lines(*rows))
    (tmp_path / f"x{suffix}").write_bytes(content[: len(content) // 2])
    numbers: list[object] = []
    with pytest.raises(DataError, match="damaged or truncated after"):
        numbers.extend(row["a"] for row in json_lines.read(tmp_path / f"x{suffix}", Counter()))
    assert 1000 < len(numbers) < 20_000
    assert numbers == list(range(len(numbers)))


def test_a_truncated_dump_leaves_the_folder_unfinished_and_other_sites_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(THREAD))
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress(lines(*[{**THREAD, "id": i} for i in range(9999)]), mtime=0)[:-20]
    )

    assert (
        run("ingest", tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", "--out", tmp_path / "threads")
        == 2
    )
    assert "b.jsonl.gz: damaged or truncated after" in capsys.readouterr().err
    assert (tmp_path / "threads" / "a.parquet").exists()
    assert not (tmp_path / "threads" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("x.jsonl", b'{"other": 1}\n', (), "its first line has other. Set --format"),
        ("x.jsonl", b"", (), "its first line has nothing"),
        ("x.txt", b"", (), "not a forum dump"),
        ("x y.jsonl", lines(THREAD), (), "does not give the name of a site"),
    ],
)
def test_a_file_of_unclear_format_or_site_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    words: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    assert run("ingest", tmp_path / name, *words, "--out", tmp_path / "threads") == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_the_network_gives_a_site_for_each_archive_of_posts(
    tmp_path: Path, dump: Callable[..., Path]
) -> None:
    folder = tmp_path / "network"
    (folder / "large").mkdir(parents=True)
    for name in (
        "beer.stackexchange.com.7z",
        "stackoverflow.com-Posts.7z",
        "stackoverflow.com-Votes.7z",
    ):
        dump(name=name).rename(folder / "large" / name)
    assert run("ingest", folder, "--out", tmp_path / "threads") == 0
    assert sorted(path.stem for path in (tmp_path / "threads").glob("*.parquet")) == [
        "beer.stackexchange.com",
        "stackoverflow.com",
    ]

    (tmp_path / "empty").mkdir()
    assert run("ingest", tmp_path / "empty", "--out", tmp_path / "none") == 2


def test_the_documented_line_is_a_thread() -> None:
    text = (generic.__doc__ or "").split("\n\n")[1]
    row = json.loads(" ".join(text.split()).replace("...", "words"))
    assert len(list(generic._posts(row, Counter()))) == 2


def test_threads_of_one_id_do_not_share_answers(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = [
        {**THREAD, "id": name, "title": title}
        for name, title in ((7, "bread"), (7, "cat"), (None, "tyre"), ("", "sky"))
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    drops = no_drops()
    posts = [
        row
        for batch in generic.read_posts(path, site="x", drops=drops)
        for row in batch.to_pylist()
    ]

    assert [post["title"] for post in posts if post["parent_id"] is None] == ["bread"]
    assert len(posts) == 3
    assert drops["x"] == {
        "thread with the id of an earlier thread": 1,
        "thread without id, text or date, or with an odd value": 2,
    }


def test_two_dates_of_a_subreddit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for year in ("2020", "2023"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "ask_submissions.jsonl").write_text(json.dumps(SUBMISSION) + "\n")
    files = [tmp_path / year / "ask_submissions.jsonl" for year in ("2020", "2023")]
    assert run("ingest", *files, "--out", tmp_path / "out") == 2
    assert "are not parts of one dump" in capsys.readouterr().err


def test_the_error_about_a_dump_without_threads_gives_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**THREAD, "id": None}) + "\n")
    assert run("ingest", path, "--format", "threads", "--out", tmp_path / "out") == 2
    assert (
        "contains no threads (thread without id, text or date, or with an odd value: 1)"
        in capsys.readouterr().err
    )

    path.write_bytes(lines(THREAD))
    assert run("ingest", path, "--format", "threads", "--out", tmp_path / "out") == 0


def test_real_months_have_the_threads_of_an_independent_count(
    real_data: Path, tmp_path: Path
) -> None:
    """The months are read again by a plain loop, which knows nothing of formats and joins."""
    folder = real_data / "reddit" / "monthly"
    if not folder.is_dir():
        pytest.skip(f"no months of Reddit in {folder}")
    assert run("ingest", folder, "--out", tmp_path / "threads") == 0
    mine = {
        thread.thread_id: len(thread.responses) for thread in read_threads(tmp_path / "threads")
    }

    gone = {"[deleted]", "[removed]", "[deleted by user]", "[ Removed by Reddit ]"}
    sites: dict[str, str] = {}
    answers: Counter[str] = Counter()
    for path in sorted(folder.glob("RS_*.zst")) + sorted(folder.glob("RC_*.zst")):
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                text = row.get("body", row.get("selftext", ""))
                if text.strip() in gone or row.get("title", "").strip() in gone or row["stickied"]:
                    continue
                if "link_id" not in row:
                    sites[f"t3_{row['id']}"] = row["subreddit"]
                elif row["parent_id"] == row["link_id"] and row["link_id"] in sites:
                    answers[row["link_id"]] += 1
    assert mine == {f"{site}/{name}": answers[name] for name, site in sites.items()}
