"""What the run file, and the files that it names, ask of evaluations today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from raydpo.config.schema import RunFile
from raydpo.data.prompts import contents_hash
from raydpo.data.shards import TokenManifest
from raydpo.errors import UserError
from raydpo.evaluate.origin import VERSION, Origin
from raydpo.evaluate.records import Records, read_records
from raydpo.model import version
from raydpo.model.directory import weights_digest
from raydpo.model.tokenizer_files import tokenizer_digest
from raydpo.reference.dataset import MANIFEST
from raydpo.reward.functions import scorer_source
from raydpo.train.mark import read_mark
from raydpo.workspace.identity import train_identity_now
from raydpo.workspace.layout import Layout


def origin_of(run: RunFile, model: str) -> Origin:
    """What an evaluation of a model that begins now is made from. Raises UserError for whatever of it is not there."""
    digests: dict[str, Any] = {part: tell() for part, tell in _digests(run).items()}
    mark = read_mark(Path(model))
    return Origin(weights=weights_digest(model), training=mark.identity if mark else None, **_settings(run), **digests)


class Asked:
    """The parts of an Origin as they would be today. May be sent to other processes.

    A part is lacking, and is not compared, where what tells it has gone: a report can be made after models, exports,
    prompts or tokens were removed, and shows what was measured on them while they were there.
    """

    def __init__(self, run: RunFile) -> None:
        self._layout = Layout(run)
        self._parts = _settings(run) | _told(_digests(run))
        self._training = _training(run)

    def of(self, step: int) -> dict[str, Any]:
        """What is asked of the evaluation of a step; step 0 is the reference, whoever has trained that."""
        if step == 0:
            return self._parts | _told({"weights": partial(weights_digest, self._layout.reference_model)})
        model = str(self._layout.export(step))
        return self._parts | self._training | _told({"weights": partial(weights_digest, model)})

    def records(self) -> Records:
        """The run's evaluations, those that do not answer what is asked apart."""
        return read_records(self._layout.evaluations, self.of)


def _settings(run: RunFile) -> dict[str, Any]:
    """What the run file says itself, and what prepare has held out."""
    settings: dict[str, Any] = {
        "seed": run.seed,
        "dtype": run.model.dtype,
        "fp32_head": run.model.fp32_head,
        "sampler_device": "cuda" if run.sampler.gpus else "cpu",
        "scoring_version": version.VERSION,
        "date": run.data.date,
        "record_version": VERSION,
        **_held_out(run),
    }
    if run.evaluate:
        settings |= {
            "decoding": run.evaluate.decoding,
            "scorer": run.evaluate.scorer,
            "device": "cuda" if run.evaluate.gpus else "cpu",
        }
    return settings


def _training(run: RunFile) -> dict[str, str]:
    """Whose exports are the run's own."""
    with suppress(UserError):
        if identity := train_identity_now(run):
            return {"training": identity.digest}
    return {}


def _held_out(run: RunFile) -> dict[str, Any]:
    manifest = Layout(run).held_out_tokens / MANIFEST
    if manifest.exists():
        return {"held_out": TokenManifest.read(manifest).digest}
    return {} if run.data.held_out or run.data.held_out_fraction else {"held_out": None}


def _digests(run: RunFile) -> dict[str, Callable[[], str]]:
    """What is read from files, by part; each raises UserError where they are not there."""
    layout = Layout(run)
    asked = run.evaluate
    digests: dict[str, Callable[[], str]] = {
        "reference": partial(weights_digest, layout.reference_model),
        "tokenizer": partial(tokenizer_digest, layout.start_model),
    }
    if asked:
        prompts = partial(contents_hash, asked.prompts, asked.column, limit=asked.limit, ignore=run.data.ignore)
        digests |= {"prompts": prompts, "scorer_source": partial(scorer_source, asked.scorer)}
    return digests


def _told(digests: Mapping[str, Callable[[], str]]) -> dict[str, Any]:
    """Those of the digests that can be told today."""
    told: dict[str, Any] = {}
    for part, tell in digests.items():
        with suppress(UserError):
            told[part] = tell()
    return told
