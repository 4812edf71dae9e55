"""The prompt of two texts that both begin with it: as many tokens as they have in common."""

from __future__ import annotations

from raydpo.data.rows import Row
from raydpo.data.tokenizer import RowTokenizer

# A tokenizer that does not give a text back as it was has no boundary that can be found; nor is one looked for long.
_TRIES = 64


def with_prompt(row: Row, tokenizer: RowTokenizer) -> Row:
    """A row {"chosen", "rejected"} of whole texts with the prompt that they have in common, and the rest of each.

        "I like cats", "I like cars"  →  "I like", " cats", " cars"

    The prompt is the longest for which a cut leaves all tokens whole: both texts go on from its tokens, which are also
    those that it has alone, as a sampler gets it. Both completions keep a token. It may be empty.
    """
    chosen = row["chosen"]
    rejected = row["rejected"]
    ids = tokenizer.encode(chosen)
    others = tokenizer.encode(rejected)
    common = 0
    while common < min(len(ids), len(others)) - 1 and ids[common] == others[common]:
        common += 1
    prompt = ""
    for end in range(common, max(0, common - _TRIES), -1):
        text = tokenizer.decode(ids[:end])
        if _cuts(text, chosen) and _cuts(text, rejected) and tokenizer.encode(text) == ids[:end]:
            prompt = text
            break
    return row | {"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}


def _cuts(prompt: str, text: str) -> bool:
    """Whether a text goes on from a prompt with something to say."""
    return text.startswith(prompt) and bool(text[len(prompt) :].strip())
