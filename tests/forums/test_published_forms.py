"""Forums in the forms in which they are published: a file of each lies in `published/`."""

import gzip
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import TWO_ANSWERS, posts_xml, run
from tests.forums.test_json_forums import read_threads
from worldpm.records import Thread
from worldpm.storage.manifest import Manifest, read_manifest

PUBLISHED = Path(__file__).parent / "published"


def ingest(tmp_path: Path, *sources: Path, options: list[str] | None = None) -> list[Thread]:
    command = ["ingest", *sources, "--out", tmp_path / "threads", *(options or [])]
    assert run(*command) == 0
    return read_threads(tmp_path / "threads")


def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(tmp_path / "threads")


def test_a_topic_of_discourse_becomes_a_thread_of_the_replies_to_its_first_post(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "forum.example.org"
    folder.mkdir()
    shutil.copy(PUBLISHED / "discourse-topic.json", folder / "55.json")
    (thread,) = ingest(tmp_path, folder)

    assert (thread.thread_id, thread.source, thread.title, thread.tags) == (
        "forum.example.org/t55",
        "discourse",
        "Rotate logs",
        ("linux", "logs"),
    )
    assert (thread.body, thread.votes, thread.author) == ("How do I rotate logs?", 4, "ann")
    assert thread.url == "https://forum.example.org/t/rotate-logs/55"
    assert thread.closed == datetime(2023, 6, 1, 10, tzinfo=UTC)
    assert [(a.response_id, a.body, a.votes, a.accepted) for a in thread.responses] == [
        ("102", "Use `logrotate`.", 9, True),
        ("103", "A cron job with `mv`.", 0, False),
    ]
    assert manifest(tmp_path).drops == {
        "forum.example.org": {
            "deleted or removed": 1,
            "notice of the forum": 1,
            "post that the file of its topic lacks": 1,
            "reply to an answer": 1,
            "written by a bot": 1,
        }
    }


def test_topics_of_discourse_are_also_read_as_lines(tmp_path: Path) -> None:
    topic = (PUBLISHED / "discourse-topic.json").read_text().replace("\n", "")
    (tmp_path / "topics.jsonl").write_text(topic.replace('"user_deleted":true', '"hidden":true'))
    (thread,) = ingest(tmp_path, tmp_path / "topics.jsonl")
    # "topics" is not an address, so no address is invented
    assert (thread.site, thread.url, len(thread.responses)) == ("topics", None, 2)


def test_a_file_of_json_that_is_not_a_topic_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, message in (("{}", "not a topic of Discourse"), ("{", "not JSON")):
        (tmp_path / "x.json").write_text(content)
        assert run("ingest", tmp_path / "x.json", "--out", tmp_path / "threads") == 2
        assert message in capsys.readouterr().err


def test_items_rows_and_hits_of_hacker_news_are_joined(tmp_path: Path) -> None:
    thread, link = ingest(tmp_path, PUBLISHED / "hackernews.jsonl")
    assert (thread.thread_id, thread.title, thread.votes) == (
        "news.ycombinator.com/121003",
        'Ask HN: The "Arc" Effect',
        25,
    )
    assert thread.body == "*or* HN: the Next Iteration\n\nWhy?"
    assert [(answer.body, answer.votes, answer.author) for answer in thread.responses] == [
        ("Because.\n\nSee <https://example.org>", 3, "a"),
        ("No.", 7, "b"),
        ("Perhaps.", 2, "c"),
    ]
    assert link.body == "https://example.org/a?b=1&c=2"
    assert manifest(tmp_path).drops == {
        "news.ycombinator.com": {
            "answer without its question": 1,  # it answers a comment
            "comment without votes": 1,
            "deleted or removed": 2,
            "not a story or comment": 1,
        }
    }


def test_communities_of_lemmy_are_sites_whatever_the_version_of_the_api(tmp_path: Path) -> None:
    (thread,) = ingest(tmp_path, PUBLISHED / "lemmy.jsonl")
    assert (thread.site, thread.thread_id, thread.tags) == (
        "linux@lemmy.example",
        "linux@lemmy.example/lemmy.example/post/5716352",
        ("linux@lemmy.example", "nsfw"),
    )
    assert (thread.url, thread.votes) == ("https://lemmy.example/post/5716352", 13)
    assert [(answer.body, answer.votes, answer.created) for answer in thread.responses] == [
        ("Use `logrotate`.", 5, datetime(2024, 3, 23, 11, 0, 0, 101437, tzinfo=UTC)),
        ("Use cron.", -2, datetime(2024, 3, 23, 12, tzinfo=UTC)),
    ]
    assert manifest(tmp_path).drops["linux@lemmy.example"] == {
        "put up by moderators": 1,
        "removed by moderators": 1,
        "reply to a comment": 1,
        "written by a bot": 1,
        "written by moderators in their office": 1,
    }


def test_posts_of_codidact_are_read_from_both_forms_of_xml(tmp_path: Path) -> None:
    (thread,) = ingest(tmp_path, PUBLISHED / "software.codidact.com.xml")
    assert (thread.thread_id, thread.body, thread.votes, thread.tags) == (
        "software.codidact.com/280001",
        "How do I *rotate* logs?",
        11,
        ("linux", "logs"),
    )
    assert thread.url == "https://software.codidact.com/posts/280001"
    assert thread.closed == datetime(2021, 3, 1, tzinfo=UTC)
    assert [(answer.body, answer.votes, answer.licence) for answer in thread.responses] == [
        ("Use logrotate.", 10, "CC BY-SA 3.0"),
        ("By hand.", -2, None),
    ]
    assert manifest(tmp_path).drops["software.codidact.com"] == {
        "deleted or removed": 1,
        "not a question or answer": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<resultset><row><id>1</id>", "not well-formed XML"),
        ("<!DOCTYPE r [<!ENTITY a 'b'>]><resultset/>", "DOCTYPE"),
        ("<posts></posts>", "not a dump's XML"),
    ],
)
def test_bad_xml_of_codidact_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "x.xml").write_text(content)
    assert run("ingest", tmp_path / "x.xml", "--out", tmp_path / "threads") == 2
    assert message in capsys.readouterr().err


def test_results_of_the_data_explorer_are_read(tmp_path: Path) -> None:
    options = ["--site", "stackoverflow.com"]
    (thread,) = ingest(tmp_path, PUBLISHED / "QueryResults.csv", options=options)
    assert (thread.thread_id, thread.votes, thread.tags, thread.licence) == (
        "stackoverflow.com/4",
        794,
        ("c#", "floating-point"),
        "CC BY-SA 4.0",
    )
    assert thread.body == 'I want to use a `Track-Bar` to change a "Form"\'s opacity.\n\nHow?'
    assert (thread.url, thread.closed) == (
        "https://stackoverflow.com/q/4",
        datetime(2012, 10, 31, 16, 42, 47, tzinfo=UTC),
    )
    assert [(a.body, a.votes, a.accepted, a.author) for a in thread.responses] == [
        ("An explicit cast.", 526, True, "9"),
        ("No way.", -1, False, "kit"),
    ]
    assert manifest(tmp_path).drops["stackoverflow.com"] == {"not a question or answer": 1}


def test_questions_and_answers_of_stacksample_are_joined(tmp_path: Path) -> None:
    folder = tmp_path / "stacksample"
    folder.mkdir()
    for name in ("Questions.csv", "Answers.csv"):
        shutil.copy(PUBLISHED / name, folder)
    # the third table of the set, and another file
    (folder / "Tags.csv").write_text("Id,Tag\n80,flex\n")
    (folder / "dataset-metadata.json").write_text('{"title": "StackSample"}')
    (thread,) = ingest(tmp_path, folder)
    assert (thread.thread_id, thread.title, thread.url, thread.licence) == (
        "stacksample/80",
        "SQLStatement.execute() - caf\xe9 multiple queries",
        None,
        "CC BY-SA 2.5",
    )
    assert [(answer.body, answer.votes, answer.author) for answer in thread.responses] == [
        ("I wound up using this.", 12, "26"),
        ("The API\nmakes this possible.", 4, None),
    ]


def test_columns_of_bigquery_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "posts.csv").write_text(
        "id,title,body,accepted_answer_id,creation_date,owner_user_id,parent_id,post_type_id,score,"
        "tags\n"
        "1,T,<p>Q</p>,2,2022-08-02 16:16:31.810000 UTC,5,,1,3,a|b\n"
        "2,,<p>A</p>,,2022-08-03 16:16:31 UTC,6,1,2,4,\n"
    )
    (thread,) = ingest(tmp_path, tmp_path / "posts.csv")
    assert (thread.tags, thread.created) == (
        ("a", "b"),
        datetime(2022, 8, 2, 16, 16, 31, 810000, tzinfo=UTC),
    )
    assert [(answer.body, answer.accepted) for answer in thread.responses] == [("A", True)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "it has no column Id, CreationDate, Score, Body"),
        ("", "not CSV"),
        ("Id,CreationDate,Score,Body\n1,2\n", "not CSV"),
    ],
)
def test_a_table_that_has_no_posts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "x.csv").write_text(content)
    assert run("ingest", tmp_path / "x.csv", "--out", tmp_path / "threads") == 2
    assert message in capsys.readouterr().err


def test_gzipped_xml_of_stack_exchange_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "Posts.xml.gz").write_bytes(gzip.compress(posts_xml(TWO_ANSWERS)))
    (thread,) = ingest(tmp_path, folder)
    assert (thread.site, len(thread.responses)) == ("site", 2)


def test_truncated_gzip_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Posts.xml.gz").write_bytes(gzip.compress(posts_xml(TWO_ANSWERS))[:-20])
    assert run("ingest", tmp_path / "Posts.xml.gz", "--out", tmp_path / "threads") == 2
    assert "Posts.xml.gz: damaged or truncated" in capsys.readouterr().err


def test_html_in_lines_of_threads_becomes_markdown(tmp_path: Path) -> None:
    (tmp_path / "desk.jsonl").write_text(
        '{"id": 1, "title": "T", "body_html": "<p>Is <b>this</b> it?</p>", "created": 1,'
        ' "responses": [{"id": 2, "body_html": "<ul><li>yes</li></ul>", "votes": 1,'
        ' "created": 2}]}\n'
    )
    (thread,) = ingest(tmp_path, tmp_path / "desk.jsonl")
    assert (thread.body, thread.responses[0].body) == ("Is **this** it?", "- yes")
