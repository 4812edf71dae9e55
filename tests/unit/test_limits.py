"""Rows that a model or a training cannot take are said when they become tokens, not when a scorer or worker ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.config.schema import RunFile, Train
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.lengths import extent_of
from raydpo.data.limits import Extent, ModelLimits
from raydpo.data.reading import Chunk
from raydpo.data.shards import Counts, ShardInfo, TokenManifest, read_shard, to_table, write_shard
from raydpo.data.tokens import TokenSettings
from raydpo.errors import UserError
from raydpo.model.families import TABLED_POSITIONS
from raydpo.model.model_files import model_limits
from raydpo.reference.dataset import MANIFEST
from raydpo.stages.inputs import check_inputs
from raydpo.stages.values import RunValues
from raydpo.workspace.prepared import check_trainable
from raydpo.workspace.provenance import made_from
from tests.helpers import row_tokenizer
from tests.models import make_row, save_tiny_model

pytestmark = pytest.mark.unit

SETTINGS = TokenSettings(100, "error", append_eos=True)
ROWS = [
    {"prompt": [5], "chosen": [6], "rejected": [7]},
    {"prompt": [5, 6, 7], "chosen": [319, 1], "rejected": [8, 9, 10, 11, 12, 1]},
]
CHUNK = Chunk("mine.jsonl", 70, ROWS)
IDS = st.lists(st.integers(0, 400), min_size=1, max_size=9)
ROW = st.builds(make_row, IDS, IDS, IDS)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            ModelLimits("/m", vocabulary=319, positions=None),
            "mine.jsonl row 71: token id 319 is beyond the 319 embeddings of model '/m' .* resize the model's",
        ),
        (
            ModelLimits("/m", vocabulary=320, positions=8),
            "mine.jsonl row 71: .* 9 tokens, and model '/m' has 8 positions; set data.max_length=8 or less",
        ),
    ],
)
def test_a_row_beyond_a_model_is_named_when_it_becomes_tokens(limits: ModelLimits, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenize_chunk(CHUNK, row_tokenizer(), SETTINGS, "pair", [limits])


def test_a_row_that_just_fits_is_kept() -> None:
    limits = [ModelLimits("/m", vocabulary=320, positions=9), ModelLimits("/n", vocabulary=None, positions=None)]
    assert tokenize_chunk(CHUNK, row_tokenizer(), SETTINGS, "pair", limits)[1].kept == 2


@given(tables=st.lists(st.lists(ROW, min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_extent_of_a_data_set_is_the_largest_of_its_rows(
    tables: list[list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    shards = [write_shard(to_table(rows), folder / f"{i}.arrow") for i, rows in enumerate(tables)]
    rows = [Extent.of_row(row) for table in tables for row in table]
    expected = Extent(
        longest=max(row.longest for row in rows),
        packed=max(row.packed for row in rows),
        largest_id=max(row.largest_id for row in rows),
    )
    assert extent_of([read_shard(folder / shard.path) for shard in shards]) == expected
    TokenManifest("pair", shards, Counts(), extent=expected).write(folder / "manifest.json")
    assert TokenManifest.read(folder / "manifest.json").extent == expected


SIZES = {
    "vocab_size": 50,
    **dict.fromkeys(("n_embd", "hidden_size", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_hidden_layers"), 1),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "num_attention_heads"), 4),
    **dict.fromkeys(("ffn_dim", "intermediate_size", "dff"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 16),
    "attention_types": [[["global"], 1]],
    "rotary_dim": 8,
}


@pytest.mark.parametrize("kind", sorted(TABLED_POSITIONS | {"llama", "gpt_neox"}))
def test_positions_bound_the_families_that_take_them_from_a_table_and_no_other(kind: str, tmp_path: Path) -> None:
    default = AutoConfig.for_model(kind)
    config = AutoConfig.for_model(kind, **{key: value for key, value in SIZES.items() if hasattr(default, key)})
    config.save_pretrained(tmp_path)
    limit = model_limits(str(tmp_path)).positions
    assert limit == (16 if kind in TABLED_POSITIONS else None)
    lm = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        lm(input_ids=torch.ones(1, 16, dtype=torch.long), use_cache=False)
        if limit:
            with pytest.raises((IndexError, RuntimeError)):
                lm(input_ids=torch.ones(1, 40, dtype=torch.long), use_cache=False)


@pytest.mark.parametrize(
    ("config", "vocabulary"), [({"vocab_size": 7}, 7), ({"text_config": {"vocab_size": 8}}, 8), ({}, None)]
)
def test_the_vocabulary_is_that_of_the_language_model(
    config: dict[str, Any], vocabulary: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_limits(str(tmp_path)).vocabulary == vocabulary


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"global_batch_size": 11}, "global_batch_size=11 is more than 10 rows x 1 epochs .* set it to 10 or less"),
        ({"tokens_per_microbatch": 39}, "a row of 40 tokens needs train.tokens_per_microbatch=40 or more, .* is 39"),
        (
            {"tokens_per_microbatch": 79, "workers": {"count": 2, "min_count": 1}},
            "needs train.tokens_per_microbatch=80 or more, twice its length for workers.min_count",
        ),
    ],
)
def test_tokens_that_cannot_be_trained_on_are_said_from_their_manifest(train: dict[str, Any], message: str) -> None:
    tokens = TokenManifest(
        "pair", [ShardInfo("part.arrow", rows=10, sha256="", tokens=0)], Counts(), extent=Extent(packed=40)
    )
    check_trainable(tokens, Train(global_batch_size=10, tokens_per_microbatch=40), "train")
    with pytest.raises(UserError, match=message):
        check_trainable(tokens, Train.model_validate({"global_batch_size": 2} | train), "train")


@pytest.mark.parametrize("stage", ["precompute", "train"])
@pytest.mark.parametrize(
    ("extent", "message"),
    [
        (Extent(packed=40), "needs train.tokens_per_microbatch=40"),
        (Extent(largest_id=320), "token id 320 is beyond the 320 embeddings"),
    ],
)
def test_tokens_are_held_against_models_and_training_before_a_stage_begins(
    stage: str, extent: Extent, message: str, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    run = RunFile.model_validate(
        {
            "name": "a",
            "output_dir": str(tmp_path / "out"),
            "model": {"path": str(tmp_path / "model")},
            "data": {"train": [str(tmp_path / "pairs.jsonl")]},
            "train": {"global_batch_size": 10, "tokens_per_microbatch": 39},
        }
    )
    shards = [ShardInfo("part.arrow", rows=10, sha256="", tokens=0)]
    manifest = RunValues(run).layout.train_tokens / MANIFEST
    TokenManifest("pair", shards, Counts(), made_from=made_from(RunValues(run).token_source("train"))).write(manifest)
    check_inputs(run, stage)
    TokenManifest(
        "pair", shards, Counts(), extent=extent, made_from=made_from(RunValues(run).token_source("train"))
    ).write(manifest)
    with pytest.raises(UserError, match=message):
        check_inputs(run, stage)
