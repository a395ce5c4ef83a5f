"""Options of `worldpm ingest` on small dumps of Stack Exchange: comments, names of sites, newer
dumps of the same site, files that cannot be read."""

from pathlib import Path

import py7zr
import pytest

from tests.conftest import ANSWER, QUESTION, posts_xml, run
from tests.forums.test_json_forums import read_threads
from worldpm.records import DatedVotes
from worldpm.storage.manifest import read_manifest

COMMENT = (
    '<row Id="{id}" PostId="{post}" Score="2" Text="{text}" CreationDate="{date}T00:00:00.000"'
    ' UserId="8" />'
)


def write_dump(folder: Path, rows: list[str], comments: list[str] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "Posts.xml").write_bytes(posts_xml(rows))
    if comments is not None:
        xml = posts_xml(comments).replace(b"posts>", b"comments>")
        (folder / "Comments.xml").write_bytes(xml)
    return folder / "Posts.xml"


def question(number: int) -> str:
    return QUESTION.format(id=number)


def answer(number: int, *, votes: int, parent: int = 1) -> str:
    return ANSWER.format(id=number, parent=parent, votes=votes)


def test_comments_on_questions_are_read_and_those_on_answers_counted(tmp_path: Path) -> None:
    comments = [
        COMMENT.format(id=5, post=1, text="Which &lt;one&gt;? `x`", date="2000-01-02"),
        COMMENT.format(id=6, post=2, text="Great answer!", date="2000-01-03"),
        COMMENT.format(id=7, post=1, text="", date="2000-01-03"),
    ]
    dump = write_dump(tmp_path / "site", [question(1), answer(2, votes=3)], comments)
    assert run("ingest", dump, "--comments", "--out", tmp_path / "threads") == 0

    (thread,) = read_threads(tmp_path / "threads")
    assert [(c.comment_id, c.body, c.votes, c.author) for c in thread.comments] == [
        ("comment-5", "Which <one>? `x`", 2, "8")
    ]
    assert [a.response_id for a in thread.responses] == ["2"]
    assert read_manifest(tmp_path / "threads").drops["site"] == {
        "comment on an answer": 1,
        "comment without text": 1,
    }


@pytest.mark.parametrize("beside", [False, True])
def test_comments_lie_in_the_archive_or_in_one_beside_it(tmp_path: Path, beside: bool) -> None:
    dump = write_dump(
        tmp_path / "plain",
        [question(1), answer(2, votes=3)],
        [COMMENT.format(id=5, post=1, text="Which?", date="2000-01-02")],
    )
    archive = tmp_path / ("site-Posts.7z" if beside else "site.7z")
    with py7zr.SevenZipFile(archive, "w") as file:
        file.write(dump, "Posts.xml")
        if not beside:
            file.write(dump.with_name("Comments.xml"), "Comments.xml")
    if beside:
        with py7zr.SevenZipFile(tmp_path / "site-Comments.7z", "w") as file:
            file.write(dump.with_name("Comments.xml"), "Comments.xml")

    assert run("ingest", archive, "--comments", "--out", tmp_path / "threads") == 0
    (thread,) = read_threads(tmp_path / "threads")
    assert [comment.body for comment in thread.comments] == ["Which?"]


def test_without_a_file_of_comments_the_option_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = write_dump(tmp_path / "site", [question(1), answer(2, votes=3)])
    assert run("ingest", dump, "--comments", "--out", tmp_path / "threads") == 2
    assert "--comments: no Comments.xml in it or beside it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("site", "url"),
    [
        ("beer.stackexchange.com", "https://beer.stackexchange.com/q/1"),
        ("pt.stackoverflow.com", "https://pt.stackoverflow.com/q/1"),
        ("mathoverflow.net", "https://mathoverflow.net/q/1"),
        ("cr", None),
        ("stackexchange.com.evil.org", None),
    ],
)
def test_the_name_of_a_site_is_given_and_an_address_is_never_invented(
    tmp_path: Path, site: str, url: str | None
) -> None:
    dump = write_dump(tmp_path / "cr", [question(1), answer(2, votes=3)])
    assert run("ingest", dump, "--site", site, "--out", tmp_path / "threads") == 0
    (thread,) = read_threads(tmp_path / "threads")
    assert (thread.site, thread.thread_id, thread.url) == (site, f"{site}/1", url)


def test_one_name_for_two_sites_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dumps = [write_dump(tmp_path / name, [question(1)]) for name in ("a", "b")]
    assert run("ingest", *dumps, "--site", "c", "--out", tmp_path / "threads") == 2
    assert "is also a dump of c" in capsys.readouterr().err
    assert run("ingest", dumps[0], "--site", "a/b", "--out", tmp_path / "threads") == 2
    assert "--site 'a/b'" in capsys.readouterr().err


def update(tmp_path: Path, rows: list[str], older: str, out: str) -> None:
    dump = write_dump(tmp_path / out / "site", rows)
    threads = tmp_path / f"threads-{out}"
    assert run("ingest", dump, "--update", tmp_path / older, "--out", threads) == 0


def test_a_newer_dump_adds_answers_and_takes_its_votes_and_keeps_the_older_ones_with_their_date(
    tmp_path: Path,
) -> None:
    first = write_dump(
        tmp_path / "first" / "site", [question(1), answer(2, votes=3), answer(3, votes=1)]
    )
    assert run("ingest", first, "--out", tmp_path / "threads-first") == 0
    (before,) = read_threads(tmp_path / "threads-first")

    newer = [question(1), answer(2, votes=7), answer(4, votes=2), question(9)]
    update(tmp_path, newer, "threads-first", "second")
    thread, added = read_threads(tmp_path / "threads-second")

    date = max(answer.created for answer in before.responses)
    assert [(a.response_id, a.votes, a.earlier_votes) for a in thread.responses] == [
        ("2", 7, (DatedVotes(3, date),)),
        ("3", 1, (DatedVotes(1, date),)),  # the newer dump lacks it
        ("4", 2, ()),
    ]
    assert (added.thread_id, thread.body) == ("site/9", before.body)
    manifest = read_manifest(tmp_path / "threads-second")
    assert manifest.drops["site"] == {}
    assert manifest.counts["site"]["responses_with_earlier_votes"] == 2

    update(tmp_path, [question(1), answer(2, votes=8)], "threads-second", "third")
    thread, _ = read_threads(tmp_path / "threads-third")
    assert [votes.votes for votes in thread.responses[0].earlier_votes] == [3, 7]
    assert [a.response_id for a in thread.responses] == ["2", "3", "4"]


def test_sites_that_no_source_updates_are_carried_over(tmp_path: Path) -> None:
    dumps = [write_dump(tmp_path / name, [question(1), answer(2, votes=3)]) for name in ("a", "b")]
    assert run("ingest", *dumps, "--out", tmp_path / "older") == 0
    newer = write_dump(tmp_path / "newer" / "a", [question(1), answer(2, votes=4)])
    assert run("ingest", newer, "--update", tmp_path / "older", "--out", tmp_path / "out") == 0

    votes = {thread.site: thread.responses[0].votes for thread in read_threads(tmp_path / "out")}
    assert votes == {"a": 4, "b": 3}
    older, out = (tmp_path / name / "b.parquet" for name in ("older", "out"))
    assert older.read_bytes() == out.read_bytes()


def test_a_newer_dump_that_cannot_be_read_leaves_the_older_threads_as_they_are(
    tmp_path: Path,
) -> None:
    first = write_dump(tmp_path / "first" / "site", [question(1), answer(2, votes=3)])
    assert run("ingest", first, "--out", tmp_path / "older") == 0
    newer = write_dump(tmp_path / "newer" / "site", [question(1), answer(2, votes=4)])
    newer.write_bytes(newer.read_bytes()[:-20])

    command = ["ingest", newer, "--update", tmp_path / "older", "--skip-bad"]
    assert run(*command, "--out", tmp_path / "out") == 0
    older, out = (tmp_path / name / "site.parquet" for name in ("older", "out"))
    assert older.read_bytes() == out.read_bytes()
    assert read_manifest(tmp_path / "out").drops["site"] == {"file that cannot be read": 1}


def test_skip_bad_skips_a_broken_archive_before_and_while_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_dump(tmp_path / "good", [question(1), answer(2, votes=3)])
    truncated = write_dump(tmp_path / "truncated", [question(1), answer(2, votes=3)])
    truncated.write_bytes(truncated.read_bytes()[:-20])
    (tmp_path / "broken.7z").write_bytes(b"7z but not really")
    sources = [tmp_path / "broken.7z", truncated, good]

    assert run("ingest", *sources, "--out", tmp_path / "stopped") == 2
    capsys.readouterr()
    assert run("ingest", *sources, "--skip-bad", "--out", tmp_path / "threads") == 0
    assert [thread.site for thread in read_threads(tmp_path / "threads")] == ["good"]
    messages = capsys.readouterr().err
    assert "files that were skipped, because they cannot be read: 2" in messages
    assert "broken.7z: the archive is damaged" in messages
    assert "truncated: the XML stops" in messages
    drops = read_manifest(tmp_path / "threads").drops
    assert drops["truncated"] == drops["broken.7z"] == {"file that cannot be read": 1}

    assert run("ingest", truncated, "--skip-bad", "--out", tmp_path / "nothing") == 2
    assert "contains no threads (file that cannot be read: 1)" in capsys.readouterr().err


def test_a_row_over_the_limit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldpm.forums.xml_rows.ROW_LIMIT_BYTES", 1 << 20)
    long = question(1).replace('Body="', f'Body="{"x" * (3 << 20)}')
    dump = write_dump(tmp_path / "site", [long, answer(2, votes=3)])
    assert run("ingest", dump, "--out", tmp_path / "threads") == 2
    assert "a row is longer than 1 MiB" in capsys.readouterr().err


def test_the_date_of_older_votes_is_that_of_the_last_post(tmp_path: Path) -> None:
    late = answer(3, votes=1).replace("2020", "2021")
    first = write_dump(tmp_path / "first" / "site", [question(1), answer(2, votes=3), late])
    assert run("ingest", first, "--out", tmp_path / "threads-first") == 0
    (thread,) = read_threads(tmp_path / "threads-first")
    last = max(answer.created for answer in thread.responses)

    update(tmp_path, [question(1), answer(2, votes=5)], "threads-first", "second")
    (thread,) = read_threads(tmp_path / "threads-second")
    assert thread.responses[0].earlier_votes == (DatedVotes(3, last),)
    assert last.year == 2021
