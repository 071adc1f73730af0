"""Random values of the retrieval tasks, the same on every platform."""

from __future__ import annotations

import random
import string
import uuid


def number_of_seven(rng: random.Random) -> str:
    """Seven digits, the first not 0."""
    return str(rng.randrange(1_000_000, 10_000_000))


def uuid4(rng: random.Random) -> str:
    """A random UUID of version 4, in lower case."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(rng: random.Random, count: int, *, upper: bool = False) -> str:
    """So many random ASCII letters."""
    alphabet = string.ascii_uppercase if upper else string.ascii_lowercase
    return "".join(rng.choice(alphabet) for _ in range(count))


def distinct_letters(
    rng: random.Random, words: int, count: int, *, upper: bool = False
) -> list[str]:
    """Distinct words of so many random letters."""
    found: dict[str, None] = {}
    while len(found) < words:
        found[letters(rng, count, upper=upper)] = None
    return list(found)
