"""ROUGE-Lsum: the union of longest common subsequences (Lin 2004, section 3.2).

As the package rouge-score computes it without stemming: sentences are lines, tokens are runs of
a-z and 0-9 in lower case, and the result is the F-measure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_TOKEN = re.compile(r"[a-z0-9]+")


def rouge_lsum(prediction: str, answers: Sequence[str]) -> float:
    """Largest ROUGE-Lsum F-measure over the answers."""
    return max(_f_measure(_lines(prediction), _lines(answer)) for answer in answers)


def _lines(text: str) -> list[list[str]]:
    found = (_TOKEN.findall(line.lower()) for line in text.split("\n"))
    return [tokens for tokens in found if tokens]


def _f_measure(predicted: list[list[str]], reference: list[list[str]]) -> float:
    total_predicted, total_reference = (sum(map(len, each)) for each in (predicted, reference))
    if not total_predicted or not total_reference:
        return 0.0
    # A token counts at most as often as it occurs on each side.
    left = Counter(token for line in predicted for token in line)
    right = Counter(token for line in reference for token in line)
    hits = 0
    for line in reference:
        union: set[int] = set()
        for other in predicted:
            union |= _common_positions(line, other)
        for place in sorted(union):
            token = line[place]
            if left[token] > 0 and right[token] > 0:
                left[token] -= 1
                right[token] -= 1
                hits += 1
    return 2 * hits / (total_predicted + total_reference)


def _common_positions(reference: Sequence[str], other: Sequence[str]) -> set[int]:
    """Places in `reference` of one longest common subsequence."""
    width = len(other) + 1
    table = [[0] * width]
    for token in reference:
        above = table[-1]
        row = [0] * width
        for column in range(1, width):
            if token == other[column - 1]:
                row[column] = above[column - 1] + 1
            else:
                row[column] = max(above[column], row[column - 1])
        table.append(row)
    found: set[int] = set()
    i, j = len(reference), len(other)
    while i and j:
        if reference[i - 1] == other[j - 1]:
            found.add(i - 1)
            i, j = i - 1, j - 1
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found
