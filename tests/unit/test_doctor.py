"""The doctor names every fault of a run at once, without starting anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.schema import RunFile
from raydpo.data.limits import Extent
from raydpo.data.shards import Counts, ShardInfo, TokenManifest
from raydpo.errors import UserError
from raydpo.reference.dataset import MANIFEST
from raydpo.stages import doctor
from raydpo.stages.values import RunValues
from raydpo.workspace.provenance import made_from
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

NOBODY = "127.0.0.1:1"


def test_every_fault_is_named_and_one_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path / "model")
    quantised = Path(shutil.copytree(tmp_path / "model", tmp_path / "quantised"))
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    (tmp_path / "model/model.safetensors").write_bytes(b"cut")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    tree: dict[str, Any] = {
        "name": "a",
        "output_dir": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "model")},
        "reference": {"model": str(quantised)},
        "data": {"train": [str(tmp_path / "pairs.jsonl")]},
        "evaluate": {"prompts": [str(tmp_path / "absent.jsonl")], "reward": "vadr"},
        "sampler": {"max_model_len": 300},
    }
    run = RunFile.model_validate(tree)
    shards = [ShardInfo("part.arrow", rows=64, sha256="", tokens=0)]
    tokens = TokenManifest(
        "pair", shards, Counts(), extent=Extent(packed=5000), made_from=made_from(RunValues(run).token_source("train"))
    )
    tokens.write(RunValues(run).layout.train_tokens / MANIFEST)
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    with pytest.raises(UserError) as error:
        doctor(run)
    for fault in (
        "model.safetensors is not a whole safetensors file",
        "the weights are quantised (fp8)",
        "there is no reward function 'vadr'",
        "absent.jsonl matches no file",
        "sampler.max_model_len=300 is more than the 256 positions",
        "needs train.tokens_per_microbatch=5000",
        f"no Ray cluster answers at RAY_ADDRESS={NOBODY}",
    ):
        assert str(error.value).count(fault) == 1, fault
