"""What judges said of a run's samples: who won, how often, and how far the judges are to be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from raydpo.errors import UserError
from raydpo.evaluate.agreement import Agreement, PositionBias, agreement, position_bias
from raydpo.evaluate.length_control import length_controlled_win_rate
from raydpo.evaluate.stats import Interval, share_interval
from raydpo.storage.files import whole_file

VERSION = 1  # of the file
Outcome = Literal["win", "tie", "loss"]
Place = Literal["first", "second", "tie"]
_WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class Said:
    """One answer of a judge: which place won and whether that was the run's sample; None for no choice."""

    place: Place | None
    outcome: Outcome | None
    words: str


@dataclass(frozen=True)
class Judged:
    """A sample and another completion of its prompt, as a judge sees them."""

    prompt: str
    longer_by: int  # characters of the sample beyond those of the other
    outcome: Outcome | None  # of the sample; None: not every order was answered with a choice
    arrived: bool  # False: there are questions left to ask
    answers: list[Said]  # none where both texts are the same, which is a tie


@dataclass(frozen=True)
class Subject:
    """Whose samples are judged."""

    step: int
    temperature: float
    weights: str  # digest of the model's
    against: str  # what with
    prompt_set: str = ""  # a name of evaluate.sets; empty for the section's own prompts


@dataclass(frozen=True)
class WinRate:
    """How often samples won. Ties count half; what was not answered counts nowhere but in its own number."""

    wins: int
    ties: int
    losses: int
    unanswered: int  # a refusal, nonsense, or a question that the endpoint calls bad
    lacking: int  # not asked, or without reply so far
    rate: Interval | None  # Wilson's over prompts; None without outcomes
    length_controlled: Interval | None  # None where fewer than two prompts have an outcome


@dataclass(frozen=True)
class Contest:
    """The samples of one evaluation before one judge."""

    judge: str
    subject: Subject
    found: WinRate
    judged: list[Judged]


@dataclass(frozen=True)
class JudgeRecord:
    """A judge over all it was asked."""

    name: str
    what: str  # the model, or the reward function
    question: str | None  # digest of the question's text
    bias: PositionBias
    orders: Agreement  # between its answers in the one order and in the other
    unanswered: Interval | None  # share of answers without a choice
    lacking: int  # questions
    requests: int  # answered ones, over all times that the judge was asked
    input_tokens: int
    output_tokens: int
    cost: float


@dataclass(frozen=True)
class Between:
    """How far two judges agree on the same comparisons; or a judge and people, or people among each other."""

    a: str
    b: str
    found: Agreement


@dataclass(frozen=True)
class Judgements:
    """All of a run."""

    contests: list[Contest] = field(default_factory=list)
    judges: list[JudgeRecord] = field(default_factory=list)
    agreements: list[Between] = field(default_factory=list)
    version: int = VERSION


def win_rate(judged: Sequence[Judged]) -> WinRate:
    """The win rate of samples, each a trial of its prompt."""
    counted = [(_WORTH[each.outcome], each) for each in judged if each.outcome is not None]
    outcomes = Counter(each.outcome for each in judged)
    values = [worth for worth, _ in counted]
    prompts = [each.prompt for _, each in counted]
    lacking = sum(not each.arrived for each in judged)
    several = len(set(prompts)) > 1
    lengths = [each.longer_by for _, each in counted]
    return WinRate(
        wins=outcomes["win"],
        ties=outcomes["tie"],
        losses=outcomes["loss"],
        unanswered=outcomes[None] - lacking,
        lacking=lacking,
        rate=share_interval(values, prompts) if values else None,
        length_controlled=length_controlled_win_rate(values, lengths, prompts) if several else None,
    )


def bias_of(judged: Sequence[Judged]) -> PositionBias:
    """Whether the judge of these prefers a place."""
    return position_bias([[said.place for said in each.answers] for each in judged], [each.prompt for each in judged])


def agreement_of_orders(judged: Sequence[Judged]) -> Agreement:
    """How far a judge agrees with itself when the places are swapped; nothing where it was asked in one order."""
    both = [each for each in judged if len(each.answers) == 2]
    one, other = ([each.answers[i].outcome for each in both] for i in (0, 1))
    return agreement(one, other, [each.prompt for each in both])


def unanswered_of(judged: Sequence[Judged]) -> Interval | None:
    """Share of the answers that hold no choice; those that have not arrived are no answers."""
    answers = [(said.place is None, each.prompt) for each in judged if each.arrived for said in each.answers]
    return share_interval([none for none, _ in answers], [prompt for _, prompt in answers]) if answers else None


def between_judges(a: Sequence[Contest], b: Sequence[Contest]) -> Agreement:
    """How far two judges agree on the same contests, by outcome."""
    one, other = ([each for contest in contests for each in contest.judged] for contests in (a, b))
    return agreement([each.outcome for each in one], [each.outcome for each in other], [each.prompt for each in one])


def write_judgements(judgements: Judgements, path: Path) -> None:
    """Write the file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(_JSON.dump_json(judgements, indent=1))


def read_judgements(path: Path) -> Judgements:
    """The file's content; nothing where it is absent or of another version. UserError where it is no such file."""
    if not path.exists():
        return Judgements()
    try:
        content = path.read_bytes()
        if _VERSION.validate_json(content).version != VERSION:
            return Judgements()
        return _JSON.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} holds no judgements ({first['msg']}); delete it and judge again.") from error


@dataclass(frozen=True)
class _Head:
    version: int


_VERSION = TypeAdapter(_Head)
_JSON = TypeAdapter(Judgements)
