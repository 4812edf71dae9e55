"""Tokenizers of the kinds that models have, trained on a few lines in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "The film is fine, and its hero (a good man) says 'it's so'.",
    "foo(bar) calls baz(qux): the answer is yes, or no.",
    "In 2024 it was 12 345 times as good as in 1999!\n\nA new line.  Two spaces.",
) * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<end>", "<pad>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _bytelevel_bpe(*, add_prefix_space: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=SPECIAL, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _with_split(pattern: str) -> Tokenizer:
    """Llama 3's kind: a pattern of its own before the bytes, with digits in threes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=SPECIAL, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _sentencepiece_bpe() -> Tokenizer:
    """Llama 2's kind: no pre-tokenizer, a dummy prefix by the normalizer, bytes for unknown letters."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=[*SPECIAL, *BYTES])
    )
    tokenizer = Tokenizer.from_str(learner.to_str())
    tokenizer.model.byte_fallback = True
    tokenizer.model.unk_token = "<unk>"
    tokenizer.model.fuse_unk = True
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _metaspace_bpe(scheme: str) -> Tokenizer:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    learner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=[*SPECIAL, *BYTES])
    )
    learner.model.byte_fallback = True
    learner.model.unk_token = "<unk>"
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    learner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return learner


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: _bytelevel_bpe(add_prefix_space=False),
    "byte-level, prefix space": lambda: _bytelevel_bpe(add_prefix_space=True),
    "split, byte-level": lambda: _with_split(LLAMA_3),
    "sentencepiece": _sentencepiece_bpe,
    "metaspace always": lambda: _metaspace_bpe("always"),
    "metaspace first": lambda: _metaspace_bpe("first"),
    "metaspace never": lambda: _metaspace_bpe("never"),
    "unigram": _unigram,
}


@cache
def tokenizer_of(kind: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, with <s> and </s>; <end> is a special token that nothing declares to be the end."""
    backend = KINDS[kind]()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if chat_template:
        tokenizer.chat_template = chat_template
    return tokenizer
