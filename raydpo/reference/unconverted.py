"""Pairs whose values a store holds in the layout of an earlier raydpo only: they are not to be scored again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from raydpo.data.completions import completion_begins, pair_ids
from raydpo.data.shards import read_shard
from raydpo.errors import UserError
from raydpo.reference.dataset import Dataset
from raydpo.reference.old_layout import OldShards
from raydpo.reference.store import Store


def check_converted(store: Store, datasets: Iterable[Dataset]) -> None:
    """Raise UserError where the old layout has values of completions that the store lacks.

    Without it, they would be scored again, and nobody would know that they need not be.
    """
    old = store.old_layout()
    if not old.markers():
        return
    pairs = sum(_unconverted(store, old, dataset) for dataset in datasets)
    if pairs:
        raise UserError(
            f"the reference store {store.address} holds the values of {pairs} of the run's pairs in the layout of an "
            "earlier raydpo; run `raydpo reference convert` with this run file, which takes them over and scores "
            "nothing again."
        )


def _unconverted(store: Store, old: OldShards, dataset: Dataset) -> int:
    """How many pairs of a dataset they are; one that occurs twice counts twice."""
    lacking = np.flatnonzero(np.isnan(store.known(dataset.completion_ids)))
    names: list[pa.FixedSizeBinaryArray] = [pa.array([], pa.binary(16))]
    for path, completions in dataset.where(lacking):
        table = read_shard(path)
        rows = np.unique(np.searchsorted(completion_begins(table), completions, side="right") - 1)
        of_pairs, which = pair_ids(table, rows)
        # What the store has of both completions is not lacking, however the pair stands in the old layout.
        names.append(of_pairs.filter(pa.array(np.isin(which, completions).any(axis=1))))
    return int(old.holds(pa.concat_arrays(names)).sum())
