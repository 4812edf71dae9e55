"""What the run file, and the files that it names, ask of evaluations today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from raydpo.config.schema import Data, Evaluate, Model, PromptSet, Rating, Reference, Sampler, Train
from raydpo.data.answers import read_answers
from raydpo.data.prompts import contents_hash, texts_hash
from raydpo.data.shards import TokenManifest
from raydpo.errors import UserError
from raydpo.evaluate.origin import VERSION, Origin
from raydpo.evaluate.records import Records, read_records
from raydpo.model import version
from raydpo.model.directory import weights_digest
from raydpo.model.tokenizer_files import tokenizer_digest
from raydpo.reference.dataset import MANIFEST
from raydpo.train.mark import read_mark
from raydpo.workspace.identity import TrainingSettings, identity_now
from raydpo.workspace.layout import Layout
from raydpo.workspace.rewards import RewardSettings, reward_source


@dataclass(frozen=True)
class EvaluationSettings:
    """What a run file says of its evaluations: what they measure, by what, and on what. May be sent to other processes.

    Without an evaluate section nothing is measured, and records that are there are still read.
    """

    layout: Layout
    seed: int
    model: Model
    data: Data
    reference: Reference
    sampler: Sampler
    training: TrainingSettings  # whose exports are evaluated
    train: Train  # names the loss, by which held-out pairs are ranked
    evaluate: Evaluate | None
    rating: Rating
    prompt_set: str = ""  # whose prompts `evaluate` has; empty for the section's own
    folder: str = ""  # where records are below the others; empty for the section's own prompts and temperature

    @property
    def directory(self) -> Path:
        """Of its records."""
        return self.layout.evaluations / self.folder

    @property
    def where(self) -> str:
        """Which prompts and temperature, in words."""
        assert self.evaluate
        return f"{self.prompt_set or 'own'} prompts at temperature {self.evaluate.decoding.temperature:g}"

    def everywhere(self) -> list[EvaluationSettings]:
        """The settings on each set of prompts at each temperature alone; on the section's own prompts and at its own
        temperature first.
        """
        asked = self.evaluate
        if asked is None:
            return [self]
        settings = [
            replace(self, evaluate=_alone(asked, prompts, temperature), prompt_set=name, folder=f"{name}@{temperature}")
            for name, prompts in asked.all_sets.items()
            for temperature in asked.all_temperatures
        ]
        return [replace(settings[0], folder=""), *settings[1:]]

    @property
    def rewards(self) -> RewardSettings:
        """How its samples are rated."""
        return RewardSettings(self.layout, self.model, self.rating)


def _alone(asked: Evaluate, prompts: PromptSet, temperature: float) -> Evaluate:
    decoding = asked.decoding.model_copy(update={"temperature": temperature})
    own = {name: getattr(prompts, name) for name in PromptSet.model_fields}
    return asked.model_copy(update={**own, "decoding": decoding, "sets": {}, "temperatures": []})


def origin_of(settings: EvaluationSettings, model: str) -> Origin:
    """What an evaluation of a model that begins now is made from. Raises UserError for whatever of it is not there."""
    digests: dict[str, Any] = {part: tell() for part, tell in _digests(settings).items()}
    mark = read_mark(Path(model))
    training = mark.identity if mark else None
    return Origin(weights=weights_digest(model), training=training, **_said(settings), **digests)


def reference_answers(settings: EvaluationSettings) -> list[str]:
    """The reference answer to each of the prompts, in their order; none without evaluate.reference_column."""
    asked = settings.evaluate
    if asked is None or asked.reference_column is None:
        return []
    ignore = settings.data.ignore
    return read_answers(asked.prompts, asked.column, asked.reference_column, limit=asked.limit, ignore=ignore)


class OriginsToday:
    """The parts of an Origin as they would be today. May be sent to other processes.

    A part is lacking, and is not compared, where what tells it has gone: a report can be made after models, exports,
    prompts or tokens were removed, and shows what was measured on them while they were there.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self._settings = settings
        self._layout = settings.layout
        self._parts = _said(settings) | _told(_digests(settings))
        self._training = _training(settings.training)

    def of(self, step: int) -> dict[str, Any]:
        """What is asked of the evaluation of a step; step 0 is the reference, whoever has trained that."""
        if step == 0:
            return self._parts | _told({"weights": partial(weights_digest, self._layout.reference_model)})
        model = str(self._layout.export(step))
        return self._parts | self._training | _told({"weights": partial(weights_digest, model)})

    def records(self) -> Records:
        """The run's evaluations, those that do not answer what is asked apart."""
        found = read_records(self._settings.directory, self.of)
        return replace(found, where=self._settings.where) if self._settings.folder else found


def records_everywhere(settings: EvaluationSettings) -> list[Records]:
    """On each set of prompts at each temperature, in the order of `everywhere`."""
    return [OriginsToday(each).records() for each in settings.everywhere()]


def _said(settings: EvaluationSettings) -> dict[str, Any]:
    """What the run file says itself, and what prepare has held out."""
    said: dict[str, Any] = {
        "seed": settings.seed,
        "dtype": settings.model.dtype,
        "fp32_head": settings.model.fp32_head,
        "sampler_device": "cuda" if settings.sampler.gpus else "cpu",
        "scoring_version": version.VERSION,
        "date": settings.data.date,
        "record_version": VERSION,
        **_held_out(settings),
    }
    if asked := settings.evaluate:
        said |= {
            "decoding": asked.decoding,
            "scorer": asked.reward,
            "device": "cuda" if asked.pool.gpus else "cpu",
        }
        if asked.reference_column is None:
            said["answers"] = None
    return said


def _training(settings: TrainingSettings) -> dict[str, str]:
    """Whose exports are the run's own."""
    with suppress(UserError):
        if identity := identity_now(settings):
            return {"training": identity.digest}
    return {}


def _held_out(settings: EvaluationSettings) -> dict[str, Any]:
    if settings.folder:
        return {"held_out": None}  # pairs are ranked once, whatever prompts are sampled
    manifest = settings.layout.held_out_tokens / MANIFEST
    if manifest.exists():
        return {"held_out": TokenManifest.read(manifest).digest}
    data = settings.data
    return {} if data.held_out or data.held_out_fraction else {"held_out": None}


def _digests(settings: EvaluationSettings) -> dict[str, Callable[[], str]]:
    """What is read from files, by part; each raises UserError where they are not there."""
    layout = settings.layout
    digests: dict[str, Callable[[], str]] = {
        "reference": partial(weights_digest, layout.reference_model),
        "tokenizer": partial(tokenizer_digest, layout.start_model, settings.data.chat_template),
    }
    if asked := settings.evaluate:
        ignore = settings.data.ignore
        prompts = partial(contents_hash, asked.prompts, asked.column, limit=asked.limit, ignore=ignore)
        digests |= {"prompts": prompts, "scorer_source": partial(reward_source, settings.rewards, asked.reward)}
        if asked.reference_column:
            digests["answers"] = lambda: texts_hash(reference_answers(settings))
    return digests


def _told(digests: Mapping[str, Callable[[], str]]) -> dict[str, Any]:
    """Those of the digests that can be told today."""
    told: dict[str, Any] = {}
    for part, tell in digests.items():
        with suppress(UserError):
            told[part] = tell()
    return told
