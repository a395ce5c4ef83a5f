"""Sentences that people read avoid patterns of hard English: see CONTRIBUTING.md.

Read are pages, docstrings, comments, messages and option texts. A pattern is a rule of thumb: it
finds habits, and a sentence without one may still be hard.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PATTERNS = {
    "a clause with 'what' as the subject": (
        r"(?:^|[.:;]\s+)What [^.?]*?"
        r"\b(?:is|are|was|were|has|have|may|can|must|goes|comes|stays)\b[^?]*$"
    ),
    "'tells' or 'says' for report, show or state": r"\b(?:told|tells|says|said)\b",
    "'stands' for is": r"\bstands?\b(?! out)|\bstood\b",
    "'is no' for is not a": r"\b(?:is|are|was|were|be) no (?!longer\b|more\b|less\b)",
    "'of which', 'by which', 'to whom'": r"\b(?:of|by|to) (?:which|whom)\b",
    "'so many' for this number of": r"\b(?:so|that) many\b(?! (?:that|as))",
    "'as ... has it'": r"\bas (?:\S+ ){1,3}(?:has|have) (?:it|them)\b",
    "'anew' for again": r"\banew\b",
    "'who' for a program, row or request": (
        r"\b(?:client|server|model|process|program|row|request|judge|reader|engine|run)s? who\b"
    ),
    "'for then', 'and so it' as a chain": r"\bfor then\b",
    "a picture": r"\b(?:doorman|askers?|strangers?)\b",
}
SUFFIXES = {".py", ".md", ".html", ".css", ".js", ".sh", ".yaml", ".yml", ".toml", ".cff"}
NAMES = {"found", "told", "one", "own", "kept", "place", "wanted", "seen", "words"}
"""Names of variables that say nothing about their content."""


class Text(NamedTuple):
    """A sentence or more, and where it is."""

    file: str
    line: int
    text: str


@cache
def files() -> tuple[Path, ...]:
    """All files of the repository that git would keep."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [REPOSITORY / name for name in names.stdout.splitlines()]
    return tuple(path for path in paths if path.is_file() and path != Path(__file__).resolve())


def texts(path: Path) -> Iterator[Text]:
    """What a person reads in a file."""
    if path.suffix not in SUFFIXES:
        return
    content = path.read_text(encoding="utf-8")
    parts = python_texts(content) if path.suffix == ".py" else enumerate(content.splitlines(), 1)
    name = str(path.relative_to(REPOSITORY))
    yield from (Text(name, line, text) for line, text in parts)


def python_texts(content: str) -> Iterator[tuple[int, str]]:
    """Comments, and strings of more than one word; parts of one message are joined."""
    comment: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            first = first if comment else token.start[0]
            comment.append(token.string.lstrip("# "))
        elif token.type != tokenize.NL and comment:
            yield first, " ".join(comment)
            comment = []

    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, re.sub(r"\s+", " ", node.value).strip()


@cache
def all_texts() -> tuple[Text, ...]:
    """Of every file."""
    return tuple(text for path in files() for text in texts(path))


@pytest.mark.parametrize("habit", PATTERNS)
def test_no_sentence_has_a_habit_of_hard_english(habit: str) -> None:
    pattern = re.compile(PATTERNS[habit])
    hits = [
        f"{text.file}:{text.line}: ...{text.text[max(0, match.start() - 40) : match.end() + 40]}..."
        for text in all_texts()
        if (match := pattern.search(text.text))
    ]
    assert hits == []


def test_every_pattern_finds_its_habit() -> None:
    examples = {
        "a clause with 'what' as the subject": "What was dropped, by site, is shown.",
        "'tells' or 'says' for report, show or state": "the page says so",
        "'stands' for is": "It stands in the row.",
        "'is no' for is not a": "That is no error.",
        "'of which', 'by which', 'to whom'": "rows, of which two are bad",
        "'so many' for this number of": "after so many steps",
        "'as ... has it'": "as the page has it",
        "'anew' for again": "nothing is made anew",
        "'who' for a program, row or request": "a client who left",
        "'for then', 'and so it' as a chain": "0 where it is one, for then a second is no help",
        "a picture": "the asker's word",
    }
    assert examples.keys() == PATTERNS.keys()
    assert all(re.search(PATTERNS[habit], example) for habit, example in examples.items())


def test_no_variable_has_a_name_without_content() -> None:
    hits = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {name_of(node)}"
        for path in files()
        if path.suffix == ".py" and path.is_relative_to(REPOSITORY / "src")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name | ast.arg) and name_of(node) in NAMES
    ]
    assert hits == []


def name_of(node: ast.Name | ast.arg) -> str | None:
    """The name that a node gives to a variable or argument."""
    if isinstance(node, ast.arg):
        return node.arg
    return node.id if isinstance(node.ctx, ast.Store) else None
