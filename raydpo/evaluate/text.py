"""Measures of texts: how varied they are, and how near to a reference text. Words are lower-case, cut at blanks; those
of ROUGE are its own, see rouge_words.

Legend: n-grams are tuples of n words of one text.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

Gram = tuple[str, ...]

BLEU_ORDERS = (1, 2, 3, 4)
ZERO_COUNT = 0.1  # stands for 0 matches, method 1 of Chen and Cherry 2014


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of all texts by all n-grams, 0..1 (Li et al. 2016, distinct-n); 0 where there are none."""
    counts = Counter(gram for text in texts for gram in _grams(_words(text), n))
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


def against_reference(text: str, reference: str) -> dict[str, float]:
    """How near a text is to a reference text, by several measures, each 0..1."""
    ours = rouge_words(text)
    theirs = rouge_words(reference)
    return {
        "rouge_1": rouge_n(ours, theirs, 1),
        "rouge_2": rouge_n(ours, theirs, 2),
        "rouge_l": rouge_l(ours, theirs),
        "exact_match": float(exact_match(text, reference)),
    }


def rouge_words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, without stemming; of English those of the package rouge-score."""
    return re.findall(r"[^\W_]+", text.lower())


def rouge_n(ours: Sequence[str], theirs: Sequence[str], n: int) -> float:
    """F1 of shared n-grams of words, 0..1 (Lin 2004, ROUGE-N)."""
    a, b = (Counter(_grams(words, n)) for words in (ours, theirs))
    return _f1((a & b).total(), a.total(), b.total())


def rouge_l(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, 0..1 (Lin 2004, ROUGE-L), of whole texts."""
    return _f1(_common_subsequence(ours, theirs), len(ours), len(theirs))


def exact_match(text: str, reference: str) -> bool:
    """Whether the texts are the same but for case and blanks."""
    return text.lower().split() == reference.lower().split()


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest one, row by row of the usual table."""
    row = [0] * (len(b) + 1)
    for word in a:
        former = row
        row = [0]
        for j, other in enumerate(b):
            row.append(former[j] + 1 if word == other else max(row[j], former[j + 1]))
    return row[-1]


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if shared else 0.0


def _words(text: str) -> list[str]:
    return text.lower().split()


def _grams(words: Sequence[str], n: int) -> list[Gram]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _clipped(texts: Sequence[str], n: int) -> list[tuple[Counter[Gram], dict[Gram, int]]]:
    """For every text its n-grams and how often each stands at most in one of the others."""
    counts = [Counter(_grams(_words(text), n)) for text in texts]
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
