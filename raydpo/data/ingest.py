"""A chunk of canonical rows becomes the table of one token shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import pyarrow as pa

from raydpo.data.bad_rows import BAD, BadRow
from raydpo.data.limits import Extent, ModelLimits
from raydpo.data.mismatched import with_others
from raydpo.data.ranked import tokenize_ranked
from raydpo.data.reading import Chunk
from raydpo.data.rows import Kind
from raydpo.data.shards import Counts, to_table
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import Note, Outcome, TokenRow, TokenSettings, tokenize_pair, tokenize_sft, tokenize_unpaired
from raydpo.errors import UserError

_TOKENIZE: Mapping[Kind, Callable[..., Outcome]] = MappingProxyType(
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
    notice: Callable[[Note, str], object] | None = None,
    bad: Callable[[BadRow], object] | None = None,
) -> tuple[pa.Table, Counts]:
    """One chunk of input becomes the table of one shard, rows in order.

    limits: of the models that will read the rows; others: whether each gets a completion of another prompt, see
    raydpo.data.mismatched; notice: is told of each row that is worth a word, and where it stands; bad: is told of each
    row that cannot be used, which without it is a UserError that names file and row.
    """
    tokenize = partial(_TOKENIZE[kind], tokenizer=tokenizer, settings=settings)
    outcomes: list[Outcome] = []
    for number, row in enumerate(chunk.rows, start=chunk.first_row):
        try:
            outcome = Outcome("bad") if BAD in row else tokenize(row).from_source(row.get("source"))
            _check_limits(outcome, limits)
        except UserError as error:
            row = {BAD: f"{chunk.path} row {number}: {error}"}
            if bad is None:
                raise UserError(row[BAD]) from error
            outcome = Outcome("bad")
        if bad and BAD in row:
            bad((chunk.path, number, row[BAD]))
        outcomes.append(outcome)
        if notice:
            for note in sorted(outcome.notes):
                notice(note, f"{chunk.path} row {number}")
    rows = [outcome.row for outcome in outcomes if outcome.row]
    counts = _count(outcomes)
    if others:
        # What is added must fit the data's bound and that of every model that reads it.
        positions = [each.positions for each in limits if each.positions is not None]
        rows = with_others(rows, min([settings.max_length, *positions]))
    return to_table(rows), counts


def _check_limits(outcome: Outcome, limits: Sequence[ModelLimits]) -> None:
    if outcome.row is None:
        return
    extent = Extent.of_row(outcome.row)
    for each in limits:
        each.check(extent)


def _count(outcomes: Sequence[Outcome]) -> Counts:
    events = [outcome.event for outcome in outcomes]
    rows = [outcome.row for outcome in outcomes if outcome.row]
    return Counts(
        rows_read=len(events),
        kept=len(rows),
        truncated_prompt=events.count("truncated_prompt"),
        truncated_completion=events.count("truncated_completion"),
        dropped_too_long=events.count("dropped_too_long"),
        identical=events.count("identical"),
        tied=events.count("tied"),
        with_ties=sum(map(_has_ties, rows)),
        bad=events.count("bad"),
        moved_boundary=sum("moved_boundary" in outcome.notes for outcome in outcomes),
        unrendered=sum("unrendered" in outcome.notes for outcome in outcomes),
        no_prompt=sum("no_prompt" in outcome.notes for outcome in outcomes),
        merged_completions=sum(outcome.merged for outcome in outcomes),
    )


def _has_ties(row: TokenRow) -> bool:
    ranks = row.columns.get("rank", ())
    return len(set(ranks)) < len(ranks)
