"""A training step's gradient and a reference pass, in the two layouts that are compared.

Packed is raydpo's engine: every prompt once, no padding, logits at completion positions only. Padded is the layout of
common trainers: chosen and rejected as two rows, each with its own prompt, padded to the longest of a batch, logits
at every position. Both compute the mean DPO loss over the same pairs with given reference values.

Legend: N pairs, L padded length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.measure import DEVICE
from benchmarks.shapes import SMALL_BATCH
from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow
from raydpo.model.batch import Batch
from raydpo.model.load import DTYPES, load_model
from raydpo.model.score import ScoringModel, sequence_logps
from raydpo.objective.contract import REF_LOGPS
from raydpo.objective.registry import make_objective, resolve

BETA = 0.1
TOKENS_PER_MICROBATCH = 1024  # on a CPU a larger one is no faster and takes more memory

Logps = NDArray[np.float32]  # [N, 2], log π(y|x) of chosen and rejected


class Packed:
    """raydpo's engine without Ray and DeepSpeed."""

    def __init__(self, model: Path, rows: Sequence[TokenRow], *, dtype: str, ref_logps: Logps | None = None) -> None:
        self.lm = load_model(str(model), dtype=dtype, device=DEVICE).train()
        self._model = ScoringModel(self.lm)
        ref = np.zeros((len(rows), 2), dtype=np.float32) if ref_logps is None else ref_logps
        lengths = np.asarray([len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows])
        bound = max(TOKENS_PER_MICROBATCH, lengths.max())
        [self._members] = split_microbatches(lengths, world_size=1, tokens_per_microbatch=bound)
        self._batches = [
            Batch.from_pack(pack_rows([rows[i] for i in members]), _reference(ref[members]), device=DEVICE)
            for members in self._members
        ]
        self._loss = make_objective(resolve(["sigmoid"], beta=BETA)).loss
        self._num_rows = len(rows)
        self.bounds = tuple(row for batch in self._batches for row in batch.bounds)

    def gradient(self) -> float:
        """Make the gradient of the mean loss anew; returns the loss."""
        self.lm.zero_grad()
        mean = 0.0
        for batch in self._batches:
            total, _, _ = self._model(batch, self._loss)
            (total / self._num_rows).backward()
            mean += float(total.detach()) / self._num_rows
        return mean

    def logps(self) -> Logps:
        """A reference pass over all pairs."""
        values = np.empty((self._num_rows, 2), dtype=np.float32)
        for members, batch in zip(self._members, self._batches, strict=True):
            values[members] = sequence_logps(self._model.token_logps(batch), batch).view(-1, 2).cpu().numpy()
        return values


def _reference(logps: Logps) -> dict[str, Tensor]:
    return {REF_LOGPS: torch.from_numpy(logps).flatten()}


class Padded:
    """Small padded batches, in the order of the rows."""

    def __init__(self, model: Path, rows: Sequence[TokenRow], *, dtype: str) -> None:
        self._lm = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[dtype]).to(DEVICE).train()
        self._groups = [rows[i : i + SMALL_BATCH] for i in range(0, len(rows), SMALL_BATCH)]
        self._num_rows = len(rows)

    def gradient(self) -> float:
        """Make the gradient of the mean loss, for reference values of 0, anew; returns the loss."""
        self._lm.zero_grad()
        mean = 0.0
        for group in self._groups:
            logps = self._group_logps(group)
            part = -F.logsigmoid(BETA * (logps[:, 0] - logps[:, 1])).sum() / self._num_rows
            part.backward()
            mean += float(part.detach())
        return mean

    @torch.no_grad()
    def logps(self) -> Logps:
        """A reference pass over all pairs."""
        values: Logps = torch.cat([self._group_logps(group) for group in self._groups]).cpu().numpy()
        return values

    def _group_logps(self, rows: Sequence[TokenRow]) -> Tensor:
        sequences = [(row.prompt_ids, completion) for row in rows for completion in row.completions]
        longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        seen, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for i, (prompt, completion) in enumerate(sequences):
            end = len(prompt) + len(completion)
            ids[i, :end] = torch.tensor(prompt + completion)
            seen[i, :end] = 1
            wanted[i, len(prompt) : end] = True
        ids, seen, wanted = ids.to(DEVICE), seen.to(DEVICE), wanted.to(DEVICE)
        logits = self._lm(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1].float()
        token_logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        return (token_logps * wanted[:, 1:]).sum(1).view(len(rows), 2)
