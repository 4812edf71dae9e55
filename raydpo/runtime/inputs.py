"""What a stage reads, checked in about a second: nothing here loads torch, Ray or a model."""

from __future__ import annotations

from collections.abc import Sequence

from raydpo.config.schema import RunFile
from raydpo.data.formats import Field, check_first_rows, expand_paths, pair_fields, prompt_fields, sft_fields
from raydpo.evaluate.scorers import check_scorer
from raydpo.model.directory import model_config, model_directory
from raydpo.sample.limits import check_positions


def check_inputs(run: RunFile, stage: str) -> None:
    """Raise UserError for anything a stage reads that is missing or of no use, before anything heavy is imported."""
    model_directory(run.model.path)
    if run.reference.model:
        model_directory(run.reference.model)
    if stage in ("sft", "run") and run.sft:
        _check_files(run.sft.train, sft_fields(run.sft.prompt, run.sft.completion))
    if stage in ("sample", "run") and run.sample:
        check_scorer(run.sample.scorer)
        _check_files(run.sample.prompts, prompt_fields(run.sample.column))
    if stage in ("evaluate", "train", "run") and run.evaluate:
        check_scorer(run.evaluate.scorer)
        _check_files(run.evaluate.prompts, prompt_fields(run.evaluate.column))
    if stage in ("prepare", "run") and run.data.train:
        columns = run.data.columns
        _check_files(
            [*run.data.train, *run.data.held_out], pair_fields(columns.prompt, columns.chosen, columns.rejected)
        )
    if stage in ("sample", "evaluate", "train", "run") and (run.sample or run.evaluate):
        check_positions(run.model.path, model_config(run.model.path), run.sampler)


def _check_files(patterns: Sequence[str], fields: Sequence[Field]) -> None:
    for path in expand_paths(patterns):
        check_first_rows(path, fields)
