"""What a stage reads, checked in about a second: nothing here loads torch, Ray or a model."""

from __future__ import annotations

from collections.abc import Sequence

from raydpo.config.schema import RunFile
from raydpo.data.formats import Field, check_files, pair_fields, prompt_fields, sft_fields
from raydpo.data.paths import expand_paths
from raydpo.evaluate.scorers import check_scorer
from raydpo.model.directory import model_config, model_directory
from raydpo.model.tokenizer_files import check_tokenizer_files
from raydpo.runtime.layout import Layout
from raydpo.runtime.own_files import refuse_own_output
from raydpo.runtime.provenance import check_prepared
from raydpo.sample.limits import check_positions


def check_inputs(run: RunFile, stage: str) -> None:
    """Raise UserError for anything a stage reads that is missing or of no use, before anything heavy is imported."""
    if stage == "report":
        return  # it reads what the others have left, also when models and data have gone
    model_directory(run.model.path)
    refuse_own_output(run, "model.path", [run.model.path])
    check_tokenizer_files(run.model.path, needs_eos=run.data.append_eos)
    if run.reference.model:
        model_directory(run.reference.model)
        if run.reference.model != str(Layout(run).sft_export):  # which is the default, too
            refuse_own_output(run, "reference.model", [run.reference.model])
    if stage in ("sft", "run") and run.sft:
        _check_files(run, "sft.train", run.sft.train, sft_fields(run.sft.prompt, run.sft.completion))
    if stage in ("sample", "run") and run.sample:
        check_scorer(run.sample.scorer)
        _check_files(run, "sample.prompts", run.sample.prompts, prompt_fields(run.sample.column))
    if stage in ("evaluate", "train", "run") and run.evaluate:
        check_scorer(run.evaluate.scorer)
        _check_files(run, "evaluate.prompts", run.evaluate.prompts, prompt_fields(run.evaluate.column))
    if stage in ("prepare", "run") and run.data.train:
        columns = run.data.columns
        fields = pair_fields(columns.prompt, columns.chosen, columns.rejected)
        _check_files(run, "data.train", run.data.train, fields)
        _check_files(run, "data.held_out", run.data.held_out, fields)
    if stage in ("sample", "evaluate", "train", "run") and (run.sample or run.evaluate):
        check_positions(run.model.path, model_config(run.model.path), run.sampler)
    if stage in ("precompute", "train"):
        check_prepared(run)


def _check_files(run: RunFile, key: str, patterns: Sequence[str], fields: Sequence[Field]) -> None:
    paths = expand_paths(patterns)
    refuse_own_output(run, key, paths)
    for path in check_files(paths, fields, run.data.ignore):
        print(f"{key}: {path} holds no rows and is left out", flush=True)
