"""Text normalisation, as each benchmark defines it."""

from __future__ import annotations

import re
import string

_CONTROL = re.compile(r"[\x00-\x1f]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
_CHINESE_PUNCTUATION = _PUNCTUATION | frozenset(
    "\uff01\uff1f\uff61\u3002\uff02\uff03\uff04\uff05\uff06\uff07\uff08\uff09\uff0a\uff0b\uff0c"
    "\uff0d\uff0f\uff1a\uff1b\uff1c\uff1d\uff1e\uff20\uff3b\uff3c\uff3d\uff3e\uff3f\uff40\uff5b"
    "\uff5c\uff5d\uff5e\uff5f\uff60\uff62\uff63\uff64\u3001\u3003\u300b\u300c\u300d\u300e\u300f"
    "\u3010\u3011\u3014\u3015\u3016\u3017\u3018\u3019\u301a\u301b\u301c\u301d\u301e\u301f\u3030"
    "\u303e\u303f\u2013\u2014\u2018\u2019\u201b\u201c\u201d\u201e\u201f\u2026\u2027\ufe4f."
)


def printable(text: str) -> str:
    """RULER's: control characters (U+0000 to U+001F) become line breaks; ends are stripped."""
    return _CONTROL.sub("\n", text.strip()).strip()


def english_tokens(text: str) -> list[str]:
    """SQuAD's, which InfiniteBench uses: words in lower case without ASCII punctuation, then
    without the articles a, an and the."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return _ARTICLES.sub(" ", bare).split()


def chinese_tokens(text: str) -> list[str]:
    """InfiniteBench's: characters in lower case, without white space, ASCII and CJK punctuation."""
    bare = (character for character in text.lower() if character not in _CHINESE_PUNCTUATION)
    return list("".join("".join(bare).split()))


def words_without(text: str, separators: str) -> list[str]:
    """Words between white space and any of the separators."""
    return text.translate({ord(character): " " for character in separators}).split()
