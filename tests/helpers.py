"""What several tests need: a tokenizer of our own making, in the variants that real models have."""

from __future__ import annotations

from functools import cache

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jobs.assets import BOS, EOS, train_tokenizer
from raydpo.data.tokenizer import RowTokenizer

TEXTS = (
    "The film is a quiet triumph, and its hero is a good man.",
    "A tepid, talky film that never finds its way home.",
    "It's a film to see twice: once for the story, once for the light.",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@cache
def tiny_tokenizer(template: str = f"{BOS} $A", *, bos: bool = True, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens.

    template: what it puts around a text by itself, say "$A" for nothing. bos=False: it has no BOS token, as GPT-2.
    """
    tokenizer = train_tokenizer(TEXTS, vocab_size=320)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    if not bos:
        tokenizer.bos_token = None
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def row_tokenizer(template: str = f"{BOS} $A", *, bos: bool = True, chat: bool = False) -> RowTokenizer:
    """The same, as rows are tokenised with it."""
    return RowTokenizer(tiny_tokenizer(template, bos=bos, chat=chat))
