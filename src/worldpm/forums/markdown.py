"""Convert HTML of forum posts to Markdown: fenced code with its language, lists, quotes, links and
tables; math is left unchanged."""

import html as entities
import re

# The public `convert` of the package builds the options again for each text.
from html_to_markdown._html_to_markdown import ConversionOptions, convert

OPTIONS = ConversionOptions.from_json(
    '{"bullets": "-", "extract_metadata": false, "sub_symbol": "<sub>", "sup_symbol": "<sup>",'
    ' "keep_inline_images_in": ["h1", "h2", "h3", "h4", "h5", "h6"]}'
)

ADJACENT_QUOTES = re.compile(r"</blockquote>\s*<blockquote")
PARAGRAPH_AFTER_LIST = re.compile(r"(</[uo]l>)\s*(?=<p\b)")
SPOILER = re.compile(r'<blockquote class="spoiler">\s*(<p>)?')
NO_LANGUAGE = re.compile(r'(<(?:pre|code)\b[^>]*?\bclass="[^">]*?)\b(?:lang|language)-none\b')
BACKSLASH, SEPARATOR, HIDDEN = "\ufdd0", "\ufdd1", "\ufdd2"
"""Noncharacters, which texts cannot contain, as placeholders for text that the converter would
alter."""
SEPARATOR_OF_BLOCKS = re.compile(rf"\n*(\n[> ]*\n)[> ]*{SEPARATOR}\n[> ]*\n")
SEPARATOR_LINE = re.compile(rf"[> ]*{SEPARATOR}\n?")

MAX_DEPTH = 400
"""Deepest nesting that is converted. The converter loses the text of tags that are nested much
deeper, which only broken or hostile posts have."""
NESTING = re.compile(
    r"<(/?)(?!p\b|li\b|br\b|hr\b|img\b|t[dhr]\b|input\b|wbr\b)[a-z][a-z0-9]*\b[^>]*>"
)
"""A tag that contains others and must be closed."""
TAG = re.compile(r"<[^>]*>")


def from_html(html: str) -> str:
    """The post as Markdown, without white space around it; empty for an empty post.

    It corrects faults of the converter. Backslashes of math and code are not doubled. Neighbouring
    quotes stay separate, as does a paragraph after a list in a quote. A spoiler keeps its mark
    (`>!`). `lang-none` is not treated as a language. Posts that are nested too deeply become plain
    text.
    """
    if html.count("<") > MAX_DEPTH and _depth(html) > MAX_DEPTH:
        return re.sub(r"\s*\n\s*", "\n", entities.unescape(TAG.sub("\n", html))).strip()
    html = html.replace("\\", BACKSLASH)

    # Each pattern is tried only on texts that contain its marker, because most do not.
    if "<blockquote" in html:
        html = ADJACENT_QUOTES.sub(f"</blockquote><p>{SEPARATOR}</p><blockquote", html)
        html = PARAGRAPH_AFTER_LIST.sub(rf"\1<p>{SEPARATOR}</p>", html)
        html = SPOILER.sub(lambda match: f"<blockquote>{match[1] or ''}{HIDDEN}", html)
    if "-none" in html:
        html = NO_LANGUAGE.sub(r"\1", html)

    text = convert(html=html, options=OPTIONS).content or ""
    if SEPARATOR in text:
        text = SEPARATOR_LINE.sub("", SEPARATOR_OF_BLOCKS.sub(r"\1", text))
    if HIDDEN in text:
        text = text.replace(f"> {HIDDEN}", ">! ").replace(HIDDEN, "")
    return text.replace(BACKSLASH, "\\").strip()


def _depth(html: str) -> int:
    """The deepest nesting of tags."""
    depth = deepest = 0
    for match in NESTING.finditer(html):
        depth = max(0, depth - 1) if match[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest
