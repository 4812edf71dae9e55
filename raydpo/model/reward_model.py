"""Reward models made of language models, and loaded from exports: as transformers' sequence classifiers.

A reward model is kept as the family's own class with `num_labels=1`, so that transformers, vLLM's pooling and
reward-bench read it. An ensemble of K heads is trained with K rows in `score`; its export's `score` is their mean,
which gives the mean reward because the head is linear, and the K rows lie beside it.

Legend: C completions, K heads, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from raydpo.errors import UserError, reason
from raydpo.model.batch import Batch
from raydpo.model.families import check_has_classifier
from raydpo.model.layout import share_layout
from raydpo.model.load import DTYPES, load_model
from raydpo.model.probe import set_plain_attention
from raydpo.model.reward_card import CARD, RewardCard, read_card
from raydpo.model.reward_head import RewardHead, RewardModel
from raydpo.model.tokenizer import load_tokenizer, vocabulary_digest
from raydpo.model.tokenizer_files import stop_ids

SCORE = "score.weight"
HEADS = "ensemble/heads.safetensors"  # not beside the weights, of which vLLM reads every *.safetensors


def start_reward_model(
    path: str, *, dtype: str, heads: int, seed: int, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """A language model's layers with `heads` new heads, as its family's sequence classifier.

    The heads' weights are normal with variance 1 / (D + 1) (Stiennon et al. 2020; Huang et al. 2024), the same on every
    rank and others for each head. Raises UserError as load_model does, and for a family without such a class.
    """
    lm = load_model(path, dtype=dtype, device=device)
    # Padding is what transformers looks for to find a text's last token: it must not be what a text ends with.
    lm.config.pad_token_id = padding_id(load_tokenizer(path), stop_ids(path))
    classifier = _classifier(lm, path)
    width = classifier.score.in_features
    draws = torch.Generator().manual_seed(seed)
    return _with_heads(classifier, torch.randn(heads, width, generator=draws) / math.sqrt(width + 1))


def load_reward_model(path: str, *, dtype: str, device: torch.device | str = "cpu") -> RewardModel:
    """The reward model of an export, as it was trained, or a sequence classifier that others have made.

    Raises UserError where the directory holds neither, or one that is not whole.
    """
    card = read_card(path) if (Path(path) / CARD).exists() else None
    with _without_report():
        lm = load_model(path, dtype=dtype, device=device, headless=True)
    weight = _read_heads(Path(path))
    heads = card.heads if card else 1
    if len(weight) != heads:
        raise UserError(
            f"reward model {path!r} has {len(weight)} heads, and should have {heads}; export it again, with "
            "num_labels=1."
        )
    return RewardModel(_with_heads(_classifier(lm, path), weight))


def is_reward_model(lm: PreTrainedModel) -> bool:
    """Whether a model is one of those that this file makes."""
    return isinstance(getattr(lm, "score", None), RewardHead)


def padding_id(tokenizer: PreTrainedTokenizerBase, stops: list[int]) -> int | None:
    """A special token that no completion ends with, the tokenizer's own for padding if it can be; None without one.

    transformers' classifiers read the last token that is no padding. Where a model pads with its EOS, as SmolLM2 does,
    they would pass over the EOS that the reward is read at.
    """
    ending = {tokenizer.eos_token_id, *stops}
    candidates = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    return next((each for each in candidates if each is not None and each not in ending), None)


def pad_as(tokenizer: PreTrainedTokenizerBase, lm: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Have a tokenizer pad with what a reward model takes for padding."""
    padding = lm.config.pad_token_id
    tokenizer.pad_token = None if padding is None else tokenizer.convert_ids_to_tokens(padding)
    return tokenizer


def own_rewards(path: Path, batch: Batch, *, dtype: str) -> Tensor:
    """The rewards [C], float32, that transformers' own class gives, for one completion at a time."""
    device = batch.input_ids.device
    lm = AutoModelForSequenceClassification.from_pretrained(path, dtype=DTYPES[dtype]).to(device).eval()
    set_plain_attention(lm)
    config = lm.config.get_text_config()
    padding = config.pad_token_id
    rewards = []
    with torch.no_grad():
        for start, *marks in batch.bounds:
            prompt = batch.input_ids[:, start : marks[0]]
            for begin, end in pairwise(marks):
                text = torch.cat((prompt, batch.input_ids[:, begin:end]), dim=1)
                # Without data.append_eos a completion may end with anything, also with what stands for padding.
                config.pad_token_id = None if text[0, -1] == padding else padding
                rewards.append(lm(input_ids=text, use_cache=False).logits[0, 0].float())
    return torch.stack(rewards)


def save_reward_model(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    state: Mapping[str, Tensor],
    *,
    identity: str,
    step: int,
) -> None:
    """Write weights as an export: of `lm` the class and the configuration are used, its own weights may be absent.

    An ensemble's heads are written beside their mean.
    """
    heads = state[SCORE]
    lm.save_pretrained(directory, state_dict=averaged(state))
    pad_as(tokenizer, lm).save_pretrained(directory)
    if len(heads) > 1:
        file = directory / HEADS
        file.parent.mkdir()
        save_file({SCORE: heads.contiguous()}, file)
    RewardCard("last", len(heads), vocabulary_digest(tokenizer), identity, step).write(directory)


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an export: those of the model, with the mean of the heads for the one head."""
    score = state[SCORE]
    return {**state, SCORE: score.float().mean(dim=0, keepdim=True).to(score.dtype)}


@contextmanager
def _without_report() -> Iterator[None]:
    """Within the block transformers keeps to itself that a language model has no use for the heads."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _read_heads(directory: Path) -> Tensor:
    """The heads of an export, [K, D]."""
    ensemble = directory / HEADS
    try:
        if ensemble.exists():
            return load_file(ensemble)[SCORE]
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                if SCORE in tensors.keys():  # noqa: SIM118, no mapping
                    return tensors.get_tensor(SCORE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"reward model {str(directory)!r} cannot be read ({error}); export it again, whole.") from error
    raise UserError(f"reward model {str(directory)!r} has no {SCORE}; export it again, whole.")


def _classifier(lm: PreTrainedModel, name: str) -> PreTrainedModel:
    """The family's sequence classifier around the layers of a language model, which are not copied."""
    config = deepcopy(lm.config)
    check_has_classifier(name, config.model_type)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except Exception as error:  # transformers' code for the family: anything may come out
        raise UserError(f"model {name!r}: its family's classifier cannot be made ({reason(error)}).") from error
    head = getattr(classifier, "score", None)
    same = type(classifier.base_model) is type(lm.base_model)
    if not same or not isinstance(head, nn.Linear) or head.bias is not None:
        raise UserError(
            f"model {name!r}: {type(classifier).__name__} of transformers has no linear head `score` on the layers of "
            f"{type(lm).__name__}, so that nobody could read the reward model; start from a family that has it."
        )
    setattr(classifier, classifier.base_model_prefix, lm.base_model)
    lm.config.num_labels = 1
    lm.config.architectures = [type(classifier).__name__]
    classifier.config = lm.config  # the layers read it: what is set of the one holds for the other
    return share_layout(classifier.eval(), lm)


def _with_heads(classifier: PreTrainedModel, weight: Tensor) -> PreTrainedModel:
    """Give a classifier these heads [K, D]."""
    embeddings = classifier.get_input_embeddings().weight
    head = RewardHead(weight.shape[1], len(weight)).to(embeddings.device, embeddings.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    classifier.score = head
    return classifier
