"""What one evaluation found, as a value and as a JSON file, and which of the files answer what is asked today."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from raydpo.errors import UserError
from raydpo.evaluate.origin import VERSION, Origin
from raydpo.evaluate.stats import Interval, mean_interval, share_interval
from raydpo.evaluate.text import distinct, self_bleu
from raydpo.storage.files import whole_file

T = TypeVar("T")


SHARES = frozenset({"exact_match"})  # numbers of samples that are 0 or 1


@dataclass(frozen=True)
class RatedSample:
    """One sampled completion of one held-out prompt, and what is measured of it by name.

    Always there are `reward`, `kl` and `length`. kl is Σ_t KL(π(·|x, y<t) ‖ π_ref(·|x, y<t)) over the completion's
    tokens, in nats; never negative. length counts tokens, with the one that ended the completion. finish_reason is
    vLLM's: "stop", or "length" for a completion that was cut at max_tokens.
    """

    prompt: str
    completion: str
    finish_reason: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class RankedPair:
    """A held-out pair: whether its chosen has the higher implicit reward (a tie has not), and whose prompt it is of."""

    prompt: Hashable
    right: bool


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found about one model; step 0 is the reference.

    measures: the mean of every number that the samples have; `cut`, the share of completions that reached max_tokens;
    `pair_accuracy`, the share of held-out pairs whose chosen has the higher implicit reward, where there are pairs;
    and of all samples together, so with bounds that are the value itself, `distinct_2` and `self_bleu`.
    """

    step: int
    model: str
    made_from: Origin
    measures: dict[str, Interval]
    samples: list[RatedSample]  # in the order of the prompts
    seconds: dict[str, float]  # where the time went
    prompt_set: str = ""  # a name of evaluate.sets; empty for the section's own prompts

    def column(self, name: str) -> list[float]:
        """A number of every sample, in their order."""
        return [sample.numbers[name] for sample in self.samples]

    @property
    def sequence_kl(self) -> Interval | None:
        """KL(π ‖ π_ref) of completions up to max_tokens, in nats; None where the samples do not come from π.

        Over samples of π the summed KLs have the sequence KL for their mean. Over samples that temperature or top_p
        have changed they are an average along other texts, which is a divergence of no two distributions.
        """
        return self.measures["kl"] if self.made_from.draws_policy else None


def summarise(
    step: int,
    model: str,
    samples: Sequence[RatedSample],
    *,
    made_from: Origin,
    seconds: Mapping[str, float],
    pairs: Sequence[RankedPair] = (),
    prompt_set: str = "",
) -> Evaluation:
    """The evaluation of a model, with 95 % intervals; a prompt that comes twice is one group of two samples.

    Raises UserError for fewer than two prompts, ValueError for a number that is not finite and for a reference that has
    left itself.
    """
    prompts = [sample.prompt for sample in samples]
    check_enough(prompts)
    moved = next((sample for sample in samples if step == 0 and sample.numbers["kl"] != 0), None)
    if moved:
        raise ValueError(f"step 0 is the reference and its KL is 0, but {moved.prompt!r} has {moved.numbers['kl']}")
    return Evaluation(
        step=step,
        model=model,
        made_from=made_from,
        measures=_measures(samples, prompts, pairs),
        samples=list(samples),
        seconds=dict(seconds),
        prompt_set=prompt_set,
    )


def _measures(
    samples: Sequence[RatedSample], prompts: Sequence[str], pairs: Sequence[RankedPair]
) -> dict[str, Interval]:
    measures = {}
    for name in samples[0].numbers:
        interval = share_interval if name in SHARES else mean_interval
        measures[name] = interval([sample.numbers[name] for sample in samples], prompts)
    measures["cut"] = share_interval([sample.finish_reason == "length" for sample in samples], prompts)
    if pairs:
        measures["pair_accuracy"] = share_interval([p.right for p in pairs], [p.prompt for p in pairs])
    texts = [sample.completion for sample in samples]
    together = {"distinct_2": distinct(texts, 2), "self_bleu": fmean(self_bleu(texts))}
    groups = len(set(prompts))
    return measures | {name: Interval(value, value, value, len(texts), groups) for name, value in together.items()}


@dataclass(frozen=True)
class Records:
    """The evaluations of a run that answer what is asked of it, by rising step, and why the others do not."""

    valid: list[Evaluation]
    left_out: dict[int, list[str]]  # step -> the parts of its origin that differ
    where: str = ""  # which prompts and temperature, in words; empty for the section's own

    def notice(self) -> str:
        """One line on what is left out; empty where nothing is."""
        if not self.left_out:
            return ""
        steps = [f"step {step} ({', '.join(parts)})" for step, parts in self.left_out.items()]
        where = f" ({self.where})" if self.where else ""
        return (
            f"evaluations left out{where}, made from something else than the run file says now: {'; '.join(steps)}. "
            "`raydpo evaluate` makes those anew whose exports are there."
        )


def check_enough(prompts: Sequence[str], key: str = "evaluate") -> None:
    """Raise UserError for prompts that give no interval. key: where the run file names them."""
    different = len(set(prompts))
    if different < 2:
        raise UserError(
            f"{key}.prompts: {len(prompts)} prompts, of which {different} differ, give no interval; evaluate at "
            f"least 2 ({key}.limit says how many are taken)."
        )


def write_evaluation(evaluation: Evaluation, directory: Path) -> Path:
    """Write `<directory>/step-000120.json`, replacing an earlier evaluation of the same step."""
    path = directory / _file_name(evaluation.step)
    with whole_file(path) as temporary:
        temporary.write_bytes(_JSON.dump_json(evaluation, indent=1))
    return path


def read_record(directory: Path, step: int, made_from: Origin) -> Evaluation | None:
    """The evaluation of a step where it was made from just this; None where it is another one, or not there."""
    path = directory / _file_name(step)
    if not path.exists():
        return None
    _, found = _read(path)
    return found if found and found.made_from == made_from else None


def folders_of(directory: Path) -> list[Path]:
    """The directory itself, for the section's own prompts and temperature, and below it a folder for each other."""
    return [directory, *sorted(path for path in directory.glob("*") if path.is_dir())]


def read_records(directory: Path, asked: Callable[[int], Mapping[str, Any]]) -> Records:
    """The evaluations of a directory, held against what is asked of each step; none for one that is not there.

    asked gives the parts of an Origin that are to be compared. Raises UserError naming the file that is not an
    evaluation.
    """
    valid: list[Evaluation] = []
    left_out: dict[int, list[str]] = {}
    for step, found in sorted(map(_read, directory.glob("*.json")), key=lambda item: item[0]):
        parts = found.made_from.differences(asked(step)) if found else ["another version of raydpo"]
        if parts:
            left_out[step] = parts
        elif found:
            valid.append(found)
    return Records(valid, left_out)


@dataclass(frozen=True)
class _Version:
    record_version: int = 1


@dataclass(frozen=True)
class _Head:
    """What records of every version have."""

    step: int
    made_from: _Version = _Version()


_HEAD = TypeAdapter(_Head)
_JSON = TypeAdapter(Evaluation)


def _file_name(step: int) -> str:
    return f"step-{step:06d}.json"


def _read(path: Path) -> tuple[int, Evaluation | None]:
    """The step of a record, and the record unless it is of another version."""
    head = _validated(_HEAD, path)
    if path.name != _file_name(head.step):
        raise UserError(f"{path} holds step {head.step}; name it {_file_name(head.step)} or delete it")
    return head.step, _validated(_JSON, path) if head.made_from.record_version == VERSION else None


def _validated(adapter: TypeAdapter[T], path: Path) -> T:
    try:
        return adapter.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(f"{path} is not an evaluation ({what}); delete it and evaluate again") from error
