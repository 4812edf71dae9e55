"""What a stage reads, checked before its work: nothing here loads Ray or a model, and torch only where losses are used.

It takes about a second, and the time to read the weights of the models once where the stage uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from raydpo.config.schema import Data, Reward, RunFile, Sampler, Sft
from raydpo.data.paths import expand_paths
from raydpo.data.reading import check_files
from raydpo.data.rows import Convert, Field, RowFormat, prompt_fields
from raydpo.errors import UserError
from raydpo.model.directory import model_config, weights_digest
from raydpo.model.families import check_has_classifier
from raydpo.model.model_files import check_model_files
from raydpo.model.tokenizer_files import check_tokenizer_files, read_chat_template, tokenizer_digest
from raydpo.reference.dataset import MANIFEST
from raydpo.rollout.limits import check_positions
from raydpo.stages.judge_inputs import judge_checks
from raydpo.stages.values import RunValues
from raydpo.track.say import say
from raydpo.workspace.asked import EvaluationSettings
from raydpo.workspace.identity import TrainingSettings, check_resumable_now
from raydpo.workspace.layout import Layout
from raydpo.workspace.objective import check_tokens_are_kept, preference_objective
from raydpo.workspace.own_files import refuse_own_output
from raydpo.workspace.prepared import check_pairs, check_trainable_pairs
from raydpo.workspace.provenance import TokenSource, check_made_from
from raydpo.workspace.rewards import check_reward
from raydpo.workspace.rows import RowSettings, check_format, check_rewarded, given_rows, given_sft_rows, training_rows
from raydpo.workspace.temporary import check_temporary

Check = Callable[[], object]


def check_inputs(run: RunFile, stage: str) -> None:
    """Raise UserError for the first thing that a stage reads and that is missing or of no use."""
    for check in input_checks(run, stage):
        check()


def input_checks(run: RunFile, stage: str) -> Iterator[Check]:
    """All that must hold of what a stage reads. Each raises UserError, and needs none of the others to have passed."""
    values = RunValues(run)
    layout = values.layout
    start = run.model.path
    check_rows = partial(_check_files, layout, run.data.ignore)
    if stage in ("judge", "run") and run.judge:
        yield from judge_checks(run.judge, run.evaluate, run.data.ignore)
    # Those two load no model of the run, and may be asked for where there is none any more.
    if stage not in ("report", "judge"):
        yield check_temporary
        reference = run.reference.model
        whole = stage != "prepare"  # which uses the tokenizer alone
        yield from _model_checks(layout, "model.path", start, whole=whole)
        yield partial(check_tokenizer_files, start, needs_eos=run.data.append_eos)
        if run.data.chat_template:
            yield partial(read_chat_template, run.data.chat_template)
        if reference and reference != str(layout.sft_export):
            yield from _model_checks(layout, "reference.model", reference, whole=whole)
        if run.sft and stage not in ("sft", "run"):
            yield partial(_check_sft_export, str(layout.sft_export), values.token_source("sft"), values.sft_training())
    if stage in ("sft", "run") and run.sft:
        yield partial(_check_sft_rows, layout, run.data, run.sft)
    if stage in ("sample", "run") and run.sample:
        yield partial(check_reward, values.rewards(), run.sample.reward, start)
        yield partial(check_rows, "sample.prompts", run.sample.prompts, prompt_fields(run.sample.column))
    if stage in ("evaluate", "train", "run") and run.evaluate:
        yield partial(check_reward, values.rewards(), run.evaluate.reward, start)
        for name, prompts in run.evaluate.all_sets.items():
            key = f"evaluate.sets.{name}.prompts" if name else "evaluate.prompts"
            fields = prompt_fields(prompts.column)
            if prompts.reference_column:
                fields += (Field("completion", prompts.reference_column),)
            yield partial(check_rows, key, prompts.prompts, fields)
    if stage in ("bestofn", "run") and run.best_of_n:
        asked = values.rated_for_best_of_n()
        for reward in {asked.reward, *(run.best_of_n.rewards or [])}:
            yield partial(check_reward, values.rewards(), reward, start)
        yield partial(check_rows, "best_of_n.prompts", asked.prompts, prompt_fields(asked.column))
    unprepared = stage == "reward" and not (layout.train_tokens / MANIFEST).exists()
    if (stage in ("prepare", "run") or unprepared) and run.data.train:
        yield partial(_check_given_rows, layout, run.data, "data.train", run.data.train)
        yield partial(_check_given_rows, layout, run.data, "data.held_out", run.data.held_out)
    if stage in ("sample", "evaluate", "bestofn", "train", "run") and (run.sample or run.evaluate):
        yield partial(_check_positions, run.model.path, run.sampler)
    if stage in ("train", "run"):
        yield from loss_checks(run, values.rows())
    if stage in ("reward", "run") and run.reward:
        yield from _reward_checks(values, run.reward)
    if stage in ("precompute", "train"):
        yield from _token_checks(values.rows(), trained_on=stage == "train")


def loss_checks(run: RunFile, rows: RowSettings) -> Iterator[Check]:
    """That the loss takes what is set of it, and that its rows and the reference's values are such as it needs."""
    yield partial(check_tokens_are_kept, run.train, kept=run.reference.keep_token_logps)
    yield partial(_check_rows_for_loss, rows)


def _reward_checks(values: RunValues, reward: Reward) -> Iterator[Check]:
    """Of what a reward model starts from and learns from."""
    layout = values.layout
    if reward.model and reward.model != str(layout.sft_export):
        yield from _model_checks(layout, "reward.model", reward.model, whole=True)
    rows = values.rows()
    yield partial(_check_rows_for_reward, rows, reward)
    yield partial(_check_classifier, reward.model or values.base_model)
    if reward.model:
        yield partial(_check_same_tokens, reward.model, values.base_model)


def _check_classifier(model: str) -> None:
    check_has_classifier(model, str(model_config(model).get("model_type")))


def _check_same_tokens(model: str, start: str) -> None:
    if tokenizer_digest(model) != tokenizer_digest(start):
        raise UserError(
            f"reward.model: {model} has another tokenizer than {start}, whose tokens the prepared rows are made of; "
            "name a model with the same tokenizer, or leave reward.model out."
        )


def _token_checks(rows: RowSettings, *, trained_on: bool) -> Iterator[Check]:
    """Of tokens that prepare has left."""
    yield partial(check_pairs, rows)
    if trained_on or rows.train_is_said:
        yield partial(check_trainable_pairs, rows)


def doctor_checks(rows: RowSettings, evaluations: EvaluationSettings) -> Iterator[Check]:
    """What else shows of a run without a cluster. Loads torch and Ray."""
    from raydpo.model.load import check_loadable
    from raydpo.runtime.pools.sampling import check_sampling

    start = evaluations.model.path
    for model in dict.fromkeys((start, evaluations.reference.model or start)):
        yield partial(check_loadable, model)
    sections = [rows.sample, evaluations.evaluate]
    # With the model that the run starts from, because the sft stage passes its tokenizer on.
    yield partial(check_sampling, start, rows.data, evaluations.sampler, sections)
    if (rows.layout.train_tokens / MANIFEST).exists():
        yield from _token_checks(rows, trained_on=True)


def _model_checks(layout: Layout, key: str, model: str, *, whole: bool) -> Iterator[Check]:
    """whole: of its weights, too."""
    yield partial(refuse_own_output, layout, key, [model])
    yield partial(_check_model if whole else check_model_files, model)


def _check_model(path: str) -> None:
    check_model_files(path)
    weights_digest(path)  # reads every number, and is asked for again when the run is named


def _check_sft_export(path: str, settings: TokenSource, training: TrainingSettings) -> None:
    if not Path(path).exists():
        raise UserError(f"{path} is not there: the sft stage makes the model that others start from; run it first.")
    check_model_files(path)
    tokens = training.tokens
    if (tokens / MANIFEST).exists():  # what sft has trained on tells whether it is this run's
        check_made_from(settings, tokens)
        check_resumable_now(training)


def _check_positions(model: str, sampler: Sampler) -> None:
    check_positions(model, model_config(model), sampler)


def _check_rows_for_loss(rows: RowSettings) -> None:
    if found := _rows_that_tell(rows):
        check_format(found, preference_objective(rows.train))


def _check_rows_for_reward(rows: RowSettings, reward: Reward) -> None:
    if found := _rows_that_tell(rows):
        check_rewarded(found, reward)


def _rows_that_tell(rows: RowSettings) -> RowFormat | None:
    """What rows are; None where their files have gone since they were prepared. Who reads them says so."""
    try:
        return training_rows(rows.data, rows.sample)
    except UserError:
        return None


def _check_sft_rows(layout: Layout, data: Data, sft: Sft) -> None:
    rows = given_sft_rows(sft, data.ignore)
    _check_files(layout, data.ignore, "sft.train", sft.train, rows.fields, rows.convert, keep_bad=data.max_bad_rows > 0)


def _check_given_rows(layout: Layout, data: Data, key: str, patterns: Sequence[str]) -> None:
    if patterns:
        rows = given_rows(data, patterns)
        keep_bad = data.max_bad_rows > 0
        _check_files(layout, data.ignore, key, patterns, rows.fields, rows.convert, keep_bad=keep_bad)


def _check_files(
    layout: Layout,
    ignore: Sequence[str],
    key: str,
    patterns: Sequence[str],
    fields: Sequence[Field],
    convert: Convert | None = None,
    *,
    keep_bad: bool = False,
) -> None:
    paths = expand_paths(patterns)
    refuse_own_output(layout, key, paths)
    for path in check_files(paths, fields, ignore, convert, keep_bad=keep_bad):
        say(f"{key}: {path} holds no rows and is left out")
