"""Laws of the probe at loading: what it finds, what it lets pass, and that it leaves the model as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from raydpo.errors import UserError
from raydpo.model import probe
from raydpo.model.layout import is_packed, layout_name
from raydpo.model.load import load_model
from raydpo.model.probe import choose_layout
from tests.families import FAMILIES, save_family

pytestmark = pytest.mark.unit


def _family(name: str, path: Path, *, dtype: torch.dtype = torch.float32, logits: float = 1.0) -> PreTrainedModel:
    """As transformers loads it, with its output matrix multiplied."""
    lm = AutoModelForCausalLM.from_pretrained(save_family(name, path), dtype=dtype).eval()
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(logits)
    return lm


@pytest.mark.parametrize("window", [5, 14, 200, 4096])
@pytest.mark.parametrize(("name", "packed"), [("mistral", True), ("gemma2", True), ("qwen2_moe", False)])
def test_a_window_of_any_length_is_looked_beyond(name: str, packed: bool, window: int, tmp_path: Path) -> None:
    settings = {**FAMILIES[name], "sliding_window": window}
    lm = load_model(save_family(name, tmp_path, settings), dtype="float32")
    assert is_packed(lm) == packed
    assert lm.config.sliding_window == window


@pytest.mark.parametrize("logits", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", ["llama", "qwen3", "granitemoe", "olmo2"])
def test_right_packings_pass_in_bfloat16_however_large_the_logits_are(name: str, logits: float, tmp_path: Path) -> None:
    lm = _family(name, tmp_path, dtype=torch.bfloat16, logits=logits)
    assert is_packed(choose_layout(lm, name=name))


@pytest.mark.parametrize("logits", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_wrong_packings_fail_in_bfloat16_however_small_the_logits_are(name: str, logits: float, tmp_path: Path) -> None:
    lm = _family(name, tmp_path, dtype=torch.bfloat16, logits=logits)
    assert not is_packed(choose_layout(lm, name=name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen2_moe", "its log-probs in packed rows are off by"),
        ("nemotron", "packed rows end it with TypeError"),
        ("lfm2", "it has layers of the kind conv"),
        ("mamba", "it takes no attention but its own"),
    ],
)
def test_the_log_says_why_rows_are_padded(name: str, reason: str, tmp_path: Path) -> None:
    lm = load_model(save_family(name, tmp_path), dtype="float32")
    assert layout_name(lm).startswith("padded sequences")
    assert reason in layout_name(lm)


def test_the_probes_twin_shares_the_weights_and_leaves_the_model_alone(tmp_path: Path) -> None:
    lm = _family("gemma3_text", tmp_path)
    before = lm.config.to_dict()
    twin = probe._short_sighted(lm)
    assert twin is not lm
    assert twin.config.sliding_window == probe.REACH
    shared = dict(twin.named_parameters())
    assert all(shared[name].data_ptr() == weight.data_ptr() for name, weight in lm.named_parameters())
    choose_layout(lm, name="gemma3_text")
    assert lm.config.to_dict() == before
    assert not lm.training


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    path = save_family("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{tmp_path}.*not finite; .*NaN.*model.layers.1.mlp.up_proj.weight"):
        load_model(path, dtype="float32")
