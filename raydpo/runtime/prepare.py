"""prepare: text files to token shards, streamed through Ray Data.

One task a file reads it chunk by chunk; an actor pool tokenises each chunk and writes its shards. A chunk is a fixed
run of rows of one file, so the shards, and with them the dataset's digest, do not depend on scheduling.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from raydpo.config.errors import UserError
from raydpo.config.files import storage_refusal
from raydpo.config.schema import RunFile
from raydpo.data.formats import Chunk, Field, check_first_rows, expand_paths, pair_fields, sft_fields
from raydpo.data.shards import (
    Counts,
    Kind,
    ShardInfo,
    TokenManifest,
    length_quantiles,
    read_shard,
    split_held_out,
    tokenize_chunk,
    write_shard,
)
from raydpo.data.tokens import TokenSettings
from raydpo.reference.index import Asked
from raydpo.runtime.dataset import MANIFEST
from raydpo.runtime.layout import Layout
from raydpo.runtime.progress import Progress
from raydpo.runtime.provenance import made_from
from raydpo.runtime.readers import read_file

READ_CPUS, TOKENIZE_CPUS = 0.25, 0.5
MAX_TOKENIZERS = 8


@dataclass(frozen=True)
class Source:
    """Files of one kind and what becomes of their rows."""

    paths: Sequence[str]
    fields: Sequence[Field]
    kind: Kind
    tokenizer: str
    day: date | None
    settings: TokenSettings
    rows_per_shard: int
    train: Path
    held_out: Path
    held_out_fraction: float


def prepare_pairs(run: RunFile) -> dict[str, Any]:
    """Tokenise the preference pairs, and the held-out ones where the run file names some."""
    layout = Layout(run)
    train = pair_source(run)
    shutil.rmtree(layout.held_out_tokens, ignore_errors=True)
    result = {"train": asdict(_tokenise(train, made_from(run, "train")).counts)}
    if run.data.held_out:
        held_out = replace(train, paths=expand_paths(run.data.held_out), train=layout.held_out_tokens)
        manifest = _tokenise(replace(held_out, held_out_fraction=0.0), made_from(run, "held_out"))
        result["held_out"] = asdict(manifest.counts)
    return result


def prepare_sft(run: RunFile) -> dict[str, Any]:
    """Tokenise the rows of the sft stage."""
    assert run.sft
    layout = Layout(run)
    source = replace(
        pair_source(run, files=run.sft.train),
        fields=sft_fields(run.sft.prompt, run.sft.completion),
        kind="sft",
        tokenizer=run.model.path,
        settings=TokenSettings(run.data.max_length, run.data.truncation, append_eos=run.data.append_eos),
        train=layout.sft_tokens,
        held_out_fraction=0.0,
    )
    return asdict(_tokenise(source, made_from(run, "sft")).counts)


def pair_source(run: RunFile, files: Sequence[str] | None = None) -> Source:
    """What prepare reads; UserError when a file is missing or of no use."""
    layout, data = Layout(run), run.data
    return Source(
        paths=expand_paths(files or layout.pair_files),
        fields=pair_fields(data.columns.prompt, data.columns.chosen, data.columns.rejected),
        kind="pair",
        tokenizer=layout.start_model,
        day=data.date,
        settings=TokenSettings(data.max_length, data.truncation, data.append_eos),
        rows_per_shard=data.rows_per_shard,
        train=layout.train_tokens,
        held_out=layout.held_out_tokens,
        held_out_fraction=data.held_out_fraction,
    )


def _tokenise(source: Source, origin: dict[str, Any]) -> TokenManifest:
    """origin: what the manifests say that the tokens were made from."""
    for path in source.paths:
        check_first_rows(path, source.fields)
    for directory in (source.train, source.held_out) if source.held_out_fraction else (source.train,):
        shutil.rmtree(directory, ignore_errors=True)
    files = [{"number": i, "path": path} for i, path in enumerate(source.paths)]
    chunks = ray.data.from_items(files, override_num_blocks=len(files))
    chunks.context.execution_options.preserve_order = True
    chunks.context.raise_original_map_exception = True  # a wrapped one loses its cause on the way
    reading = partial(read_file, fields=source.fields, rows_per_chunk=source.rows_per_shard)
    done = chunks.map_batches(reading, batch_size=1, num_cpus=READ_CPUS).map_batches(
        Tokeniser,
        fn_constructor_kwargs={"source": source},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=MAX_TOKENIZERS),
        batch_size=1,
        num_cpus=TOKENIZE_CPUS,
    )
    counts = Counts()
    shards: dict[str, list[ShardInfo]] = {"train": [], "held_out": []}
    with Progress("prepare", total=None, unit="rows") as progress:
        for row in done.iter_rows():
            part = json.loads(row["outcome"])
            counts += Counts(**part["counts"])
            for side, infos in shards.items():
                infos += [ShardInfo(**info) for info in part[side]]
            progress.advance(part["counts"]["rows_read"])
    if source.held_out_fraction:
        _write_manifest(source.held_out, shards["held_out"], source.kind, Counts(), origin)
    return _write_manifest(source.train, shards["train"], source.kind, counts, origin)


def _write_manifest(
    directory: Path, shards: list[ShardInfo], kind: Kind, counts: Counts, origin: dict[str, Any]
) -> TokenManifest:
    if not shards:
        raise UserError(f"no row is left for {directory}: {asdict(counts)}; raise data.max_length or give other data.")
    row_ids = pa.concat_tables([read_shard(directory / shard.path) for shard in shards])["row_id"]
    counts = replace(counts, duplicates=len(row_ids) - len(Asked(row_ids)))
    manifest = TokenManifest(kind, shards, counts, length_quantiles(directory, shards, kind), origin)
    manifest.write(directory / MANIFEST)
    return manifest


class Tokeniser:
    """An actor of the pool: one chunk in, its shards on disk. Drivers, which only name it, load no torch."""

    def __init__(self, source: Source) -> None:
        from raydpo.model.tokenizer import load_row_tokenizer

        self._source = source
        self._tokenizer = load_row_tokenizer(source.tokenizer, source.day)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """batch: one chunk, as read_file makes it."""
        source, name = self._source, str(batch["name"][0])
        chunk = Chunk(str(batch["path"][0]), int(batch["first_row"][0]), json.loads(batch["rows"][0]))
        table, counts = tokenize_chunk(chunk, self._tokenizer, source.settings, source.kind)
        outcome: dict[str, Any] = {"counts": asdict(counts), "train": [], "held_out": []}
        train, held_out = split_held_out(table, source.held_out_fraction)
        try:
            for side, rows, directory in (("train", train, source.train), ("held_out", held_out, source.held_out)):
                if rows.num_rows:
                    outcome[side].append(asdict(write_shard(rows, directory / name)))
        except OSError as error:  # here, because Ray Data appends to its arguments
            raise storage_refusal(error) or error from None
        return {"outcome": [json.dumps(outcome)]}
