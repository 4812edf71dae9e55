"""A sampler stops where training rows end: at the stop tokens of the model, its tokenizer and its chat template."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydpo.config.schema import Decoding, RunFile
from raydpo.rollout import engine
from raydpo.runtime.pools import sampling
from tests.helpers import CHAT_TEMPLATE
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit


def test_the_engine_is_asked_to_stop_where_rows_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("eos_token", "bos_token"))
    monkeypatch.setitem(sys.modules, "vllm", vllm := SimpleNamespace(**_Vllm.parts()))
    run = RunFile.model_validate(
        {"name": "a", "output_dir": str(tmp_path), "model": {"path": str(tmp_path)}, "data": {"train": ["none"]}}
    )
    monkeypatch.setitem(sys.modules, "raydpo.rollout.vocabulary", SimpleNamespace(known_tokens=lambda size: None))
    monkeypatch.setattr(sampling, "ray", _RayInThisProcess)
    monkeypatch.setattr(engine.Engine, "load", lambda self, model: None)
    tokenizer = sampling.check_sampling(run.model.path, run.data, run.sampler, [])
    with sampling.samplers(run.model.path, "float32", run.sampler, tokenizer) as samplers:
        [actor] = samplers._actors
        actor.sample(str(tmp_path), [[3, 4]], Decoding(), n=1, seed=0, with_logps=0)
    [params] = vllm.asked
    bos = 0
    assert params["stop_token_ids"] == [bos, 1, 7]


class _Vllm:
    """As much of vLLM as an engine needs; it keeps what it was asked."""

    @staticmethod
    def parts() -> dict[str, Any]:
        asked: list[dict[str, Any]] = []
        return {
            "asked": asked,
            "LLM": lambda **settings: SimpleNamespace(generate=lambda inputs, params, **how: []),
            "SamplingParams": lambda **params: asked.append(params),
            "TokensPrompt": dict,
        }


class _RayInThisProcess:
    """Actors that are plain objects, so that what reaches vLLM can be seen."""

    @staticmethod
    def remote(**resources: Any) -> Any:
        return lambda kind: SimpleNamespace(options=lambda **more: SimpleNamespace(remote=kind))

    @staticmethod
    def kill(actor: Any) -> None:
        pass
