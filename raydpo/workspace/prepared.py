"""What models and training ask of prepared tokens, said while the tokens are all there is: before a scorer starts."""

from __future__ import annotations

from raydpo.config.schema import Train, Training
from raydpo.data.limits import ModelLimits
from raydpo.data.shards import TokenManifest
from raydpo.errors import UserError
from raydpo.model.model_files import model_limits
from raydpo.reference.dataset import MANIFEST, Dataset, open_dataset
from raydpo.workspace.identity import order_of
from raydpo.workspace.layout import Layout
from raydpo.workspace.objective import preference_objective
from raydpo.workspace.provenance import check_prepared
from raydpo.workspace.rows import RowSettings, refuse_ties


def readers_of_pairs(layout: Layout) -> list[ModelLimits]:
    """What the policy and the reference can read."""
    return [model_limits(path) for path in dict.fromkeys((layout.start_model, layout.reference_model))]


def prepared_datasets(settings: RowSettings) -> list[Dataset]:
    """The train tokens and, where there are any, the held-out ones. UserError where they are not this run's."""
    check_prepared(settings)
    layout = settings.layout
    directories = [layout.train_tokens]
    if (layout.held_out_tokens / MANIFEST).exists():
        directories.append(layout.held_out_tokens)
    return [open_dataset(directory) for directory in directories]


def check_pairs(settings: RowSettings) -> None:
    """Raise UserError where the tokens of pairs are not this run's, or its models cannot read them."""
    check_prepared(settings)
    layout = settings.layout
    for directory in (layout.train_tokens, layout.held_out_tokens):
        if not (directory / MANIFEST).exists():
            continue
        extent = TokenManifest.read(directory / MANIFEST).extent
        for limits in readers_of_pairs(layout):
            limits.check(extent)


def check_trainable_pairs(settings: RowSettings) -> None:
    """Raise UserError where training could not take the tokens that prepare has left."""
    tokens = TokenManifest.read(settings.layout.train_tokens / MANIFEST)
    check_trainable(tokens, settings.train, "train")
    check_order(settings.train, tokens)


def check_order(train: Train, tokens: TokenManifest) -> None:
    """Raise UserError where the loss reads the order of all completions of a row, and some rows have ties in theirs."""
    if tokens.counts.with_ties:  # else no loss need be looked up, which loads torch
        refuse_ties(tokens, preference_objective(train))


def check_trainable(tokens: TokenManifest, training: Training, section: str) -> None:
    """Raise UserError for too few rows to fill a step, or one that is too long for a micro-batch."""
    order_of(training, seed=0, num_rows=tokens.rows, digest=tokens.digest)
    check_longest_row(tokens.extent.packed, training, section)


def check_longest_row(longest: int, training: Training, section: str) -> None:
    """Raise UserError where the longest row, prompt once and all completions, fits no micro-batch."""
    elastic = training.workers.min_count is not None
    need = 2 * longest if elastic else longest  # twice, so that any number of workers will do
    if need > training.tokens_per_microbatch:
        raise UserError(
            f"a row of {longest} tokens needs {section}.tokens_per_microbatch={need} or more"
            f"{', twice its length for workers.min_count' if elastic else ''}, and it is "
            f"{training.tokens_per_microbatch}; raise it, or lower data.max_length and prepare again."
        )
