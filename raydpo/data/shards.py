"""Token shards: Arrow files of ids, and the manifest that names them. Readers trust only the manifest.

Layout: <directory>/{manifest.json, <shard>.arrow, ...}. One chunk of input rows makes one shard, on any machine the
same one. Shards are read through memory maps: a row costs its own pages, wherever it lies, and memory holds only what
the system has room for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydpo.data.formats import Chunk
from raydpo.data.limits import Extent, ModelLimits
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import Outcome, TokenRow, TokenSettings, hash_fraction, tokenize_pair, tokenize_sft
from raydpo.errors import UserError
from raydpo.storage.files import whole_file, write_json

Kind = Literal["pair", "sft"]
COMPLETIONS: dict[Kind, tuple[str, ...]] = {"pair": ("chosen_ids", "rejected_ids"), "sft": ("completion_ids",)}
QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Counts:
    """Rows by what became of them; adds. rows_read = kept + dropped_too_long + identical.

    Truncated rows and duplicates are among the kept. Duplicates show only across shards: tokenize_chunk says 0. Under
    data.held_out_fraction, the train side's truncated rows are those of both sides.
    """

    rows_read: int = 0
    kept: int = 0
    truncated_prompt: int = 0
    truncated_completion: int = 0
    dropped_too_long: int = 0
    identical: int = 0
    duplicates: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)))


@dataclass(frozen=True)
class ShardInfo:
    """A shard as the manifest knows it."""

    path: str  # relative to the manifest's folder, so that the whole folder can be moved
    rows: int
    sha256: str  # of the file
    tokens: int  # prompts once and completions


@dataclass(frozen=True)
class TokenManifest:
    """What the prepare stage made. Quantiles are of lengths in tokens, by column."""

    kind: Kind
    shards: list[ShardInfo]
    counts: Counts
    quantiles: dict[str, dict[str, int]] = field(default_factory=dict)
    extent: Extent = field(default_factory=Extent)
    made_from: dict[str, Any] = field(default_factory=dict)  # what decided the ids, see raydpo.workspace.provenance

    @property
    def digest(self) -> str:
        """The data set's name: sha256 over the shards' sha256, in order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all; after the shards, since it is what makes them count."""
        write_json(path, {"digest": self.digest, "rows": self.rows, "tokens": self.tokens, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> TokenManifest:
        """Read what write wrote. Raises UserError when there is none, or none that holds together."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            manifest = cls(
                kind=content["kind"],
                shards=[ShardInfo(**shard) for shard in content["shards"]],
                counts=Counts(**content["counts"]),
                quantiles=content["quantiles"],
                extent=Extent(**content.get("extent", {})),  # those of an earlier raydpo do not say
                made_from=content.get("made_from", {}),
            )
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: `raydpo prepare` writes it; run that first.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a token manifest ({error!r}); run `raydpo prepare` again.") from error
        if manifest.digest != content["digest"]:
            raise UserError(f"{path} was changed after it was written; run `raydpo prepare` again.")
        return manifest


_verified: dict[str, tuple[int, int, str]] = {}  # this process's: path -> size, time and hash of what it has read


def verify_shards(directory: Path, shards: Sequence[ShardInfo]) -> None:
    """Read the bytes of shards and raise UserError for the first that is missing or not as it was written.

    A process reads a file once, and trusts its size and time from then on. Hashing lets other threads run, and is the
    slower half of reading, so several files are read at a time.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for problem in threads.map(lambda shard: _problem(directory / shard.path, shard.sha256), shards):
            if problem:
                raise UserError(f"token shard {problem}; run `raydpo prepare` again.")


def _problem(path: Path, sha256: str) -> str | None:
    try:
        status = path.stat()
        known = (status.st_size, status.st_mtime_ns, sha256)
        if _verified.get(str(path)) == known:
            return None
        if _sha256(path) != sha256:
            return f"{path} differs from what was written"
    except OSError as error:
        return f"{path} is missing" if isinstance(error, FileNotFoundError) else f"{path} cannot be read ({error})"
    _verified[str(path)] = known
    return None


def schema(kind: Kind) -> pa.Schema:
    """Columns of a shard: row_id (16 bytes), prompt_ids, then the completions (int32)."""
    ids = pa.list_(pa.int32())
    return pa.schema([("row_id", pa.binary(16)), ("prompt_ids", ids), *((name, ids) for name in COMPLETIONS[kind])])


def tokenize_chunk(
    chunk: Chunk, tokenizer: RowTokenizer, settings: TokenSettings, kind: Kind, limits: Sequence[ModelLimits] = ()
) -> tuple[pa.Table, Counts]:
    """One chunk of input becomes the table of one shard, rows in order.

    limits: of the models that will read the rows. UserError names file and row.
    """
    tokenize = tokenize_pair if kind == "pair" else tokenize_sft
    outcomes: list[Outcome] = []
    for number, row in enumerate(chunk.rows, start=chunk.first_row):
        try:
            outcome = tokenize(row, tokenizer, settings)
            if outcome.row:
                extent = Extent.of_row(outcome.row)
                for each in limits:
                    each.check(extent)
            outcomes.append(outcome)
        except UserError as error:
            raise UserError(f"{chunk.path} row {number}: {error}") from error
    rows = [outcome.row for outcome in outcomes if outcome.row]
    events = [outcome.event for outcome in outcomes]
    counts = Counts(
        rows_read=len(events),
        kept=len(rows),
        truncated_prompt=events.count("truncated_prompt"),
        truncated_completion=events.count("truncated_completion"),
        dropped_too_long=events.count("dropped_too_long"),
        identical=events.count("identical"),
    )
    return to_table(rows, kind), counts


def to_table(rows: Sequence[TokenRow], kind: Kind) -> pa.Table:
    """Rows as the columns of a shard."""
    columns = [[row.row_id for row in rows], [row.prompt_ids for row in rows]]
    columns += [[row.completions[i] for row in rows] for i in range(len(COMPLETIONS[kind]))]
    return pa.Table.from_arrays(
        [pa.array(column, type=f.type) for column, f in zip(columns, schema(kind), strict=True)], schema=schema(kind)
    )


def to_rows(table: pa.Table) -> list[TokenRow]:
    """The rows of a shard; undoes to_table."""
    columns = [column.to_pylist() for column in table.columns]
    return [TokenRow(name, prompt, tuple(completions)) for name, prompt, *completions in zip(*columns, strict=True)]


def write_shard(table: pa.Table, path: Path) -> ShardInfo:
    """Write a shard, whole or not at all."""
    with whole_file(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        sha256 = _sha256(temporary)
    return ShardInfo(
        path.name, table.num_rows, sha256, sum(int(_lengths(column).sum()) for column in table.columns[1:])
    )


def read_shard(path: str | Path) -> pa.Table:
    """The table of a shard, exactly as it was written. What is not looked at is not read from the disk.

    Raises UserError for a file that is missing or no shard.
    """
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            return reader.read_all()
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise UserError(f"token shard {path} cannot be read ({error}); run `raydpo prepare` again.") from error


def split_held_out(table: pa.Table, fraction: float) -> tuple[pa.Table, pa.Table]:
    """(train, held out): held out are the prompts whose hash falls under fraction, so no prompt is on both sides."""
    prompts = table["prompt_ids"].to_pylist()
    held_out = pa.array(
        [hash_fraction(np.asarray(ids, dtype="<i4").tobytes()) < fraction for ids in prompts], pa.bool_()
    )
    return table.filter(pc.invert(held_out)), table.filter(held_out)


def length_quantiles(directory: Path, shards: Sequence[ShardInfo], kind: Kind) -> dict[str, dict[str, int]]:
    """Quantiles of the lengths in tokens over all shards, by column; nothing for a data set without rows."""
    quantiles = {}
    for name in ("prompt_ids", *COMPLETIONS[kind]):
        lengths = np.concatenate([np.zeros(0), *(_lengths(read_shard(directory / s.path)[name]) for s in shards)])
        if len(lengths):
            values = np.quantile(lengths, list(QUANTILES.values()), method="higher")
            quantiles[name.removesuffix("_ids")] = dict(zip(QUANTILES, map(int, values), strict=True))
    return quantiles


def extent_of(directory: Path, shards: Sequence[ShardInfo]) -> Extent:
    """How far the rows of all shards reach."""
    found = [Extent()]
    for shard in shards:
        prompt, *completions = read_shard(directory / shard.path).columns[1:]
        lengths = np.stack([_lengths(column) for column in completions])
        found.append(
            Extent(
                longest=int((_lengths(prompt) + lengths.max(axis=0)).max()),
                packed=int((_lengths(prompt) + lengths.sum(axis=0)).max()),
                largest_id=max(pc.max(pc.list_flatten(column)).as_py() for column in (prompt, *completions)),
            )
        )
    return Extent(*(max(getattr(each, f.name) for each in found) for f in fields(Extent)))


def _lengths(ids: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    lengths: np.ndarray[tuple[int], np.dtype[np.int32]] = pc.list_value_length(ids).to_numpy()
    return lengths


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
