"""A run whose pairs are prepared, without Ray: what the commands around a reference store start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydpo.config.schema import RunFile
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.reading import Chunk
from raydpo.data.rows import Kind
from raydpo.data.shards import TokenManifest, write_shard
from raydpo.data.tokens import TokenSettings
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.stages.values import RunValues
from raydpo.workspace.provenance import made_from

PAIRS = [{"prompt": f"The film {i}", "chosen": f" is good {i}", "rejected": " is bad"} for i in range(5)]


def prepared_run(model: Path, directory: Path, store: str) -> RunFile:
    """A run on PAIRS, in shards of three and two rows."""
    run = RunFile.model_validate(
        {
            "name": "small",
            "output_dir": str(directory / "out"),
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"train": [str(directory / "pairs.jsonl")], "max_length": 64},
            "reference": {"store": store},
        }
    )
    prepare(run, PAIRS)
    return run


def prepare(run: RunFile, rows: Sequence[dict[str, Any]], kind: Kind = "pair") -> None:
    """What the prepare stage does."""
    directory = Path(run.output_dir) / "tokens/train"
    Path(run.data.train[0]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = TokenSettings(64, "error", append_eos=True)
    tokenizer = load_row_tokenizer(run.model.path)
    shards = []
    for first in range(0, len(rows), 3):
        table, counts = tokenize_chunk(Chunk("", 1, list(rows[first : first + 3])), tokenizer, settings, kind)
        shards.append(write_shard(table, directory / f"part-{first}.arrow"))
    origin = made_from(RunValues(run).token_source("train"))
    manifest = TokenManifest(kind, shards, counts, made_from=origin, columns=table.column_names[3:])
    manifest.write(directory / "manifest.json")
