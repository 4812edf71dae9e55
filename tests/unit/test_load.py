"""Laws of loading: what is refused, what a digest names, what is switched off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from raydpo.errors import UserError
from raydpo.model import attention
from raydpo.model.directory import weights_digest
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.model.tokenizer import load_tokenizer
from tests.families import save_family
from tests.models import exact, exact_logps, make_batch, random_rows, save_tiny_model, tiny_llama

pytestmark = pytest.mark.unit

ROWS = random_rows(4, seed=0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    save_tiny_model(path)
    return path


def _edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _edit_weights(path: Path, name: str, by: float | None) -> None:
    """Add to one number of a tensor, or take the tensor out."""
    file = path / "model.safetensors"
    weights = load_file(file)
    if by is None:
        del weights[name]
    else:
        weights[name].view(-1)[0] += by
    save_file(weights, file, metadata={"format": "pt"})


def _token_logps(lm: PreTrainedModel) -> torch.Tensor:
    return ScoringModel(lm).token_logps(make_batch(ROWS))


def test_a_saved_model_comes_back_bit_for_bit_on_segment_attention(tmp_path: Path) -> None:
    saved = tiny_llama()
    saved.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32")
    assert loaded.config._attn_implementation == attention.NAME
    assert torch.equal(_token_logps(loaded), _token_logps(saved))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_come_in_the_dtype_asked_for(model: Path, dtype: str) -> None:
    parameters = load_model(str(model), dtype=dtype).parameters()
    assert {str(p.dtype) for p in parameters} == {f"torch.{dtype}"}


def test_the_tokenizer_beside_the_model_is_loaded(model: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    assert tokenizer.decode(tokenizer("A quiet film.", add_special_tokens=False)["input_ids"]) == "A quiet film."


@pytest.mark.parametrize("kind", ["modules", "config alone"])
def test_every_dropout_is_off_even_in_training(tmp_path: Path, kind: str) -> None:
    if kind == "modules":
        sizes = {"vocab_size": 211, "n_embd": 32, "n_layer": 2, "n_head": 2}
        dropouts = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
        GPT2LMHeadModel(GPT2Config(**sizes, **dropouts)).save_pretrained(tmp_path)
    else:  # Llama's attention keeps the probability as a number of its own
        tiny_llama().save_pretrained(tmp_path)
        _edit_config(tmp_path, attention_dropout=0.5)
    lm = load_model(str(tmp_path), dtype="float32").train()
    with torch.no_grad():
        expected = [
            logps.gather(1, torch.tensor(completion)[:, None]).squeeze(1)
            for row in ROWS
            for logps, completion in zip(exact_logps(exact(lm).eval(), row), row.completions, strict=True)
        ]
    torch.testing.assert_close(_token_logps(lm).double(), torch.cat(expected), rtol=0, atol=1e-5)


def test_the_digest_survives_copying_and_renaming(model: Path, tmp_path: Path) -> None:
    before = weights_digest(str(model))
    copied = shutil.copytree(model, tmp_path / "copied")
    assert weights_digest(str(copied)) == before
    assert weights_digest(str(model.rename(tmp_path / "renamed"))) == before


def test_the_digest_does_not_ask_who_wrote_the_config(model: Path) -> None:
    before = weights_digest(str(model))
    _edit_config(model, transformers_version="0.0.0", _name_or_path="elsewhere")
    assert weights_digest(str(model)) == before


@pytest.mark.parametrize("by", [1.0, 1e-3])
def test_one_changed_weight_changes_the_digest(model: Path, by: float) -> None:
    _edit_weights(model, "model.norm.weight", 0.0)
    before = weights_digest(str(model))
    _edit_weights(model, "model.norm.weight", by)
    assert weights_digest(str(model)) != before


def test_a_config_that_changes_the_numbers_changes_the_digest(model: Path) -> None:
    before = weights_digest(str(model))
    _edit_config(model, rms_norm_eps=0.1)
    assert weights_digest(str(model)) != before


@pytest.mark.parametrize("ask", [load_tokenizer, weights_digest, lambda path: load_model(path, dtype="float32")])
def test_a_path_that_is_no_model_is_refused_by_name(tmp_path: Path, ask) -> None:  # type: ignore[no-untyped-def]
    absent = str(tmp_path / "absent")
    with pytest.raises(UserError, match=f"{absent}.* does not exist; give a directory in Hugging Face format"):
        ask(absent)
    with pytest.raises(UserError, match=f"{tmp_path}.* has no config.json; give a directory in Hugging Face format"):
        ask(str(tmp_path))


def test_a_model_without_weights_is_refused_by_name(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"{model}.* weights; export it again"):
        weights_digest(str(model))
    with pytest.raises(UserError, match=f"{model}.* weights; export it again"):
        load_model(str(model), dtype="float32")


def test_half_a_weight_file_is_refused_by_name(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{model}.* weights; export it again"):
        load_model(str(model), dtype="float32")


def test_a_model_that_lacks_a_weight_is_refused_and_never_random(model: Path) -> None:
    _edit_weights(model, "model.norm.weight", None)
    with pytest.raises(UserError, match=rf"{model}.*lacks weights: \['model.norm.weight'\].*export it again"):
        load_model(str(model), dtype="float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pickled_weight_that_is_not_finite_is_named(model: Path, value: float) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    load_model(str(model), dtype="float32")
    weights["model.embed_tokens.weight"][-1, 0] = value  # of a token that no probe meets
    torch.save(weights, model / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"{model}.*: the weight model.embed_tokens.weight holds .* not finite"):
        load_model(str(model), dtype="float32")


def test_what_a_class_freezes_is_not_trained(tmp_path: Path) -> None:
    lm = load_model(save_family("ernie4_5_moe", tmp_path), dtype="float32")
    frozen = [name for name, parameter in lm.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.layers.1.mlp.gate.moe_statics.e_score_correction_bias"]


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    tiny_llama(tied=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    lm = load_model(str(tmp_path), dtype="float32")
    assert isinstance(lm, LlamaForCausalLM)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_longest_row_of_a_batch_are_refused(model: Path, kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    _edit_config(model, rope_parameters={**parameters, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8})
    with pytest.raises(UserError, match=rf"{model}.*{kind}.*set a fixed rope_type"):
        load_model(str(model), dtype="float32")
