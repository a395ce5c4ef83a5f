"""HTML of forum posts becomes Markdown: fenced code with its language, lists, quotes, links,
tables; math is left alone."""

import re

from html_to_markdown._html_to_markdown import (
    ConversionOptions,
    convert,
)  # its public `convert` builds the options anew for each text

OPTIONS = ConversionOptions.from_json(
    '{"bullets": "-", "extract_metadata": false, "sub_symbol": "~", "sup_symbol": "^"}'
)

ADJACENT_QUOTES = re.compile(r"</blockquote>\s*<blockquote")
SPOILER = re.compile(r'<blockquote class="spoiler">\s*(<p>)?')
NO_LANGUAGE = re.compile(r'(<(?:pre|code)\b[^>]*?\bclass="[^">]*?)\b(?:lang|language)-none\b')
BACKSLASH, SEPARATOR = "\ufdd0", "\ufdd1"
"""Noncharacters that no text may hold stand in for what the converter would alter."""


def from_html(html: str) -> str:
    """The post as Markdown, without white space around it; empty for an empty post.

    Four things that the converter gets wrong are put right around it: backslashes of math and code
    are not doubled, neighbouring quotes stay apart, a spoiler keeps its mark (`> !`), and
    `lang-none` is no language.
    """
    html = html.replace("\\", BACKSLASH)
    if "<blockquote" in html:
        html = ADJACENT_QUOTES.sub(f"</blockquote><p>{SEPARATOR}</p><blockquote", html)
        html = SPOILER.sub(lambda match: f"<blockquote>{match[1] or ''}! ", html)
    if "-none" in html:
        html = NO_LANGUAGE.sub(r"\1", html)
    text = convert(html=html, options=OPTIONS).content or ""
    if SEPARATOR in text:
        text = re.sub(rf"\n*{SEPARATOR}\n*", "\n\n", text)
    return text.replace(BACKSLASH, "\\").strip()
