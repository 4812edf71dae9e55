"""Laws of a chat: what is told to whom, what commands change, and that the same input has the same answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.cli import main
from raydpo.cli.conversation import HELP, Conversation, printable
from raydpo.data.messages import Messages
from raydpo.errors import UserError
from raydpo.rollout.chat import ChatModel, Speech
from tests.helpers import tiny_tokenizer

pytestmark = pytest.mark.unit


class Echo:
    """Answers how much it was told, and by which speech."""

    def __init__(self) -> None:
        self.told: list[tuple[list[str], Speech]] = []

    def answer(self, messages: Messages, speech: Speech, show: Callable[[str], None]) -> str:
        self.told.append(([message["content"] for message in messages], speech))
        show("yes")
        return "yes"


def talk(*lines: str, models: int = 1) -> tuple[list[Echo], str]:
    echoes = [Echo() for _ in range(models)]
    shown: list[str] = []
    Conversation({f"m{i}": echo for i, echo in enumerate(echoes)}, Speech(), shown.append).follow(lines)
    return echoes, "".join(shown)


def test_a_model_is_told_what_was_said_before_until_a_reset() -> None:
    [echo], _ = talk("one", "two", "/reset", "three")
    assert [told for told, _ in echo.told] == [["one"], ["one", "yes", "two"], ["three"]]


def test_two_models_are_told_the_same_and_stand_under_their_names() -> None:
    echoes, shown = talk("one", models=2)
    assert echoes[0].told == echoes[1].told
    assert shown == "[m0] yes\n[m1] yes\n"


def test_commands_change_how_the_next_answer_is_drawn_and_quit_ends() -> None:
    [echo], _ = talk("/temperature 0.5", "/seed 7", "one", "/quit", "two")
    assert [speech for _, speech in echo.told] == [Speech(temperature=0.5, seed=7)]


@pytest.mark.parametrize("mistake", ["/temperature hot", "/temperature -1", "/temperature nan", "/seed x", "/what"])
def test_a_mistake_is_said_and_changes_nothing(mistake: str) -> None:
    [echo], shown = talk(mistake, "one")
    assert [speech for _, speech in echo.told] == [Speech()]
    assert HELP in shown or "for example" in shown


def test_sampled_text_does_not_steer_the_terminal() -> None:
    assert printable("a\x1b[31m\rb\n\tc") == "a[31mb\n\tc"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    path = tmp_path_factory.mktemp("chat") / "model"
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return ChatModel(str(path))


def said(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def test_the_same_input_has_the_same_answer_and_another_seed_another(model: ChatModel) -> None:
    pieces: list[str] = []
    first = model.answer(said("a film"), Speech(max_tokens=12), pieces.append)
    assert "".join(pieces) == first
    assert model.answer(said("a film"), Speech(max_tokens=12), pieces.append) == first
    assert len({model.answer(said("a film"), Speech(seed=n, max_tokens=12), pieces.append) for n in range(4)}) > 1


def test_greedy_has_no_seed(model: ChatModel) -> None:
    answers = {model.answer(said("a film"), Speech(0.0, seed, 12), lambda piece: None) for seed in range(3)}
    assert len(answers) == 1


def test_without_a_template_each_line_is_a_text_of_its_own(model: ChatModel) -> None:
    assert not model.has_template
    history = [*said("one"), {"role": "assistant", "content": "yes"}, *said("a film")]
    assert model.prompt_ids(history) == model.prompt_ids(said("a film"))


def test_a_text_that_fills_the_model_is_refused(model: ChatModel) -> None:
    with pytest.raises(UserError, match="/reset"):
        model.answer(said("film " * 60), Speech(), lambda piece: None)


@pytest.mark.parametrize("arguments", [["."], ["a", "b", "c"], ["a", "a"], ["a", "--temperature", "hot"]])
def test_what_is_no_model_is_refused(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["chat", *arguments]) == 2
