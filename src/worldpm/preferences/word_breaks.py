"""Breaks between words in scripts that are written without spaces."""

import re

UNSPACED = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
"""Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, and those of Japanese
and Chinese. Each counts as a word."""


def spaced(text: str) -> str:
    """The text with spaces around letters that count as words."""
    return text if text.isascii() else UNSPACED.sub(r" \g<0> ", text)
