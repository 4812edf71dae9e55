"""What judges read, checked before anything is asked or paid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from raydpo.config.schema import AskedJudge, Evaluate, Judge
from raydpo.data.answers import read_labels
from raydpo.data.paths import expand_paths
from raydpo.data.reading import check_files
from raydpo.data.rows import Field
from raydpo.errors import UserError
from raydpo.model.model_files import check_model_files
from raydpo.reward.address import remote_address
from raydpo.reward.functions import check_function
from raydpo.reward.questions import read_question


def judge_checks(judge: Judge, evaluate: Evaluate | None, ignore: Sequence[str]) -> Iterator[Callable[[], object]]:
    """All that must hold of a judge section. Each raises UserError, and needs none of the others to have passed."""
    if judge.against == "chosen":
        assert evaluate  # the run file sees to it
        for name in ("", *judge.sets):
            prompts = evaluate.all_sets[name]
            fields = (Field("prompt", prompts.column), Field("completion", judge.column))
            yield partial(_check_answers, prompts.prompts, fields, ignore)
    elif judge.against != "reference":
        yield partial(_check_run, judge.against)
    if judge.labels:
        yield partial(read_labels, judge.labels)
    for name, asked in judge.judges.items():
        if asked.reward:
            yield partial(check_function, asked.reward)
        else:
            yield partial(read_question, asked.question)
        if asked.model:
            yield partial(remote_address, name, asked)
        if asked.serve:
            yield partial(_check_chat_model, name, asked)


def _check_answers(patterns: Sequence[str], fields: Sequence[Field], ignore: Sequence[str]) -> None:
    check_files(expand_paths(patterns), fields, ignore)


def _check_run(directory: str) -> None:
    if not (Path(directory) / "evaluations").is_dir():
        raise UserError(
            f"judge.against: {directory} has no evaluations; give reference, chosen, or the output_dir of a run that "
            "was evaluated."
        )


def _check_chat_model(name: str, asked: AskedJudge) -> None:
    assert asked.serve
    check_model_files(asked.serve)
    directory = Path(asked.serve)
    configured = directory / "tokenizer_config.json"
    if (directory / "chat_template.jinja").exists() or "chat_template" in configured.read_text(encoding="utf-8"):
        return
    raise UserError(
        f"judge {name}: {asked.serve} has no chat template, so it cannot be asked a question; serve a chat model."
    )
