"""How rows go through a model: packed where that is exact, padded where it is not.

A probe decides which, once, when a model is loaded: both layouts must give the log-probs that the model itself
gives for one completion at a time. So a recurrent layer, an attention that ignores ours or an unknown step between
hidden states and logits is found before anything is computed from it.

Legend: C completions, R sequences of a prompt and one completion, L the longest, T packed tokens, M completion
positions, D hidden.
"""

from __future__ import annotations

from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.model import attention, flex
from raydpo.model.batch import Batch

BACKENDS = {attention.NAME, flex.NAME}
# Kinds of layers whose attention can be ours. Whether it then computes the same is for the probe to say.
KNOWN_LAYERS = {"full_attention", "sliding_attention"}

# Weak, so that a note about a model does not keep it in memory.
_why_padded: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def packing_obstacle(lm: PreTrainedModel) -> str:
    """Why a model takes no other attention; empty when it does. The probe shows whether it then computes the same."""
    if not lm._supports_attention_backend:
        return "it takes no attention but its own"
    others = set(getattr(lm.config.get_text_config(), "layer_types", None) or []) - KNOWN_LAYERS
    return f"it has layers of the kind {', '.join(sorted(others))}" if others else ""


def use_packed(lm: PreTrainedModel, backend: str) -> PreTrainedModel:
    """Have rows go through the model packed, with one of BACKENDS."""
    lm.set_attn_implementation(backend)
    return lm


def use_padded(lm: PreTrainedModel, *, because: str) -> PreTrainedModel:
    """Have rows go through the model as padded sequences, under its own attention. layout_name tells the reason."""
    _why_padded[lm] = because
    return lm


def share_layout(other: PreTrainedModel, lm: PreTrainedModel) -> PreTrainedModel:
    """Have rows go through another model of the same layers as they go through `lm`, whose configuration it shares."""
    assert other.config is lm.config
    if lm in _why_padded:
        _why_padded[other] = _why_padded[lm]
    return other


def attention_of(lm: PreTrainedModel) -> str:
    """The name of the model's attention, which transformers keeps to itself."""
    return str(lm.config._attn_implementation)


def is_packed(lm: PreTrainedModel) -> bool:
    """Whether the model's attention is one of ours."""
    return attention_of(lm) in BACKENDS


def layout_name(lm: PreTrainedModel) -> str:
    """How rows go through this model, and why not faster: a phrase for the log."""
    own = attention_of(lm)
    if is_packed(lm):
        return f"packed rows ({own})"
    return f"padded sequences ({own}), exact, but slower than packed rows: {_why_padded.get(lm, 'its own attention')}"


def backbone(lm: PreTrainedModel) -> nn.Module:
    """The layers from token ids to hidden states; a model may have others, for images."""
    decoder = lm.get_decoder()
    found: nn.Module = lm.model if decoder is lm else decoder  # Llama 4's text model takes itself for its decoder
    return found


def packed_states(backbone: nn.Module, batch: Batch) -> Tensor:
    """Hidden states [M, D] that predict the completion tokens: each prompt is read once, nothing is padded."""
    return _read_packed(backbone, batch)[batch.source]


def packed_last_states(backbone: nn.Module, batch: Batch) -> Tensor:
    """Hidden states [C, D] at the last token of each completion, which have read the whole of it."""
    return _read_packed(backbone, batch)[batch.last()]


def _read_packed(backbone: nn.Module, batch: Batch) -> Tensor:
    """The hidden state of every packed token, [T, D]."""
    states = backbone(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=None,
        use_cache=False,
        bounds=batch.bounds,
    ).last_hidden_state
    return states[0]


def padded_states(backbone: nn.Module, batch: Batch) -> Tensor:
    """Hidden states [M, D] as packed_states gives them, from R sequences padded to [R, L].

    Any causal model can do this. It is more work: a prompt is read once for each of its completions.
    """
    sequences, sources = _sequences(batch.bounds)
    states = _read_padded(backbone, batch, sequences)
    return states.flatten(0, 1)[_flat(sources, width=states.shape[1]).to(states.device)]


def padded_last_states(backbone: nn.Module, batch: Batch) -> Tensor:
    """Hidden states [C, D] as packed_last_states gives them, from as many padded sequences."""
    sequences, _ = _sequences(batch.bounds)
    states = _read_padded(backbone, batch, sequences)
    ends = torch.tensor([len(each) - 1 for each in sequences], device=states.device)
    return states[torch.arange(len(sequences), device=states.device), ends]


def _read_padded(backbone: nn.Module, batch: Batch, sequences: list[Tensor]) -> Tensor:
    """The hidden states [R, L, D] of sequences that are given as packed positions."""
    device = batch.input_ids.device
    lengths = torch.tensor([len(each) for each in sequences], device=device)
    index = nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(device)
    seen = torch.arange(index.shape[1], device=device) < lengths[:, None]
    states: Tensor = backbone(
        input_ids=batch.input_ids[0, index], attention_mask=seen.long(), use_cache=False
    ).last_hidden_state
    return states


def _sequences(bounds: attention.Bounds) -> tuple[list[Tensor], list[range]]:
    """Per completion: the packed positions of its prompt and itself, and where in them its predictors stand."""
    sequences = []
    sources = []
    for start, *marks in bounds:
        prompt = torch.arange(start, marks[0])
        for begin, end in pairwise(marks):
            sequences.append(torch.cat((prompt, torch.arange(begin, end))))
            sources.append(range(len(prompt) - 1, len(prompt) + end - begin - 1))
    return sequences, sources


def _flat(sources: list[range], *, width: int) -> Tensor:
    """Where the predictors of the completion tokens stand among the R * L positions of all sequences, [M]."""
    return torch.cat([torch.arange(each.start, each.stop) + i * width for i, each in enumerate(sources)])
