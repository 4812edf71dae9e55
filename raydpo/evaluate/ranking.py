"""How a policy ranks held-out rows: every pair of their completions, rightly or not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from raydpo.data.tokens import TokenRow
from raydpo.evaluate.records import RankedPair
from raydpo.objective.contract import COLUMNS, REF_LOGPS, ScoredRows, Values


def ranked_pairs(
    rows: Sequence[TokenRow],
    scored: Sequence[Sequence[np.ndarray]],
    ref_logps: np.ndarray | None,
    compares: Values,
) -> list[RankedPair]:
    """Every pair of the rows, in their order; a row whose completions nothing compares has none.

    scored: the policy's token log-probs by row and completion, in nats; ref_logps: the reference's sums, one for each
    of all completions, where the comparison needs them. A pair is ranked rightly where the better completion has the
    higher value; a tie is wrong.
    """
    seen = _as_objectives_see(rows, scored, ref_logps)
    pairs = seen.pairs()
    values = compares(seen)
    rightly = values[pairs.better] > values[pairs.worse]
    return [
        RankedPair(tuple(rows[row].prompt_ids), right)
        for row, right in zip(pairs.row.tolist(), rightly.tolist(), strict=True)
    ]


def _as_objectives_see(
    rows: Sequence[TokenRow], scored: Sequence[Sequence[np.ndarray]], ref_logps: np.ndarray | None
) -> ScoredRows:
    """Token log-probs in float64, so that an objective's sums over them are float64 too."""
    completions = list(chain.from_iterable(scored))
    lengths = torch.tensor([len(values) for values in completions])
    columns = {
        name: torch.tensor(list(chain.from_iterable(row.columns[name] for row in rows)), dtype=COLUMNS[name])
        for name in rows[0].columns
    }
    if ref_logps is not None:
        columns[REF_LOGPS] = torch.from_numpy(ref_logps).flatten()
    return ScoredRows(
        token_logps=torch.from_numpy(np.concatenate(completions)).double(),
        owner=torch.arange(len(completions)).repeat_interleave(lengths),
        row=torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row.completions) for row in rows])),
        num_rows=len(rows),
        columns=columns,
    )
