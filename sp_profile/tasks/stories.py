"""Prose without end for calibration: simple sentences drawn from word lists.

No text is shared with the evaluation's haystacks, whose prose is read from a file.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from sp_profile.words import ADJECTIVES, NOUNS

_PEOPLE = (
    "Anna", "Bernard", "Clara", "Daniel", "Edith", "Felix", "Greta", "Hugo", "Irene", "Jonas",
    "Katrin", "Leo", "Martha", "Nils", "Olga", "Paul", "Rosa", "Simon", "Tilda", "Viktor",
    "the baker", "the captain", "the carpenter", "the driver", "the engineer", "the gardener",
    "the old man", "the painter", "the postman", "the teacher", "the two sisters", "a stranger",
)  # fmt: skip
_DID = (
    "admired", "asked about", "borrowed", "bought", "carried", "cleaned", "described", "dropped",
    "examined", "forgot", "found", "hid", "kept", "left behind", "looked at", "lost", "measured",
    "mentioned", "painted", "passed", "pointed at", "remembered", "repaired", "returned to",
    "searched for", "showed us", "sold", "spoke of", "talked about", "waited for", "walked past",
    "wrote about",
)  # fmt: skip
_WHEN = (
    "in the morning", "late at night", "on Monday", "before the rain began", "after supper",
    "for the second time", "without a word", "in early spring", "during the storm", "at noon",
    "a year later", "on the way home", "as always", "when nobody was there", "at last", "by chance",
)  # fmt: skip
_WHERE = ("near", "behind", "in front of", "beside", "not far from", "on the road to", "opposite")
_SAID = ("said", "thought", "wrote", "answered", "believed", "was told", "had read", "was sure")
_LINKS = ("and", "but", "while", "because", "so", "although", "until")


def sentence(rng: random.Random) -> str:
    """One sentence of 6 to some 30 words; the same draws give the same sentence."""
    text = _FORMS[rng.randrange(len(_FORMS))](rng)
    return f"{text[0].upper()}{text[1:]}."


def _thing(rng: random.Random) -> str:
    article = rng.choice(("the", "the", "that", "every", "another", "her", "his"))
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.6 else ""
    return f"{article} {adjective}{rng.choice(NOUNS)}"


def _clause(rng: random.Random) -> str:
    return f"{rng.choice(_PEOPLE)} {rng.choice(_DID)} {_thing(rng)}"


def _place(rng: random.Random) -> str:
    return f"{rng.choice(_WHERE)} {_thing(rng)}"


_FORMS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: f"{_clause(rng)} {rng.choice(_WHEN)}",
    lambda rng: f"{rng.choice(_WHEN)}, {_clause(rng)} {_place(rng)}",
    lambda rng: f"{_clause(rng)}, {rng.choice(_LINKS)} {_clause(rng)}",
    lambda rng: (
        f"{rng.choice(_PEOPLE)} {rng.choice(_SAID)} that {_clause(rng)} {rng.choice(_WHEN)}"
    ),
    lambda rng: f"{_place(rng)} there was {_thing(rng)}, which {_clause(rng)} {rng.choice(_WHEN)}",
    lambda rng: (
        f"{_clause(rng)} {_place(rng)}, {rng.choice(_LINKS)} {_clause(rng)} {rng.choice(_WHEN)}"
    ),
)
