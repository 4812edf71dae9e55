"""`raydpo reference convert`: values that an earlier raydpo kept by row become values by completion, and none is lost.

The old layout names pairs and not their completions, so the run's prepared tokens are asked which they are: any two
completions of a row, because the pairs of a group used to be rows of their own. Pairs of other runs stay where they are
until their run file comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raydpo.data.completions import completion_ids, pair_ids
from raydpo.data.shards import read_shard
from raydpo.errors import UserError
from raydpo.reference.dataset import Dataset
from raydpo.reference.index import Asked, Bools, Ids, as_arrow, as_numpy
from raydpo.reference.old_layout import by_completion
from raydpo.reference.store import Store
from raydpo.workspace.prepared import prepared_datasets
from raydpo.workspace.rows import RowSettings

_NONE = np.zeros(0, "S16")


@dataclass(frozen=True)
class Converted:
    """What became of the pairs of the old layout, each counted once."""

    store: str
    pairs: int  # the run's, converted now or before
    completions: int  # of these pairs
    others: int  # pairs of other runs; they stay in the old layout
    damaged: int  # shards that do not count, see `raydpo reference verify`


class _RunPairs:
    """Any two completions of the run's rows, by the row_id that they had as a pair."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        names: list[pa.FixedSizeBinaryArray] = []
        completions: list[Ids] = []
        for dataset in datasets:
            for path in dataset.shards:
                table = read_shard(path)
                of_pairs, which = pair_ids(table, np.arange(table.num_rows))
                names.append(of_pairs)
                completions.append(as_numpy(completion_ids(table))[which])
        self._asked = Asked(pa.concat_arrays(names))
        self._completions = np.concatenate(completions)

    def find(self, row_ids: Ids) -> tuple[Bools, Ids]:
        """Which pairs of the old layout are among the run's, and the completions of these, better and worse in turn."""
        at, found = self._asked.find(row_ids)
        return found, self._completions[self._asked.first[at[found]]].ravel()


def convert_values(rows: RowSettings, store: Store) -> Converted:
    """Make shards by completion of the run's pairs in the store's old layout. Nothing is scored, nothing removed.

    Takes no cluster. It may be ended and begun again: a shard is noted as converted when its values are committed.
    UserError where the store has nothing of the old layout.
    """
    pairs = _RunPairs(prepared_datasets(rows))
    old = store.old_layout()
    if not old.markers():
        raise UserError(
            f"the reference store {store.address} holds no shard of the old layout, so there is nothing to convert; "
            "where there should be one, `raydpo reference verify` says what is wrong with it."
        )
    store.claim()
    whole, damages = old.survey()
    taken = [_NONE]
    left = [_NONE]
    completions = [_NONE]
    for (name, marker), table in zip(whole.items(), old.read(list(whole)), strict=True):
        row_ids = as_numpy(table["row_id"])
        found, ids = pairs.find(row_ids)
        if found.any():
            shard = by_completion(table.filter(pa.array(found)), as_arrow(ids))
            store.commit(shard, marker.source, verified=marker.verified)
            old.mark_converted(name, row_ids[found], ids)
        taken.append(row_ids[found])
        left.append(row_ids[~found])
        completions.append(ids)
    return Converted(store.address, _different(taken), _different(completions), _different(left), len(damages))


def _different(ids: Sequence[Ids]) -> int:
    return len(np.unique(np.concatenate(ids)))
