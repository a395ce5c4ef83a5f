"""Reading dumps: every reason to leave out a row, and every input that is refused."""

import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import py7zr
import pytest

from tests.conftest import ANSWER, QUESTION, TWO_ANSWERS, posts_xml, run
from worldpm.errors import DataError
from worldpm.forums import archives, stackexchange
from worldpm.forums.counts import no_drops
from worldpm.storage import parquet
from worldpm.storage.manifest import read_manifest

Dump = Callable[..., Path]


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    drops = no_drops()
    rows = [
        row
        for batch in stackexchange.read_posts(path, site="site", drops=drops)
        for row in batch.to_pylist()
    ]
    return rows, {reason: n for reason, n in drops["site"].items() if n}


def test_a_thread_has_the_content_of_its_rows(dump: Dump, tmp_path: Path) -> None:
    question = (
        '<row Id="1" PostTypeId="1" AcceptedAnswerId="3" CreationDate="2016-08-02T15:39:14.947"'
        ' Score="-1" OwnerUserId="8" Body="&lt;p&gt;What is'
        ' &lt;code&gt;x&lt;/code&gt;?&lt;/p&gt;&#xA;" Title="A &amp; B"'
        ' Tags="&lt;a-b&gt;&lt;c&gt;" />'
    )
    assert run("ingest", dump([question, *TWO_ANSWERS[1:]]), "--out", tmp_path / "threads") == 0

    (thread,) = parquet.read_rows(tmp_path / "threads" / "site.parquet")
    assert (thread["thread_id"], thread["source"], thread["site"]) == (
        "site/1",
        "stackexchange",
        "site",
    )
    assert (thread["title"], thread["body"], thread["tags"], thread["votes"]) == (
        "A & B",
        "What is `x`?",
        ["a-b", "c"],
        -1,
    )
    assert thread["created"].isoformat() == "2016-08-02T15:39:14.947000+00:00"
    assert (thread["author"], thread["url"], thread["licence"]) == (
        "8",
        None,  # "site" is not an address
        "CC BY-SA 3.0",
    )
    assert [
        (r["response_id"], r["body"], r["votes"], r["accepted"]) for r in thread["responses"]
    ] == [
        ("2", "A2", 5, False),
        ("3", "A3", -2, True),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            '<row Id="9" PostTypeId="5" Score="0" CreationDate="2020-01-01T00:00:00.000" />',
            "not a question or answer",
        ),
        (
            '<row PostTypeId="1" Score="0" CreationDate="2020-01-01T00:00:00.000" />',
            "row without Id",
        ),
        (
            '<row Id="9" PostTypeId="2" Score="0" CreationDate="2020-01-01T00:00:00.000" />',
            "answer without ParentId",
        ),
        (
            '<row Id="9" PostTypeId="1" Score="many" CreationDate="2020-01-01T00:00:00.000" />',
            "Score is not a number",
        ),
        (
            '<row Id="9" PostTypeId="1" CreationDate="2020-01-01T00:00:00.000" />',
            "Score is not a number",
        ),
        (
            '<row Id="9" PostTypeId="1" Score="0" CreationDate="2020-02-30T00:00:00.000" />',
            "CreationDate is not a date",
        ),
        (
            '<row Id="9" PostTypeId="1" Score="0" CreationDate="2020-02-03T25:00:00.000" />',
            "CreationDate is not a date",
        ),
        (
            '<row Id="9" PostTypeId="1" Score="0" CreationDate="yesterday" />',
            "CreationDate is not a date",
        ),
        (
            (
                '<row Id="9" PostTypeId="1" Score="0" CreationDate="2020-01-01T00:00:00.000"'
                ' ClosedDate="soon" />'
            ),
            "ClosedDate is not a date",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_for_one_counted_reason(
    dump: Dump, row: str, reason: str
) -> None:
    rows, drops = read(dump([*TWO_ANSWERS, row]))
    assert len(rows) == 3
    assert drops == {reason: 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ANSWER.format(id=9, parent=77, votes=1), "answer without its question"),
        (ANSWER.format(id=2, parent=1, votes=-9), "duplicate id"),
    ],
)
def test_a_row_that_fits_no_thread_is_left_out_for_one_counted_reason(
    dump: Dump, tmp_path: Path, row: str, reason: str
) -> None:
    assert run("ingest", dump([*TWO_ANSWERS, row]), "--out", tmp_path / "threads") == 0

    manifest = read_manifest(tmp_path / "threads")
    assert manifest.drops["site"] == {reason: 1}
    assert manifest.counts["site"] == {
        "threads": 1,
        "responses": 2,
        "threads_with_two_responses": 1,
        "responses_with_earlier_votes": 0,
    }

    (thread,) = parquet.read_rows(tmp_path / "threads" / "site.parquet")
    assert [r["votes"] for r in thread["responses"]] == [5, -2]


def test_a_closed_question_has_a_date_and_is_dropped_on_request(dump: Dump, tmp_path: Path) -> None:
    closed = QUESTION.format(id=1).replace(
        'Score="3"', 'Score="3" ClosedDate="2020-03-01T10:00:00.000"'
    )
    open_too = (
        QUESTION.format(id=4),
        ANSWER.format(id=5, parent=4, votes=5),
        ANSWER.format(id=6, parent=4, votes=1),
    )
    assert (
        run("ingest", dump([closed, *TWO_ANSWERS[1:], *open_too]), "--out", tmp_path / "threads")
        == 0
    )

    rows = {
        row["thread_id"]: row["closed"]
        for row in parquet.read_rows(tmp_path / "threads" / "site.parquet")
    }
    assert {name: str(date) for name, date in rows.items()} == {
        "site/1": "2020-03-01 10:00:00+00:00",
        "site/4": "None",
    }
    assert run("group", tmp_path / "threads", "--out", tmp_path / "all") == 0
    assert run("group", tmp_path / "threads", "--drop-closed", "--out", tmp_path / "open") == 0

    manifests = [read_manifest(tmp_path / name) for name in ("all", "open")]
    assert [
        manifest.drops["site"].get("thread closed by moderators") for manifest in manifests
    ] == [
        None,
        1,
    ]


def test_an_empty_body_and_an_unanswered_question_are_kept(dump: Dump, tmp_path: Path) -> None:
    empty = (
        '<row Id="2" PostTypeId="1" CreationDate="2020-01-01T00:00:00" Score="0" Title="t"'
        ' Body="" />'
    )
    assert run("ingest", dump([QUESTION.format(id=1), empty]), "--out", tmp_path / "threads") == 0
    assert [
        (t["body"], t["responses"])
        for t in parquet.read_rows(tmp_path / "threads" / "site.parquet")
    ] == [("Q1", []), ("", [])]


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("beer.stackexchange.com.7z", "beer.stackexchange.com"),
        ("stackoverflow.com-Posts.7z", "stackoverflow.com"),
        ("beer.stackexchange.com.2016-12.7z", "beer.stackexchange.com"),
        ("math.stackexchange.com/Posts.xml", "math.stackexchange.com"),
    ],
)
def test_the_site_comes_from_the_name(name: str, site: str) -> None:
    assert stackexchange.site_of(Path("/dumps") / name) == site


def test_both_tag_syntaxes_are_read(dump: Dump) -> None:
    rows, _ = read(
        dump(
            [
                QUESTION.format(id=1).replace("/>", 'Tags="|a|b-c|" />'),
                QUESTION.format(id=2).replace("/>", 'Tags="&lt;a&gt;" />'),
            ]
        )
    )
    assert [row["tags"] for row in rows] == [["a", "b-c"], ["a"]]


def test_a_plain_posts_xml_gives_the_rows_of_its_archive(dump: Dump, tmp_path: Path) -> None:
    plain = tmp_path / "Posts.xml"
    plain.write_bytes(posts_xml(TWO_ANSWERS))
    assert read(plain) == read(dump())


def test_a_multibyte_character_on_a_block_border_is_read(tmp_path: Path) -> None:
    plain = tmp_path / "Posts.xml"
    title = "é" * 900_000
    plain.write_bytes(
        posts_xml(
            [
                QUESTION.format(id=1).replace("T1", title),
                QUESTION.format(id=2).replace("T2", "x" + title),
            ]
        )
    )
    rows, _ = read(plain)

    assert [len(row["title"]) for row in rows] == [900_000, 900_001]


def xml(text: str) -> bytes:
    return text.encode()


def test_a_doctype_that_defines_nothing_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "Posts.xml"
    path.write_bytes(posts_xml(TWO_ANSWERS))
    plain = read(path)
    path.write_bytes(
        posts_xml(TWO_ANSWERS).replace(
            b"<posts>", b"<!DOCTYPE posts SYSTEM 'posts.dtd'>\r\n<posts>"
        )
    )
    assert read(path) == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (posts_xml(TWO_ANSWERS)[:-60], "stops before </posts>, after 366 bytes"),
        (posts_xml(TWO_ANSWERS).removesuffix(b"</posts>"), "stops before </posts>"),
        (
            posts_xml([*TWO_ANSWERS, '<row Id="9" Title="&nope;" />']),
            r"Posts.xml:6: not well-formed XML",
        ),
        (xml('<!DOCTYPE p [<!ENTITY a "b">]><posts><row Id="1"/></posts>'), "DOCTYPE"),
        (xml("<!DOCTYPE posts SYSTEM 'a'><!DOCTYPE posts SYSTEM 'a'><posts></posts>"), "DOCTYPE"),
        (
            xml(
                '<?xml version="1.0"?>'
                + " " * 5000
                + '<!DOCTYPE p [<!ENTITY a "b">]><posts></posts>'
            ),
            "DOCTYPE",
        ),
        (posts_xml(TWO_ANSWERS).replace(b"A2", b"A\xff"), r"not UTF-8 at byte offset 278"),
        (posts_xml(TWO_ANSWERS) + b"\xe2\x82", "not UTF-8 at byte offset"),
        (xml("<users><row Id='1'/></users>"), r"begins with \"<users>.*, not <posts>"),
        (b"", "begins with 'nothing', not <posts>"),
        (b"PK\x03\x04 hello, I am a zip", ", not <posts>"),
    ],
)
def test_xml_that_is_not_a_dump_is_refused_with_its_path_and_position(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "Posts.xml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def damaged(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-20])
    return path


def renamed_entry(path: Path, name: str) -> Path:
    """An archive whose second entry has this name. The header stores names as UTF-16."""
    with py7zr.SevenZipFile(path, "w", filters=[{"id": py7zr.FILTER_LZMA2}]) as archive:
        archive.set_encoded_header_mode(False)
        archive.writestr(posts_xml(TWO_ANSWERS), "Posts.xml")
        archive.writestr(b"x", "a" * len(name))
    content = path.read_bytes().replace(
        ("a" * len(name)).encode("utf-16-le"), name.encode("utf-16-le")
    )
    start = int.from_bytes(content[12:20], "little") + 32
    header = content[start : start + int.from_bytes(content[20:28], "little")]
    import zlib

    content = content[:28] + zlib.crc32(header).to_bytes(4, "little") + content[32:]
    path.write_bytes(content[:8] + zlib.crc32(content[12:32]).to_bytes(4, "little") + content[12:])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda dump: dump(member="Users.xml"), r"has no Posts.xml \(it contains Users.xml\)"),
        (
            lambda dump: cut(
                dump([QUESTION.format(id=i % 9).replace("Q", f"{i * i}") for i in range(500)])
            ),
            "damaged or truncated",
        ),
        (
            lambda dump: damaged(
                dump([QUESTION.format(id=i % 9).replace("Q", f"{i * i}") for i in range(500)])
            ),
            "damaged or truncated",
        ),
        (lambda dump: dump(b" " * 50_000_000), "more than 100:1"),
        (lambda dump: renamed_entry(dump(), "../../evil"), "outside its folder"),
        (lambda dump: renamed_entry(dump(), "/etc/evil"), "outside its folder"),
        (lambda dump: renamed_entry(dump(), "C:\\evil"), "outside its folder"),
    ],
)
def test_an_archive_that_is_damaged_or_could_do_harm_is_refused(
    dump: Dump, make: Callable[[Dump], Path], message: str
) -> None:
    path = make(dump)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_an_archive_of_too_many_entries_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.7z"
    with py7zr.SevenZipFile(path, "w") as archive:
        for number in range(1001):
            archive.writestr(b"x", f"{number}.xml")
    with pytest.raises(DataError, match="lists 1001 entries"):
        read(path)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"not an archive at all", lzma.compress(b"hello")):
        (tmp_path / "site.7z").write_bytes(content)
        with pytest.raises(DataError, match="damaged or truncated"):
            read(tmp_path / "site.7z")


def test_an_archive_that_unpacks_to_more_than_it_announces_is_stopped(dump: Dump) -> None:
    class Sink:
        def write(self, block: bytes) -> int:
            return len(block)

        def flush(self) -> None: ...

    end = archives._PipeEnd(Path("x.7z"), Sink(), 10)  # type: ignore[arg-type]
    assert end.write(b"12345678") == 8
    with pytest.raises(DataError, match="unpacks to more than the 10 bytes"):
        end.write(b"123")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (lambda tmp, dump: [tmp / "nowhere.7z"], "no such file"),
        (lambda tmp, dump: [tmp], "a folder without a forum dump"),
        (lambda tmp, dump: [dump(name="site.zip")], "not a forum dump"),
        (lambda tmp, dump: [dump(), dump(name="site.2016-12.7z")], "is also a dump of site"),
        (lambda tmp, dump: [], "no source given"),
    ],
)
def test_wrong_sources_are_named(
    tmp_path: Path,
    dump: Dump,
    capsys: pytest.CaptureFixture[str],
    words: Callable[[Path, Dump], Sequence[object]],
    message: str,
) -> None:
    assert run("ingest", *words(tmp_path, dump), "--out", tmp_path / "threads") == 2

    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "threads" / "manifest.json").exists()
