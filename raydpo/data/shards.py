"""Token shards: Arrow files of ids, and the manifest that names them. Readers trust only the manifest.

Layout: <directory>/{manifest.json, <shard>.arrow, ...}. One chunk of input rows makes one shard, on any machine the
same one. Shards are read through memory maps: a row costs its own pages, wherever it lies, and memory holds only what
the system has room for.

All kinds of rows have the same columns, row_id, prompt_ids and completions; what a kind knows of every completion
beside its tokens stands in columns of its own, with as many values as the row has completions:

    rank        int32    0 is the best; equal ranks are ties
    label       bool     whether the completion is wanted
    margin      float32  how far apart two completions are: the better one's value minus the worse one's
    mismatched  bool     whether the completion belongs to another prompt, see raydpo.data.mismatched

Rows that say where they come from have it in a column `source`, one text a row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydpo.data.lengths import completion_lengths, prompt_lengths
from raydpo.data.limits import Extent
from raydpo.data.rows import Kind
from raydpo.data.tokens import TokenRow, hash_fraction
from raydpo.errors import UserError
from raydpo.storage.commit import Folder, Promise, find_flaw
from raydpo.storage.files import whole_file, write_json
from raydpo.storage.hashing import sha256_of

COLUMNS: Mapping[str, pa.DataType] = MappingProxyType(
    {"rank": pa.int32(), "label": pa.bool_(), "margin": pa.float32(), "mismatched": pa.bool_()}
)


@dataclass(frozen=True)
class Counts:
    """Rows by what became of them; adds. rows_read = kept + dropped_too_long + identical + tied + bad.

    Truncated rows, duplicates and those with ties are among the kept. Duplicates show only across shards:
    tokenize_chunk says 0. Under data.held_out_fraction, all but rows_read and kept of the train side are of both sides.
    """

    rows_read: int = 0
    kept: int = 0
    truncated_prompt: int = 0
    truncated_completion: int = 0
    dropped_too_long: int = 0
    identical: int = 0
    duplicates: int = 0
    tied: int = 0  # ranked rows that have no pair, since all their completions are of one rank
    with_ties: int = 0  # ranked rows with two completions of one rank, and others
    bad: int = 0  # rows that cannot be used, as many as data.max_bad_rows allows
    moved_boundary: int = 0  # rows cut where the template renders the prompt alone and with its answer alike
    unrendered: int = 0  # rows of which the template leaves out what it renders elsewhere, such as earlier thoughts
    no_prompt: int = 0  # pairs of whole texts that have no beginning in common
    merged_completions: int = 0  # of ranked rows, with the tokens of another one in their row

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)))


@dataclass(frozen=True)
class ShardInfo:
    """A shard as the manifest knows it."""

    path: str  # relative to the manifest's folder, so that the whole folder can be moved
    rows: int
    sha256: str  # of the file
    tokens: int  # prompts once and completions

    @property
    def promise(self) -> Promise:
        """What the manifest says of the file; its size is not in there."""
        return Promise(self.sha256)


@dataclass(frozen=True)
class TokenManifest:
    """What the prepare stage made. Quantiles are of lengths in tokens, by column."""

    kind: Kind
    shards: list[ShardInfo]
    counts: Counts
    quantiles: dict[str, dict[str, int]] = field(default_factory=dict)
    extent: Extent = field(default_factory=Extent)
    made_from: dict[str, Any] = field(default_factory=dict)  # what decided the ids, see raydpo.workspace.provenance
    columns: list[str] = field(default_factory=list)  # names of COLUMNS that the rows have

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
            _refuse_earlier_layout(path, content)
            manifest = cls(
                kind=content["kind"],
                shards=[ShardInfo(**shard) for shard in content["shards"]],
                counts=Counts(**content["counts"]),
                quantiles=content["quantiles"],
                extent=Extent(**content.get("extent", {})),  # those of an earlier raydpo do not say
                made_from=content.get("made_from", {}),
                columns=content["columns"],
            )
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: `raydpo prepare` writes it; run that first.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a token manifest ({error!r}); run `raydpo prepare` again.") from error
        if manifest.digest != content["digest"]:
            raise UserError(f"{path} was changed after it was written; run `raydpo prepare` again.")
        return manifest


def _refuse_earlier_layout(path: Path, content: dict[str, Any]) -> None:
    """Raise UserError for tokens whose completions stand in columns of their own, chosen_ids and rejected_ids."""
    if "columns" in content or "shards" not in content:
        return
    command = "raydpo sft" if content.get("kind") == "sft" else "raydpo prepare"
    raise UserError(
        f"the tokens in {path.parent} were written by an earlier raydpo, in another layout; run `{command}` again. The "
        "rows keep their names, and nothing that the reference has scored is scored again."
    )


def verify_shards(directory: Path, shards: Sequence[ShardInfo]) -> None:
    """Read the bytes of shards and raise UserError for the first that is missing or not as it was written.

    A process reads a file once, and trusts its size and time from then on. Hashing lets other threads run, and is the
    slower half of reading, so several files are read at a time.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for problem in threads.map(lambda shard: _problem(directory, shard), shards):
            if problem:
                raise UserError(f"token shard {problem}; run `raydpo prepare` again.")


def _problem(directory: Path, shard: ShardInfo) -> str | None:
    path = directory / shard.path
    try:
        flaw = find_flaw(Folder(directory), shard.path, shard.promise, remember=True)
    except FileNotFoundError:  # it went since its time was taken
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error})"
    if flaw is None:
        return None
    return f"{path} is missing" if flaw.kind == "missing" else f"{path} differs from what was written"


def schema(columns: Sequence[str] = (), *, source: bool = False) -> pa.Schema:
    """Columns of a shard whose rows have these of COLUMNS: a value a row, and lists with a value a completion.

    source: whether the rows say where they come from.
    """
    ids = pa.list_(pa.int32())
    of_every_row = [("row_id", pa.binary(16)), ("prompt_ids", ids), ("completions", pa.list_(ids))]
    of_completions = [(name, pa.list_(COLUMNS[name])) for name in columns]
    return pa.schema([*of_every_row, *of_completions, *([("source", pa.string())] if source else [])])


def to_table(rows: Sequence[TokenRow]) -> pa.Table:
    """Rows as the columns of a shard; those of one kind have the same ones."""
    columns = columns_of(rows)
    values: dict[str, list[Any]] = {
        "row_id": [row.row_id for row in rows],
        "prompt_ids": [row.prompt_ids for row in rows],
        "completions": [row.completions for row in rows],
    }
    values |= {name: [row.columns[name] for row in rows] for name in columns}
    sources = [row.source for row in rows if row.source is not None]
    if sources:
        values["source"] = sources  # all rows of a data set have one, or none has
    return pa.table(values, schema=schema(columns, source=bool(sources)))


def columns_of(rows: Sequence[TokenRow]) -> list[str]:
    """The names of COLUMNS that all rows have; no rows have none."""
    return [name for name in COLUMNS if rows and name in rows[0].columns]


def to_rows(table: pa.Table) -> list[TokenRow]:
    """The rows of a shard; undoes to_table."""
    return [to_row(values) for values in table.to_pylist()]


def to_row(values: Mapping[str, Any]) -> TokenRow:
    """A row from what stands in the columns of a shard, by name; there may be others beside them."""
    columns = {name: values[name] for name in COLUMNS if name in values}
    completions = tuple(values["completions"])
    return TokenRow(values["row_id"], values["prompt_ids"], completions, columns, values.get("source"))


def write_shard(table: pa.Table, path: Path) -> ShardInfo:
    """Write a shard, whole or not at all."""
    with whole_file(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        sha256 = sha256_of(temporary)
    tokens = prompt_lengths(table).sum() + completion_lengths(table).sum()
    return ShardInfo(path.name, table.num_rows, sha256, int(tokens))


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
