"""Where rows come from: what they say themselves, or else the file that they were read from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from raydpo.data.shards import ShardInfo
from raydpo.data.tokens import TokenRow


def row_sources(shards: Sequence[ShardInfo], rows: Sequence[TokenRow], files: Sequence[str]) -> list[str]:
    """The source of every row of a data set.

    shards: those of the data set, in order; rows: all of theirs; files: what prepare read, sorted by path. Files go by
    their last name where these differ.

    part-00001-000001001.arrow holds rows of the second file, from its row 1,001 on.
    """
    names = [PurePosixPath(path).name for path in files]
    twice = {name for name, count in Counter(names).items() if count > 1}
    named = [path if name in twice else name for path, name in zip(files, names, strict=True)]
    read_from = [named[int(shard.path.split("-")[1])] for shard in shards for _ in range(shard.rows)]
    return [row.source or source for row, source in zip(rows, read_from, strict=True)]
