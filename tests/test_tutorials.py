"""The tutorials run as they are written, and give the output that they show."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(
    r"(?P<before>(?:Save this as `(?P<file>[\w.]+)`)?[^`\n]*)\n\n?```(?P<kind>bash|python|text)\n"
    r"(?P<code>.*?)```",
    re.DOTALL,
)
NEEDS = re.compile(r"# needs (\w+)")
"""A block's first comment, with a package that not every environment has."""
WAITS = "# waits for you"
"""Marks a command that ends only when its reader ends it."""


class Block(NamedTuple):
    """A block of code, or the output of the block before it."""

    kind: str
    code: str
    file: str | None
    """Name of the file to save; None for code to run."""


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield Block(match["kind"], match["code"], match["file"])


def form(output: str) -> list[str]:
    """The words of an output without its numbers, which differ between processors."""
    return re.sub(r"[-+]?\d[\d.,]*", "#", output).split()


def contains(words: list[str], part: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))


def run(block: Block, folder: Path) -> str:
    """Run a block, and return everything that it prints."""
    program = Path(sys.executable)
    words = {**os.environ, "PATH": os.pathsep.join([str(program.parent), os.environ["PATH"]])}
    command = ["bash", "-ec", block.code]
    if block.kind == "python":
        script = folder / "block.py"
        script.write_text(block.code, encoding="utf-8")
        command = [str(program), script.name]
    done = subprocess.run(
        command,
        cwd=folder,
        env=words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{block.code}\n{done.stdout}"
    return done.stdout


@pytest.mark.proof
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_written_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    output, outputs = "", 0
    for block in blocks(page):
        needed = NEEDS.search(block.code)
        if WAITS in block.code:
            continue
        if needed is not None and find_spec(needed[1]) is None:
            # the output that is shown next cannot be checked either
            output = ""
        elif block.file is not None:
            (tmp_path / block.file).write_text(block.code, encoding="utf-8")
        elif block.kind != "text":
            output = run(block, tmp_path)
        elif output:
            assert contains(form(output), form(block.code)), f"{block.code}\n---\n{output}"
            outputs += 1
    assert outputs


def test_every_tutorial_is_in_the_navigation() -> None:
    navigation = (TUTORIALS[0].parents[2] / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"tutorials/{page.name}" in navigation for page in TUTORIALS)
