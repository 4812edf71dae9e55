"""A model that answers line by line, for a person who wants to see what was trained.

It generates with transformers and not with vLLM: an engine takes half a minute or more to start and pays that back over
hundreds of prompts, while a chat asks one at a time, on whatever device is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, TextStreamer
from transformers.utils.logging import disable_progress_bar

from raydpo.data.messages import Messages
from raydpo.errors import UserError, reason
from raydpo.model.directory import model_config, positions
from raydpo.model.model_files import check_model_files
from raydpo.model.tokenizer import load_row_tokenizer

disable_progress_bar()  # loading is short, and a chat may be read by a program


@dataclass(frozen=True)
class Speech:
    """How an answer is drawn. The same speech, conversation and model give the same answer."""

    temperature: float = 1.0  # 0 is greedy
    seed: int = 0
    max_tokens: int = 256


class ChatModel:
    """A causal language model with its tokenizer. Raises UserError for a directory that holds no such model."""

    def __init__(self, path: str, *, dtype: str = "auto") -> None:
        """dtype: float32, bfloat16, or auto for that of the files."""
        check_model_files(path)
        self.path = path
        # A template that asks for the date is told today's, as it would be in use.
        self._tokenizer = load_row_tokenizer(path, date.today())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._lm: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"model {path!r} cannot be loaded ({reason(error)}); export it again, whole.") from error
        self._positions = positions(model_config(path))

    @property
    def has_template(self) -> bool:
        """Whether it answers messages; else it goes on from a text."""
        return bool(self._tokenizer.raw.chat_template)

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Ids that the answer follows: the whole conversation, or without a template the last message's text alone."""
        if not self.has_template:
            return self._tokenizer.encode_prompt(messages[-1]["content"]) or [self._tokenizer.start_id()]
        return self._tokenizer.encode_prompt(self._tokenizer.chat.prompt(messages))

    def answer(self, messages: Messages, speech: Speech, show: Callable[[str], None]) -> str:
        """Generate what follows the messages, handing each piece of text to `show` as it comes; returns all of it.

        Raises UserError where the conversation leaves no position for an answer.
        """
        ids = self.prompt_ids(messages)
        room = speech.max_tokens if self._positions is None else min(speech.max_tokens, self._positions - len(ids))
        if room < 1:
            raise UserError(
                f"the conversation has {len(ids)} tokens and {self.path} reads {self._positions}; /reset begins anew."
            )
        streamer = _Pieces(self._tokenizer.raw, show)
        prompt = torch.tensor([ids], device=self._lm.device)
        settings = self._generation(speech, room)
        with torch.random.fork_rng():
            torch.manual_seed(speech.seed)
            self._lm.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, streamer=streamer
            )
        return "".join(streamer.pieces)

    def _generation(self, speech: Speech, max_tokens: int) -> GenerationConfig:
        """From the whole distribution, as raydpo samples: the model's own top_k or penalties would hide what it is."""
        stops = sorted(self._tokenizer.stop_ids)
        sampling = {"temperature": speech.temperature, "top_k": 0, "top_p": 1.0} if speech.temperature else {}
        settings = GenerationConfig(
            do_sample=speech.temperature > 0,
            max_new_tokens=max_tokens,
            eos_token_id=stops or None,
            pad_token_id=stops[0] if stops else 0,
            **sampling,
        )
        self._lm.generation_config = settings  # what settings leave open, generate would take from the model's own
        return settings


class _Pieces(TextStreamer):
    """Keeps the pieces of an answer and hands them on."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pieces: list[str] = []
        self._show = show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with text that further tokens do not change."""
        self.pieces.append(text)
        self._show(text)
