"""A run whose pairs are prepared, without Ray: what the commands around a reference store start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from raydpo.config.schema import RunFile
from raydpo.data.formats import Chunk
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.shards import TokenManifest, write_shard
from raydpo.data.tokens import TokenSettings
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.workspace.provenance import made_from, token_settings

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


def prepare(run: RunFile, pairs: Sequence[dict[str, str]]) -> None:
    """What the prepare stage does."""
    directory = Path(run.output_dir) / "tokens/train"
    Path(run.data.train[0]).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = TokenSettings(64, "error", append_eos=True)
    tokenizer = load_row_tokenizer(run.model.path)
    shards = []
    for first in range(0, len(pairs), 3):
        table, counts = tokenize_chunk(Chunk("", 1, list(pairs[first : first + 3])), tokenizer, settings, "pair")
        shards.append(write_shard(table, directory / f"part-{first}.arrow"))
    TokenManifest("pair", shards, counts, made_from=made_from(token_settings(run, "train"))).write(
        directory / "manifest.json"
    )
