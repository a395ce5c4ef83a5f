"""Style features of a response: counts that need no understanding of the text.

Source: Arena's markdown counts, https://github.com/lmarena/arena-hard-auto `add_markdown_info.py`:
code blocks are stripped before headers, lists and bold are counted.
"""

import re
from typing import NamedTuple

# A fence may be longer than three signs, and the closing fence at least as long as the opening one.
# A block that is never closed runs to the end of the text, as Markdown renders it.
CODE_BLOCK = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?(?:^\1[`~]*\s*$|\Z)", re.MULTILINE | re.DOTALL)
HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
LIST_ITEM = re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
LINK = re.compile(r"\]\([^)\s]+[^)]*\)|<https?://[^>\s]+>")


class Style(NamedTuple):
    """Counts of a response's style features."""

    characters: int
    """Length of the text, code included."""
    headers: int
    """Lines that open with one to six `#`."""
    lists: int
    """Items."""
    bold: int
    """Spans."""
    code: int
    """Fenced blocks."""
    links: int
    """Markdown links, images included, and addresses in angle brackets."""


def style_of(text: str) -> Style:
    """The style counts of a Markdown text; all 0 for an empty one."""
    # A `#` or `-` inside code is not a header or list item, so code goes first.
    prose, blocks = CODE_BLOCK.subn("", text)

    return Style(
        characters=len(text),
        headers=len(HEADER.findall(prose)),
        lists=len(LIST_ITEM.findall(prose)),
        bold=len(BOLD.findall(prose)),
        code=blocks,
        links=len(LINK.findall(prose)),
    )
