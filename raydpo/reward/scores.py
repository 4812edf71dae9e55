"""Rewards, kept: whoever asks for the reward of a completion again, in whatever stage or run, gets it from here.

Layout: <root>/<digest of the reward's identity>/{reward.json, <batch>.parquet}. A file is whole or absent, and counts
by itself; its name is a hash of the completions in it. Any number of jobs may write: they add files and change none,
and where two have rated the same completion at once, both values are right, up to the rounding of their batches.

Legend: N completions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydpo.errors import UserError
from raydpo.storage.files import whole_file, write_json

SCHEMA = pa.schema(
    [
        ("id", pa.binary(16)),  # see raydpo.reward.kept
        ("reward", pa.float64()),
        ("members", pa.list_(pa.float64())),  # of an ensemble, whose mean the reward is; null for any other reward
    ]
)
IDENTITY = "reward.json"  # for people who look into the directory


class Scores:
    """The rewards of one identity. Holds ids and rewards in memory, 24 bytes for each of those in the directory."""

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.directory = root / digest
        self._identity = dict(identity)
        self._read: set[str] = set()  # names of the files that are in memory
        self._ids: NDArray[np.bytes_] = np.empty(0, "S16")  # sorted
        self._rewards: NDArray[np.float64] = np.empty(0)  # of these ids

    def known(self, ids: Sequence[bytes]) -> NDArray[np.float64]:
        """The rewards of completions, shape [N]; NaN where there is none yet.

        Raises UserError for a file that cannot be read.
        """
        self._read_new()
        asked = np.array(ids, "S16")
        if not len(self._ids) or not len(asked):
            return np.full(len(asked), np.nan)
        at = np.minimum(np.searchsorted(self._ids, asked), len(self._ids) - 1)
        return np.where(self._ids[at] == asked, self._rewards[at], np.nan)

    def keep(
        self, ids: Sequence[bytes], rewards: Sequence[float], members: Sequence[Sequence[float] | None] | None = None
    ) -> None:
        """Add completions, none of them twice. ValueError for a reward that is not finite."""
        if not all(map(math.isfinite, rewards)):
            raise ValueError(f"a reward for {self.directory} is not finite")
        if not (self.directory / IDENTITY).exists():
            write_json(self.directory / IDENTITY, self._identity)
        columns = {"id": list(ids), "reward": list(rewards), "members": members or [None] * len(ids)}
        name = hashlib.blake2b(b"".join(sorted(ids)), digest_size=12).hexdigest()
        with whole_file(self.directory / f"{name}.parquet") as temporary:
            pq.write_table(pa.table(columns, schema=SCHEMA), temporary)

    def _read_new(self) -> None:
        """Take in what has come since, by whomever. What is in memory stays as it is."""
        paths = [path for path in sorted(self.directory.glob("*.parquet")) if path.name not in self._read]
        if not paths:
            return
        tables = [_table(path) for path in paths]
        ids = [np.array(table["id"].to_pylist(), "S16") for table in tables]
        rewards = [table["reward"].to_numpy() for table in tables]
        # The first of equal ids is taken, and those in memory come first.
        self._ids, first = np.unique(np.concatenate([self._ids, *ids]), return_index=True)
        self._rewards = np.concatenate([self._rewards, *rewards])[first]
        self._read.update(path.name for path in paths)


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, columns=["id", "reward"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({error}); remove it: what it held is rated again.") from error
