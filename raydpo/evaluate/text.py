"""Measures of texts alone: how varied they are. Words are lower-case, cut at blanks.

Legend: n-grams are tuples of n words of one text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Gram = tuple[str, ...]

BLEU_ORDERS = (1, 2, 3, 4)
ZERO_COUNT = 0.1  # stands for 0 matches, method 1 of Chen and Cherry 2014


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of all texts by all n-grams, 0..1 (Li et al. 2016, distinct-n); 0 where there are none."""
    counts = Counter(gram for text in texts for gram in _grams(text, n))
    total = counts.total()
    return len(counts) / total if total else 0.0


def self_bleu(texts: Sequence[str]) -> list[float]:
    """BLEU-4 of every text against all others, 0..1 (Zhu et al. 2018); the higher, the more alike they are.

    BLEU as Papineni et al. 2002: geometric mean of clipped precisions, closest reference length. 0 for an empty text.
    Raises ValueError for fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} texts have no others to be compared with; give at least 2")
    logs = [[_log_precision(own, most) for own, most in _clipped(texts, n)] for n in BLEU_ORDERS]
    lengths = [len(text.split()) for text in texts]
    scores = []
    for i, length in enumerate(lengths):
        others = lengths[:i] + lengths[i + 1 :]
        closest = min(others, key=lambda other: (abs(other - length), other))
        brevity = min(0.0, 1 - closest / length) if length else -math.inf
        mean = sum(of_order[i] for of_order in logs) / len(logs)
        scores.append(math.exp(brevity + mean))
    return scores


def _grams(text: str, n: int) -> list[Gram]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _clipped(texts: Sequence[str], n: int) -> list[tuple[Counter[Gram], dict[Gram, int]]]:
    """For every text its n-grams and how often each stands at most in one of the others."""
    counts = [Counter(_grams(text, n)) for text in texts]
    # The two highest counts of each n-gram: without a text, the most is the one that is not its own.
    highest: dict[Gram, list[int]] = {}
    for counter in counts:
        for gram, count in counter.items():
            highest[gram] = sorted([*highest.get(gram, [0, 0]), count])[-2:]
    found = []
    for counter in counts:
        most = {
            gram: highest[gram][0] if highest[gram][1] == count else highest[gram][1] for gram, count in counter.items()
        }
        found.append((counter, most))
    return found


def _log_precision(own: Counter[Gram], most: dict[Gram, int]) -> float:
    matches = sum(min(count, most[gram]) for gram, count in own.items())
    return math.log((matches or ZERO_COUNT) / max(1, own.total()))
