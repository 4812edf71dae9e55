"""`raydpo chat`: talk to an export in the terminal, or to two side by side. No cluster, and no vLLM."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_chat(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    summary = "talk to an export, or to two side by side; reads a pipe too"
    command = parsers.add_parser("chat", help=summary, description=summary.capitalize() + ".")
    command.add_argument("models", metavar="EXPORT", nargs="+", help="one or two directories of models")
    command.add_argument("--temperature", default="1.0", help="0 is greedy (1.0)")
    command.add_argument("--max-tokens", type=int, default=256, help="of an answer (256)")
    command.add_argument("--seed", type=int, default=0, help="the same input has the same answer (0)")
    command.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="as saved (auto)")


def run_chat(arguments: argparse.Namespace) -> int:
    """Talk until the input ends and return the exit code. Raises UserError."""
    from raydpo.cli.conversation import HELP, Conversation, temperature_of, typed_lines
    from raydpo.errors import UserError

    temperature = temperature_of(arguments.temperature)
    if len(arguments.models) > 2 or len(set(arguments.models)) < len(arguments.models):
        raise UserError("give one model, or two different ones.")
    if arguments.max_tokens < 1:
        raise UserError(f"--max-tokens {arguments.max_tokens} leaves no answer; give at least 1.")

    from raydpo.rollout.chat import ChatModel, Speech  # loads torch

    models = [ChatModel(path, dtype=arguments.dtype) for path in arguments.models]
    names = [Path(path).name for path in arguments.models]
    if len(set(names)) < len(names):  # exports of two runs at one step
        names = list(arguments.models)
    print(HELP)
    for name, model in zip(names, models, strict=True):
        if not model.has_template:
            print(f"{name} has no chat template: it goes on from each line as from a text of its own")
    speech = Speech(temperature, arguments.seed, arguments.max_tokens)
    talk = Conversation(dict(zip(names, models, strict=True)), speech, lambda text: print(text, end="", flush=True))
    talk.follow(typed_lines())
    return 0
