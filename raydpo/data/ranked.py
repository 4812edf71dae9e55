"""Ranked rows under the token rule: the completions best first, each of them once."""

from __future__ import annotations

from raydpo.data.annotations import dense
from raydpo.data.context import arguments_of
from raydpo.data.rows import Row
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import Outcome, TokenRow, TokenSettings, row_id, tokenize_row


def tokenize_ranked(row: Row, tokenizer: RowTokenizer, settings: TokenSettings) -> Outcome:
    """Tokenise {"prompt", "completions", "ranks"}. Raises as tokenize_pair does.

    The completions come best first, those of equal rank in the order of the file, so that a row of two has the tokens
    and the name of the pair. Completions with the same tokens are one, at the best of their ranks. A row of which one
    completion is left is dropped, and so is one whose completions all tie: they have no pair that could be learnt from,
    and a scorer that cannot tell them apart is nothing that the file could mend.
    """
    values = {f"completion {i}": value for i, value in enumerate(row["completions"], start=1)}
    outcome = tokenize_row(row["prompt"], values, tokenizer, settings, arguments_of(row))
    if outcome.row is None:
        return outcome
    rank_of: dict[tuple[int, ...], int] = {}
    best_first = sorted(zip(row["ranks"], outcome.row.completions, strict=True), key=lambda ranked: ranked[0])
    for rank, completion in best_first:
        rank_of.setdefault(tuple(completion), rank)
    merged = len(best_first) - len(rank_of)
    ranks = dense(list(rank_of.values()))
    if len(ranks) == 1:
        return Outcome("identical", merged=merged)
    if ranks[-1] == 0:
        return Outcome("tied", merged=merged)
    prompt_ids = outcome.row.prompt_ids
    completions = tuple(list(completion) for completion in rank_of)
    ranked = TokenRow(row_id(prompt_ids, completions), prompt_ids, completions, {"rank": ranks})
    return Outcome(outcome.event, ranked, merged, outcome.notes)
