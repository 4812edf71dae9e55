"""What one evaluation found, as a value and as a JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from raydpo.config.errors import UserError
from raydpo.config.files import whole_file
from raydpo.evaluate.stats import Interval, mean_interval, share_interval


@dataclass(frozen=True)
class Sample:
    """One sampled completion of one held-out prompt.

    kl is its sequence log-ratio log π(y|x) - log π_ref(y|x) in nats, whose mean over samples of π estimates the
    sequence KL; a single one may be negative. length counts tokens. finish_reason is vLLM's: "stop" or "length".
    """

    prompt: str
    completion: str
    reward: float
    kl: float
    length: int
    finish_reason: str


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found about one model; step 0 is the reference."""

    step: int
    model: str
    reward: Interval
    kl: Interval  # nats per sequence
    length: Interval  # tokens
    pair_accuracy: Interval | None  # share of held-out pairs whose chosen has the higher implicit reward
    samples: list[Sample]  # in the order of the prompts
    seconds: dict[str, float]  # where the time went


def summarise(
    step: int,
    model: str,
    samples: Sequence[Sample],
    *,
    seconds: Mapping[str, float],
    pairs_ranked_right: Sequence[bool] | None = None,
) -> Evaluation:
    """The evaluation of a model: 95 % intervals over its samples, one a prompt.

    pairs_ranked_right holds one entry a held-out pair; without pairs the accuracy is None. Raises UserError for fewer
    than two samples, ValueError for a number that is not finite and for a reference that has left itself.
    """
    if len(samples) < 2:
        raise UserError(f"{len(samples)} samples at step {step} give no interval: evaluate at least 2 prompts")
    moved = next((sample for sample in samples if step == 0 and sample.kl != 0), None)
    if moved:
        raise ValueError(f"step 0 is the reference and its KL is 0, but {moved.prompt!r} has {moved.kl}")
    return Evaluation(
        step=step,
        model=model,
        reward=mean_interval([sample.reward for sample in samples]),
        kl=mean_interval([sample.kl for sample in samples]),
        length=mean_interval([sample.length for sample in samples]),
        pair_accuracy=share_interval(pairs_ranked_right) if pairs_ranked_right else None,
        samples=list(samples),
        seconds=dict(seconds),
    )


def write_evaluation(evaluation: Evaluation, directory: Path) -> Path:
    """Write `<directory>/step-000120.json`, replacing an earlier evaluation of the same step."""
    path = directory / _file_name(evaluation.step)
    with whole_file(path) as temporary:
        temporary.write_bytes(_JSON.dump_json(evaluation, indent=1))
    return path


def read_evaluations(directory: Path) -> list[Evaluation]:
    """All evaluations of a directory by rising step; none for a directory that is not there.

    Raises UserError naming the file that is not an evaluation.
    """
    return sorted((_read(path) for path in directory.glob("*.json")), key=lambda evaluation: evaluation.step)


_JSON = TypeAdapter(Evaluation)


def _file_name(step: int) -> str:
    return f"step-{step:06d}.json"


def _read(path: Path) -> Evaluation:
    try:
        evaluation = _JSON.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(f"{path} is not an evaluation ({what}); delete it and evaluate again") from error
    if path.name != _file_name(evaluation.step):
        raise UserError(f"{path} holds step {evaluation.step}; name it {_file_name(evaluation.step)} or delete it")
    return evaluation
