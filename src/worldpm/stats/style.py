"""Style features of a response: what can be seen of it without reading.

Source: Arena's markdown counts, https://github.com/lmarena/arena-hard-auto `add_markdown_info.py`:
code blocks are stripped before headers, lists and bold are counted.
"""

import re
from typing import NamedTuple

CODE_BLOCK = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?(?:^\1[`~]*\s*$|\Z)", re.MULTILINE | re.DOTALL)
HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
LIST_ITEM = re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
LINK = re.compile(r"\]\([^)\s]+[^)]*\)|<https?://[^>\s]+>")


class Style(NamedTuple):
    """Counts of a response's style features."""

    characters: int
    headers: int
    lists: int
    """Items."""
    bold: int
    code: int
    """Fenced blocks."""
    links: int


def style_of(text: str) -> Style:
    """The style counts of a Markdown text; all 0 for an empty one."""
    plain, blocks = CODE_BLOCK.subn("", text)
    headers, items, bold, links = (
        len(pattern.findall(plain)) for pattern in (HEADER, LIST_ITEM, BOLD, LINK)
    )
    return Style(
        characters=len(text), headers=headers, lists=items, bold=bold, code=blocks, links=links
    )
