"""The reference model at work: completions to log-probs, and those to what the store keeps. Here torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from raydpo.config.schema import Model
from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow, completion_id
from raydpo.model.batch import Batch
from raydpo.model.flops import Bounds, forward_flops, matmul_ceiling
from raydpo.model.layout import layout_name
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.reference.shard import SCHEMA


@dataclass(frozen=True)
class Scores:
    """What scoring some rows gave, and what it took."""

    table: pa.Table  # reference.shard.SCHEMA
    tokens: int
    flops: float | None  # that the tokens need at least; None where that is not known


class ReferenceModel:
    """A frozen model on one device; `threads` are of the CPU."""

    def __init__(self, path: str, settings: Model, *, device: torch.device, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device = device
        self._lm = load_model(path, dtype=settings.dtype, device=device)
        self._model = ScoringModel(self._lm, fp32_head=settings.fp32_head)
        self.layout = layout_name(self._lm)
        self.ceiling = matmul_ceiling(getattr(torch, settings.dtype), device)  # FLOP/s

    def score(self, rows: Sequence[TokenRow], *, tokens_per_microbatch: int, keep_token_logps: bool) -> Scores:
        """Sum and token count of every completion, and its values by token if they are to be kept."""
        values, bounds = score_rows(self._model, rows, tokens_per_microbatch=tokens_per_microbatch, device=self._device)
        return Scores(
            table=_as_table(rows, values, keep=keep_token_logps),
            tokens=sum(row[-1] - row[0] for row in bounds),
            flops=forward_flops(self._lm, bounds),
        )


def score_rows(
    model: ScoringModel, rows: Sequence[TokenRow], *, tokens_per_microbatch: int, device: torch.device
) -> tuple[list[list[np.ndarray]], Bounds]:
    """Per-token log-probs of every completion of every row, in the order of the rows; and the bounds of all packs.

    A completion sees its prompt and itself, whatever else is in its pack, so only the rounding of its value depends on
    that: kernels add up in another order where a pack has another size.
    """
    results: list[list[np.ndarray]] = [[] for _ in rows]
    bounds: list[tuple[int, ...]] = []
    lengths = np.asarray([len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows])
    # A row is never cut, so the longest one sets the least that a micro-batch must hold.
    bound = max(tokens_per_microbatch, int(lengths.max()))
    [micro_batches] = split_microbatches(lengths, world_size=1, tokens_per_microbatch=bound)
    for members in micro_batches:
        batch = Batch.from_pack(pack_rows([rows[i] for i in members]), device=device)
        values = model.token_logps(batch).cpu().numpy()
        sizes = [len(completion) for i in members for completion in rows[i].completions]
        pieces = iter(np.split(values, np.cumsum(sizes)[:-1]))
        for i in members:
            results[i] = [next(pieces) for _ in rows[i].completions]
        bounds += batch.bounds
    return results, tuple(bounds)


def _as_table(rows: Sequence[TokenRow], scored: list[list[np.ndarray]], *, keep: bool) -> pa.Table:
    """What the store keeps, completion by completion in the order of the rows."""
    values = [of_completion for of_row in scored for of_completion in of_row]
    columns = {
        "completion_id": [completion_id(row.prompt_ids, ids) for row in rows for ids in row.completions],
        "logps": [float(each.sum(dtype=np.float64)) for each in values],
        "tokens": [len(each) for each in values],
        "token_logps": [each.tolist() if keep else None for each in values],
    }
    return pa.table(columns, schema=SCHEMA)
