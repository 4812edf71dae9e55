"""A chunk of canonical rows becomes the table of one token shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import pyarrow as pa

from raydpo.data.formats import Chunk, Kind, Row
from raydpo.data.limits import Extent, ModelLimits
from raydpo.data.mismatched import with_others
from raydpo.data.ranked import tokenize_ranked
from raydpo.data.shards import Counts, to_table
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import Outcome, TokenRow, TokenSettings, tokenize_pair, tokenize_sft, tokenize_unpaired
from raydpo.errors import UserError

_TOKENIZE: Mapping[Kind, Callable[[Row, RowTokenizer, TokenSettings], Outcome]] = MappingProxyType(
    {"sft": tokenize_sft, "pair": tokenize_pair, "unpaired": tokenize_unpaired, "ranked": tokenize_ranked}
)


def tokenize_chunk(
    chunk: Chunk,
    tokenizer: RowTokenizer,
    settings: TokenSettings,
    kind: Kind,
    limits: Sequence[ModelLimits] = (),
    *,
    others: bool = False,
) -> tuple[pa.Table, Counts]:
    """One chunk of input becomes the table of one shard, rows in order.

    limits: of the models that will read the rows; others: whether each gets a completion of another prompt, see
    raydpo.data.mismatched. UserError names file and row.
    """
    outcomes: list[Outcome] = []
    for number, row in enumerate(chunk.rows, start=chunk.first_row):
        try:
            outcome = _TOKENIZE[kind](row, tokenizer, settings)
            if outcome.row:
                extent = Extent.of_row(outcome.row)
                for each in limits:
                    each.check(extent)
            outcomes.append(outcome)
        except UserError as error:
            raise UserError(f"{chunk.path} row {number}: {error}") from error
    rows = [outcome.row for outcome in outcomes if outcome.row]
    events = [outcome.event for outcome in outcomes]
    counts = Counts(
        rows_read=len(events),
        kept=len(rows),
        truncated_prompt=events.count("truncated_prompt"),
        truncated_completion=events.count("truncated_completion"),
        dropped_too_long=events.count("dropped_too_long"),
        identical=events.count("identical"),
        tied=events.count("tied"),
        with_ties=sum(_has_ties(row) for row in rows),
        merged_completions=sum(outcome.merged for outcome in outcomes),
    )
    if others:
        positions = [each.positions for each in limits if each.positions is not None]
        rows = with_others(rows, min(settings.max_length, *positions))
    return to_table(rows), counts


def _has_ties(row: TokenRow) -> bool:
    ranks = row.columns.get("rank", ())
    return len(set(ranks)) < len(ranks)
