"""The probe that every model passes when it is loaded: our log-probs are its own, in training as in evaluation.

Legend: M completion positions, L tokens of one sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow
from raydpo.errors import UserError
from raydpo.model.batch import Batch
from raydpo.model.layout import attention_of, packing_obstacle, use_packed, use_padded
from raydpo.model.score import ScoringModel
from raydpo.model.version import backend_for

# |Δ logp| of a token, in nats, that rounding explains in any model. It explains more where logits are large or experts
# near a tie: so many times what one rounding of the embeddings does to the model's own log-probs. A tie moves a few
# tokens by much, a wrong mask most of them. So the smallest differences are compared with the smallest, and so on.
TOLERANCE = {torch.float64: 5e-3, torch.float32: 5e-3, torch.bfloat16: 0.05}
ROUNDINGS = 4

# How far a position sees, or how many it sees, in the words of the families. The probe's rows are longer than REACH.
REACHES = (
    "sliding_window",
    "attention_window_size",
    "window_size",
    "keep_window_size",
    "attention_chunk_size",
    "index_topk",
)
REACH = 4
ANOTHER = "Use another model, or another version of transformers."
SIZES = (7, 5, 3), (1, 2, 6), (13, 8, 5)  # tokens of each row's prompt and completions


def choose_layout(lm: PreTrainedModel, *, name: str) -> PreTrainedModel:
    """Set packed attention where it gives the model's own log-probs; else padded sequences, with the reason for it.

    Raises UserError when padded sequences do not give them either, when log-probs depend on later tokens, and when the
    model is another function in training than in evaluation.
    """
    obstacle = packing_obstacle(lm)
    if not obstacle:
        set_plain_attention(lm)
    probe = Probe(_short_sighted(lm), name)
    probe.check_causality()
    if not obstacle:
        backend = backend_for(lm.device.type)
        obstacle = probe.fault_of_packed_rows(backend)
    if not obstacle:
        return use_packed(lm, backend)
    probe.check_padded_sequences()
    return use_padded(lm, because=obstacle)


def set_plain_attention(lm: PreTrainedModel) -> None:
    """Have a model mean what it means under `eager`, because sdpa leaves Gemma 2's capping of scores out.

    Its attention stays as it is where `eager` fails, as it does for latent attention with fewer key-value heads.
    """
    loaded = attention_of(lm)
    lm.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            lm(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=lm.device), use_cache=False)
    except Exception:  # an attention that fails does so in any way
        lm.set_attn_implementation(loaded)


class Probe:
    """A few rows, and what a model itself says of them."""

    def __init__(self, lm: PreTrainedModel, name: str) -> None:
        self._lm = lm
        self._name = name
        self._batch = _probe_batch(int(lm.config.get_text_config().vocab_size), lm.device)
        try:
            self._own = _own_token_logps(lm, self._batch)
        except Exception as error:  # what a model of any make may raise
            reason = f"a text of a few tokens ends it with {_first_line(error)}. {ANOTHER}"
            raise self._refusal(reason) from error
        if not self._own.isfinite().all():
            raise self._refusal(f"its log-probs are not finite; {_weights_not_finite(lm)}. Export it again.")
        # Two patterns of rounding: what one of them happens to leave in place, the other moves.
        moved = torch.maximum(*(self._moved_by_rounding(every) for every in (1, 2)))
        self._limits = (ROUNDINGS * moved).clamp_min(TOLERANCE[lm.dtype])

    def check_causality(self) -> None:
        """Raise UserError when later tokens move earlier log-probs."""
        ids = self._batch.input_ids[:, : SIZES[0][0] + SIZES[0][1]]
        seen = ids.shape[1] // 2
        ends = torch.cat((ids[:, :seen], ids[:, seen:].flip(1)), dim=1)
        gap = float((_own_logps(self._lm, ids)[:seen] - _own_logps(self._lm, ends)[:seen]).abs().max())
        if not gap <= self._limits[-1]:
            raise self._refusal(
                f"other tokens at the end of a text move log-probs before them by {gap:.3g} nats, so it does not write "
                "from left to right. Use a causal language model."
            )

    def fault_of_packed_rows(self, backend: str) -> str:
        """Why packed rows are not the model's own function; empty when they are."""
        loaded = attention_of(self._lm)
        self._lm.set_attn_implementation(backend)
        try:
            gap = self._gap() or self._gap(training=True)
        except Exception as error:  # models stumble over an attention that they do not know in any way
            return f"packed rows end it with {_first_line(error)}"
        finally:
            self._lm.set_attn_implementation(loaded)
        return f"its log-probs in packed rows are off by {gap:.3g} nats" if gap else ""

    def check_padded_sequences(self) -> None:
        """Raise UserError when padded sequences do not give the model's own log-probs, or give others in training."""
        try:
            gap = self._gap()
        except Exception as error:
            reason = f"padded sequences end it with {_first_line(error)}. {ANOTHER}"
            raise self._refusal(reason) from error
        if gap:
            raise self._refusal(
                f"its own log-probs and those from its hidden states and output matrix differ by {gap:.3g} nats, so it "
                "does something to its logits that raydpo does not know. Use another model."
            )
        if gap := self._gap(training=True):
            raise self._refusal(
                f"in training its log-probs are others than in evaluation, by {gap:.3g} nats (in {self._noisy()}), so "
                "policy and reference would differ before the first step. Use another model, or switch that off where "
                "its config.json has a setting for it."
            )

    def _moved_by_rounding(self, every: int) -> Tensor:
        """|Δ logp| [M], ascending, of the model's own log-probs when its embeddings are rounded once more."""
        with _rounded_again(self._lm, every):
            return _ascending(_own_token_logps(self._lm, self._batch) - self._own)

    def _gap(self, *, training: bool = False) -> float:
        """max |Δ logp| of a token between the scoring path and the model itself; 0 where rounding explains it all."""
        self._lm.train(training)
        try:
            return self._unexplained()
        finally:
            self._lm.eval()

    def _unexplained(self) -> float:
        gaps = _ascending(ScoringModel(self._lm).token_logps(self._batch) - self._own)
        return 0.0 if (gaps <= self._limits).all() else float(gaps[-1])

    def _noisy(self) -> str:
        """The classes of modules that alone, switched to training, change the log-probs."""
        found = []
        for kind in {type(module) for module in self._lm.modules()}:
            for module in self._lm.modules():
                module.training = type(module) is kind
            if self._unexplained():
                found.append(kind.__name__)
        self._lm.eval()
        return ", ".join(sorted(found)) or "several modules together"

    def _refusal(self, reason: str) -> UserError:
        return UserError(f"model {self._name!r}: {reason}")


def _short_sighted(lm: PreTrainedModel) -> PreTrainedModel:
    """The model with the same weights, not copied, and every window, chunk and top-k cut to REACH positions.

    Short rows then reach beyond all of them. Only a number is another one; what is done with it is not.
    """
    config = deepcopy(lm.config)
    text = config.get_text_config()
    reaches = [each for each in REACHES if (getattr(text, each, None) or 0) > REACH]
    if not reaches:
        return lm
    for each in reaches:
        setattr(text, each, REACH)
    with no_init_weights():  # memory that nothing is written to costs nothing
        twin = type(lm)._from_config(config, dtype=lm.dtype)
    twin.load_state_dict(lm.state_dict(), assign=True)
    return switch_off_dropout(twin.to(lm.device).eval())


def switch_off_dropout(lm: PreTrainedModel) -> PreTrainedModel:
    """Switch off every dropout module, also one whose probability is not from the configuration."""
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return lm


@contextmanager
def _rounded_again(lm: PreTrainedModel, every: int) -> Iterator[None]:
    """Within the block `every` numbers in turn of the embeddings are off by the least that the dtype can tell apart."""

    def round_again(module: nn.Module, arguments: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
        turns = torch.arange(embeddings.shape[-1], device=embeddings.device) // every % 2
        return embeddings * (1 + turns * torch.finfo(embeddings.dtype).eps).to(embeddings.dtype)

    hook = lm.get_input_embeddings().register_forward_hook(round_again)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def _own_logps(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-probs [L, V] of every next token of a text [1, L], from the model's own forward pass."""
    logits = lm(input_ids=ids, use_cache=False).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)


def _own_token_logps(lm: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's own log-probs of the completion tokens, [M], from one sequence at a time."""
    pieces = []
    for start, *marks in batch.bounds:
        prompt = batch.input_ids[:, start : marks[0]]
        for begin, end in pairwise(marks):
            completion = batch.input_ids[:, begin:end]
            logps = _own_logps(lm, torch.cat((prompt, completion), dim=1))[prompt.shape[1] - 1 : -1]
            pieces.append(logps.gather(1, completion[0, :, None]).squeeze(1))
    return torch.cat(pieces)


def _weights_not_finite(lm: PreTrainedModel) -> str:
    broken = [name for name, weight in lm.named_parameters() if not weight.isfinite().all()]
    return f"weights with NaN or infinity: {broken[:5]}" if broken else "its weights are finite, so they overflow"


def _ascending(differences: Tensor) -> Tensor:
    return differences.abs().sort().values


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _probe_batch(vocab_size: int, device: torch.device) -> Batch:
    """Rows of random tokens, with prompts and completions of unequal length."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in rng.integers(vocab_size, size=count)]

    rows = [TokenRow(bytes(16), tokens(p), (tokens(a), tokens(b))) for p, a, b in SIZES]
    return Batch.from_pack(pack_rows(rows), device=device)
