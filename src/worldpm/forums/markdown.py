"""Convert HTML of forum posts to Markdown: fenced code with its language, lists, quotes, links and
tables; math is left unchanged."""

import re

# The public `convert` of the package builds the options again for each text.
from html_to_markdown._html_to_markdown import ConversionOptions, convert

OPTIONS = ConversionOptions.from_json(
    '{"bullets": "-", "extract_metadata": false, "sub_symbol": "~", "sup_symbol": "^"}'
)

ADJACENT_QUOTES = re.compile(r"</blockquote>\s*<blockquote")
SPOILER = re.compile(r'<blockquote class="spoiler">\s*(<p>)?')
NO_LANGUAGE = re.compile(r'(<(?:pre|code)\b[^>]*?\bclass="[^">]*?)\b(?:lang|language)-none\b')
BACKSLASH, SEPARATOR = "\ufdd0", "\ufdd1"
"""Noncharacters, which texts cannot contain, as placeholders for text that the converter would
alter."""


def from_html(html: str) -> str:
    """The post as Markdown, without white space around it; empty for an empty post.

    It corrects four faults of the converter. Backslashes of math and code are not doubled.
    Neighbouring quotes stay separate. A spoiler keeps its mark (`> !`). `lang-none` is not treated
    as a language.
    """
    html = html.replace("\\", BACKSLASH)

    # Each pattern is tried only on texts that contain its marker, because most do not.
    if "<blockquote" in html:
        html = ADJACENT_QUOTES.sub(f"</blockquote><p>{SEPARATOR}</p><blockquote", html)
        html = SPOILER.sub(lambda match: f"<blockquote>{match[1] or ''}! ", html)
    if "-none" in html:
        html = NO_LANGUAGE.sub(r"\1", html)

    text = convert(html=html, options=OPTIONS).content or ""
    if SEPARATOR in text:
        text = re.sub(rf"\n*{SEPARATOR}\n*", "\n\n", text)
    return text.replace(BACKSLASH, "\\").strip()
