"""Rows whose values a store holds in the layout of an earlier raydpo only: they are not to be scored again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from raydpo.errors import UserError
from raydpo.reference.dataset import Dataset
from raydpo.reference.old_layout import OldShards
from raydpo.reference.store import Store


def check_converted(store: Store, datasets: Iterable[Dataset]) -> None:
    """Raise UserError where the old layout has values of rows whose completions the store lacks.

    Without it, they would be scored again, and nobody would know that they need not be.
    """
    old = store.old_layout()
    if not old.markers():
        return
    rows = sum(_unconverted(store, old, dataset) for dataset in datasets)
    if rows:
        raise UserError(
            f"the reference store {store.address} holds the values of {rows} of the run's rows in the layout of an "
            "earlier raydpo; run `raydpo reference convert` with this run file, which takes them over and scores "
            "nothing again."
        )


def _unconverted(store: Store, old: OldShards, dataset: Dataset) -> int:
    """How many rows of a dataset they are; one that occurs twice counts twice."""
    lacking = np.flatnonzero(np.isnan(store.known(dataset.completion_ids)))
    rows = np.unique(np.searchsorted(dataset.begins, lacking, side="right") - 1)
    return int(old.holds(dataset.row_ids.take(pa.array(rows))).sum())
