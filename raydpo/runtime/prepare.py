"""prepare: text files to token shards, streamed through Ray Data.

A task reads a file, or several small ones, chunk by chunk; an actor pool tokenises each chunk and writes its shards. A
chunk is a fixed run of rows of one file, so the shards, and with them the dataset's digest, do not depend on
scheduling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from raydpo.data.bad_rows import FILE as BAD_ROWS
from raydpo.data.bad_rows import BadRow, BadRows
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.ledger import RowLedger
from raydpo.data.lengths import extent_of, length_quantiles
from raydpo.data.limits import ModelLimits
from raydpo.data.paths import Found, find_files, share_out
from raydpo.data.reading import Chunk, check_files
from raydpo.data.rows import Convert, Field, Kind, RowFormat
from raydpo.data.shards import (
    COLUMNS,
    Counts,
    ShardInfo,
    TokenManifest,
    read_shard,
    split_held_out,
    write_shard,
)
from raydpo.data.tokens import Note, TokenSettings
from raydpo.errors import UserError
from raydpo.model.model_files import model_limits
from raydpo.reference.dataset import MANIFEST
from raydpo.reference.index import Asked
from raydpo.runtime.feed.readers import never_ends_the_data, read_files
from raydpo.storage.files import storage_refusal
from raydpo.track.progress import Progress
from raydpo.track.say import say
from raydpo.workspace.objective import needs_others
from raydpo.workspace.prepared import check_order, check_trainable, readers_of_pairs
from raydpo.workspace.provenance import made_from, sft_source, token_source
from raydpo.workspace.rows import RowSettings, SftRows, given_rows, given_sft_rows, training_rows

READ_CPUS = 0.25
TOKENIZE_CPUS = 0.5
MAX_TOKENIZERS = 8
# Said once, with the first row; the manifest counts the rows.
NOTICES: Mapping[Note, str] = {
    "moved_boundary": "the chat template renders the prompt differently once an answer follows, so the prompt is the "
    "tokens that both have in common, and what a sampler is given behind them is not trained on",
    "no_prompt": "chosen and rejected have no beginning in common, so their prompt is empty; where a column "
    "has it, name that in data.columns.prompt",
    "unrendered": "the chat template leaves out a part of the messages that it renders elsewhere, such as the thoughts "
    "of earlier turns or which call a result belongs to",
}
SHARD_NAME = re.compile(r"part-\d{5,}-\d{9,}\.arrow|\.part-\d{5,}-\d{9,}\.arrow\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class Source:
    """Files of one kind and what becomes of their rows."""

    files: Sequence[Found]
    fields: Sequence[Field]
    kind: Kind
    tokenizer: str
    day: date | None
    settings: TokenSettings
    rows_per_shard: int
    train: Path
    held_out: Path
    held_out_fraction: float
    ignore: Sequence[str]
    convert: Convert | None = None  # of rows of another format, see raydpo.data.formats
    limits: Sequence[ModelLimits] = ()  # of the models that will read the rows
    max_bad_rows: float = 0  # that are left out, or a share below 1
    chat_template: str | None = None  # a file, instead of the tokenizer's own
    others: bool = False  # whether every row gets a completion of another prompt, see raydpo.data.mismatched


def prepare_pairs(settings: RowSettings) -> dict[str, Any]:
    """Tokenise the preference data, and the held-out rows where the run file names some."""
    layout = settings.layout
    limits = readers_of_pairs(layout)
    train = replace(pair_source(settings), limits=limits, others=needs_others(settings.train))
    clear_tokens(layout.held_out_tokens)
    tokens = _tokenise(train, made_from(token_source(settings, "train")))
    result = {"train": asdict(tokens.counts)}
    if settings.data.held_out:
        rows = given_rows(settings.data, settings.data.held_out)
        _say_format("data.held_out", rows)
        held_out = replace(
            train,
            files=find_files(settings.data.held_out),
            fields=rows.fields,
            kind=rows.kind,
            convert=rows.convert,
            train=layout.held_out_tokens,
            held_out_fraction=0.0,
            others=False,  # a pair is ranked without them
        )
        manifest = _tokenise(held_out, made_from(token_source(settings, "held_out")))
        result["held_out"] = asdict(manifest.counts)
    if settings.train_is_said:
        check_trainable(tokens, settings.train, "train")
        check_order(settings.train, tokens)
    return result


def prepare_sft(settings: SftRows) -> dict[str, Any]:
    """Tokenise the rows of the sft stage."""
    data = settings.data
    sft = settings.sft
    layout = settings.layout
    rows = given_sft_rows(sft, data.ignore)
    _say_format("sft.train", rows)
    source = Source(
        files=find_files(sft.train),
        fields=rows.fields,
        convert=rows.convert,
        kind="sft",
        tokenizer=settings.model,
        day=data.date,
        chat_template=data.chat_template,
        max_bad_rows=data.max_bad_rows,
        settings=TokenSettings(data.max_length, data.truncation, append_eos=data.append_eos),
        rows_per_shard=data.rows_per_shard,
        train=layout.sft_tokens,
        held_out=layout.held_out_tokens,
        held_out_fraction=0.0,
        ignore=data.ignore,
        limits=[model_limits(settings.model)],
    )
    tokens = _tokenise(source, made_from(sft_source(settings)))
    check_trainable(tokens, sft, "sft")
    return asdict(tokens.counts)


def pair_source(settings: RowSettings) -> Source:
    """What prepare reads; UserError when a file is missing or of no use."""
    layout = settings.layout
    data = settings.data
    rows = training_rows(data, settings.sample)
    _say_format("data.train", rows)
    return Source(
        files=find_files(layout.pair_files),
        fields=rows.fields,
        kind=rows.kind,
        tokenizer=layout.start_model,
        day=data.date,
        chat_template=data.chat_template,
        max_bad_rows=data.max_bad_rows,
        settings=TokenSettings(data.max_length, data.truncation, append_eos=data.append_eos),
        rows_per_shard=data.rows_per_shard,
        train=layout.train_tokens,
        held_out=layout.held_out_tokens,
        held_out_fraction=data.held_out_fraction,
        ignore=data.ignore,
        convert=rows.convert,
    )


def _say_format(key: str, rows: RowFormat) -> None:
    say(f"{key}: rows are read as {rows.name}, with {', '.join(field.name for field in rows.fields)}")


def _tokenise(source: Source, origin: dict[str, Any]) -> TokenManifest:
    """origin: what the manifests say that the tokens were made from."""
    paths = [file.path for file in source.files]
    check_files(paths, source.fields, source.ignore, source.convert, keep_bad=source.max_bad_rows > 0)
    for directory in (source.train, source.held_out) if source.held_out_fraction else (source.train,):
        clear_tokens(directory)
    tasks = [{"files": json.dumps(task)} for task in share_out(source.files)]
    chunks = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    chunks.context.execution_options.preserve_order = True
    chunks.context.raise_original_map_exception = True  # a wrapped one loses its cause on the way
    reading = partial(
        read_files,
        fields=source.fields,
        rows_per_chunk=source.rows_per_shard,
        ignore=source.ignore,
        convert=source.convert,
        keep_bad=source.max_bad_rows > 0,
    )
    done = chunks.map_batches(reading, batch_size=1, num_cpus=READ_CPUS).map_batches(
        Tokeniser,
        fn_constructor_kwargs={"source": source},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=MAX_TOKENIZERS),
        batch_size=1,
        num_cpus=TOKENIZE_CPUS,
    )
    ledger = RowLedger(paths)
    counts = Counts()
    noticed: set[str] = set()
    bad = BadRows(source.train, source.max_bad_rows)
    shards: dict[str, list[ShardInfo]] = {"train": [], "held_out": []}
    with Progress("prepare", total=None, unit="rows") as progress:
        for row in done.iter_rows():
            part = json.loads(row["outcome"])
            ledger.add(**part["arrived"])
            counts += Counts(**part["counts"])
            for side, infos in shards.items():
                infos += [ShardInfo(**info) for info in part[side]]
            bad.add(part["bad"])
            for note, place in part["notices"].items():
                if note not in noticed:
                    noticed.add(note)
                    say(f"{place}: {NOTICES[note]}")
            progress.advance(part["counts"]["rows_read"])
    rows = sum(ledger.close())
    if rows != counts.rows_read:
        raise RuntimeError(
            f"{rows} rows have arrived and {counts.rows_read} were tokenised; please report this defect."
        )
    if report := bad.close(rows):
        say(report)
    check_something_is_left(source, counts, train=len(shards["train"]), held_out=len(shards["held_out"]))
    if source.held_out_fraction:
        aside = sum(shard.rows for shard in shards["held_out"])
        counts = replace(counts, rows_read=counts.rows_read - aside, kept=counts.kept - aside)
        _write_manifest(source, source.held_out, shards["held_out"], Counts(rows_read=aside, kept=aside), origin)
    return _write_manifest(source, source.train, shards["train"], counts, origin)


def check_something_is_left(source: Source, counts: Counts, *, train: int, held_out: int) -> None:
    """Raise UserError where a side has got no shard, with the reason and what helps against it."""
    if not counts.kept:
        files = ", ".join(file.path for file in source.files[:3])
        remedy = "give rows whose completions differ"
        if counts.dropped_too_long >= counts.identical + counts.tied:
            remedy = "raise data.max_length, or set another data.truncation"
        elif counts.tied > counts.identical:
            remedy = "give rows with a completion that is better than another one"
        raise UserError(
            f"none of the {counts.rows_read} rows of {files} is left: {counts.dropped_too_long} are too long, "
            f"{counts.identical} have equal completions only, {counts.tied} completions of equal rank only; {remedy}."
        )
    share = f"data.held_out_fraction={source.held_out_fraction:g}"
    if source.held_out_fraction and not held_out:
        raise UserError(
            f"{share} holds back whole prompts, and of the prompts of {counts.kept} rows it has caught none; raise it, "
            "or name held-out pairs in data.held_out."
        )
    if not train:
        raise UserError(f"{share} has caught every prompt of {counts.kept} rows and leaves none to train on; lower it.")


def clear_tokens(directory: Path) -> None:
    """Remove what an earlier prepare has left: its manifest, then the shards, whole or half written.

    Shards go by the name that only prepare gives. Whatever else lies in the directory is not ours, and stays.
    """
    (directory / MANIFEST).unlink(missing_ok=True)  # first: shards without it are no data set
    (directory / BAD_ROWS).unlink(missing_ok=True)
    for path in directory.glob("*"):
        if SHARD_NAME.fullmatch(path.name) and path.is_file():
            path.unlink()
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def _write_manifest(
    source: Source, directory: Path, shards: list[ShardInfo], counts: Counts, origin: dict[str, Any]
) -> TokenManifest:
    tables = [read_shard(directory / shard.path) for shard in shards]
    rows = pa.concat_tables(tables)
    manifest = TokenManifest(
        kind=source.kind,
        shards=shards,
        counts=replace(counts, duplicates=len(rows) - len(Asked(rows["row_id"]))),
        quantiles=length_quantiles(tables, source.kind),
        extent=extent_of(tables),
        made_from=origin,
        columns=[name for name in COLUMNS if name in rows.column_names],
    )
    manifest.write(directory / MANIFEST)
    return manifest


class Tokeniser:
    """An actor of the pool: one chunk in, its shards on disk. Drivers, which only name it, load no torch."""

    def __init__(self, source: Source) -> None:
        from raydpo.model.tokenizer import load_row_tokenizer

        self._source = source
        self._tokenizer = load_row_tokenizer(source.tokenizer, source.day, source.chat_template)

    @never_ends_the_data
    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """batch: one chunk, as read_files makes it."""
        source = self._source
        name = str(batch["name"][0])
        chunk = Chunk(str(batch["path"][0]), int(batch["first_row"][0]), json.loads(batch["rows"][0]))
        bad: list[BadRow] = []
        notices: dict[Note, str] = {}  # the first row of each kind
        table, counts = tokenize_chunk(
            chunk,
            self._tokenizer,
            source.settings,
            source.kind,
            source.limits,
            others=source.others,
            notice=notices.setdefault,
            bad=bad.append if source.max_bad_rows else None,
        )
        total = int(batch["total"][0])
        arrived = {
            "file": int(batch["file"][0]),
            "first_row": chunk.first_row,
            "rows": len(chunk.rows),
            "total": None if total < 0 else total,
        }
        outcome: dict[str, Any] = {"counts": asdict(counts), "arrived": arrived, "train": [], "held_out": []}
        outcome |= {"notices": notices, "bad": bad}
        train, held_out = split_held_out(table, source.held_out_fraction)
        try:
            for side, rows, directory in (("train", train, source.train), ("held_out", held_out, source.held_out)):
                if rows.num_rows:
                    outcome[side].append(asdict(write_shard(rows, directory / name)))
        except OSError as error:  # here, because Ray Data appends to its arguments
            raise storage_refusal(error) or error from None
        return {"outcome": [json.dumps(outcome)]}
