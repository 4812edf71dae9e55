"""Models that cannot be used are refused by their files alone, with a remedy, before anything is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from raydpo.config.schema import RunFile
from raydpo.data.shards import Counts, ShardInfo, TokenManifest
from raydpo.errors import UserError
from raydpo.model.families import causal_models, known_types
from raydpo.model.load import check_loadable, load_model
from raydpo.model.model_files import check_model_files
from raydpo.model.tokenizer_files import check_tokenizer_files
from raydpo.reference.dataset import MANIFEST
from raydpo.stages.inputs import check_inputs
from raydpo.stages.values import RunValues
from raydpo.workspace.provenance import made_from

pytestmark = pytest.mark.unit

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def config(**changes: Any) -> Callable[[Path], object]:
    """Change keys of config.json; a key that is set to None goes."""

    def damage(model: Path) -> None:
        tree = json.loads((model / "config.json").read_text()) | changes
        kept = {key: value for key, value in tree.items() if value is not None}
        (model / "config.json").write_text(json.dumps(kept))

    return damage


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size])


def split(model: Path) -> None:
    """The weights in two files with an index, as large models have them."""
    tensors = load_file(model / WEIGHTS)
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in files.items():
        save_file({name: tensors[name] for name in members}, model / file)
    weight_map = {name: file for file, members in files.items() for name in members}
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (model / WEIGHTS).unlink()


def of_split(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    def both(model: Path) -> None:
        split(model)
        damage(model)

    return both


def misplace_a_tensor(model: Path) -> None:
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    index["weight_map"]["model.lost.weight"] = "model-00001-of-00002.safetensors"
    (model / INDEX).write_text(json.dumps(index))


def shrink_embedding(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors["model.embed_tokens.weight"] = np.ascontiguousarray(tensors["model.embed_tokens.weight"][:-1])
    save_file(tensors, model / WEIGHTS)


def make_adapter(model: Path) -> None:
    (model / WEIGHTS).rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")


DAMAGES = {
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\).*bfloat16"),
    "awq": (config(quantization_config={"quant_method": "awq"}), r"quantised \(awq\)"),
    "bitsandbytes": (config(quantization_config={"load_in_4bit": True}), "quantised .*save it dequantised"),
    "fp8": (config(quantization_config={"quant_method": "fp8"}), r"quantised \(fp8\)"),
    "remote code": (
        config(model_type="my_llm", auto_map={"AutoConfig": "configuration_my.MyConfig"}),
        "model_type 'my_llm' comes with code of its own .* use a causal language model",
    ),
    "unknown type": (config(model_type="nextgen-9"), "'nextgen-9' is unknown to the installed transformers; check"),
    "no type": (config(model_type=None), "config.json names no model_type; copy or export"),
    "encoder-decoder": (config(model_type="t5"), "'t5' has no causal language model; use"),
    "encoder-decoder with a decoder's class": (
        config(model_type="bart", is_encoder_decoder=True),
        "is an encoder-decoder",
    ),
    "classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        r"those of LlamaForSequenceClassification, not of a causal language model \(LlamaForCausalLM\); take",
    ),
    "cut config": (cut("config.json", 20), "config.json is not JSON .*; copy it again, whole"),
    "config of another shape": (lambda m: (m / "config.json").write_text("[]"), "config.json is not a JSON object"),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), "has no .* weights; export it again"),
    "cut weights": (cut(WEIGHTS, 9999), "model.safetensors is not a whole safetensors file .*; copy or export"),
    "cut header": (cut(WEIGHTS, 30), "model.safetensors is not a whole safetensors file"),
    "empty weights": (cut(WEIGHTS, 0), "model.safetensors is not a whole safetensors file"),
    "adapter": (make_adapter, "is an adapter; merge it"),
    "shards without index": (
        of_split(lambda m: (m / INDEX).unlink()),
        "has model-00001-of-00002.safetensors, and neither model.safetensors nor model.safetensors.index.json",
    ),
    "cut index": (of_split(cut(INDEX, 50)), "index.json is not JSON"),
    "index of nothing": (of_split(lambda m: (m / INDEX).write_text("{}")), "has no weight_map; copy or export"),
    "missing shard": (
        of_split(lambda m: (m / "model-00002-of-00002.safetensors").unlink()),
        "model-00002-of-00002.safetensors is missing, and model.safetensors.index.json names it; copy it there",
    ),
    "cut shard": (of_split(cut("model-00002-of-00002.safetensors", 999)), "00002.safetensors is not a whole"),
    "shard without a tensor": (of_split(misplace_a_tensor), "00001-of-00002.safetensors lacks model.lost.weight"),
    "too few embeddings": (shrink_embedding, r"embed_tokens.weight has \d+ rows, and vocab_size=\d+"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_model_that_cannot_be_used_is_refused_by_its_files(name: str, model: Path) -> None:
    damage, message = DAMAGES[name]
    damage(model)
    with pytest.raises(UserError, match=message):
        check_model_files(str(model))


@pytest.mark.parametrize("change", [lambda model: None, split, config(architectures=None), config(auto_map={})])
def test_a_whole_model_is_accepted(change: Callable[[Path], object], model: Path) -> None:
    change(model)
    check_model_files(str(model))


def test_pickled_weights_are_accepted_as_transformers_accepts_them(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")
    check_model_files(str(model))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            config(intermediate_size=128),
            r"mlp.\w+.weight has the shape \(.*96.*\), and by its config.json it should have \(.*128.*\); copy",
        ),
        (config(num_attention_heads=0), "cannot be loaded as its config.json says .*; copy or export it again"),
        (config(hidden_act="sorcery"), "cannot be loaded as its config.json says .*sorcery"),
        (lambda m: (m / WEIGHTS).rename(m / "pytorch_model.bin"), "; copy or export it again, whole"),
    ],
)
def test_what_shows_only_when_a_model_is_made_is_refused_then(
    damage: Callable[[Path], object], message: str, model: Path
) -> None:
    damage(model)
    with pytest.raises(UserError, match=message):
        load_model(str(model), dtype="float32")


def test_the_doctor_finds_shapes_that_do_not_fit_without_loading_weights(good: Path, model: Path) -> None:
    check_loadable(str(good))
    config(intermediate_size=128)(model)
    with pytest.raises(UserError, match=r"mlp.\w+.weight has the shape .* by its config.json it should have"):
        check_loadable(str(model))
    config(hidden_act="sorcery", intermediate_size=96)(model)
    with pytest.raises(UserError, match=r"cannot be loaded as its config.json says .*sorcery"):
        check_loadable(str(model))


def run_with(tmp_path: Path, **sections: Any) -> RunFile:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c", "completion": " d"}\n')
    rows = [str(tmp_path / "rows.jsonl")]
    tree = {
        "name": "a",
        "output_dir": str(tmp_path / "out"),
        "evaluate": {"prompts": rows},
        "sampler": {"max_model_len": 256},
        "sft": {"train": rows},
    }
    return RunFile.model_validate(tree | sections)


def run_of_stage(stage: str, tmp_path: Path, *, model: Path, reference: Path) -> RunFile:
    rows = [str(tmp_path / "rows.jsonl")]
    pairs = {"sample": {"prompts": rows}} if stage == "sample" else {"data": {"train": rows}}
    return run_with(tmp_path, model={"path": str(model)}, reference={"model": str(reference)}, **pairs)


@pytest.mark.parametrize("stage", ["prepare", "sft", "precompute", "train", "sample", "evaluate", "run"])
@pytest.mark.parametrize("key", ["model", "reference"])
def test_every_stage_that_loads_a_model_looks_at_it_first(
    stage: str, key: str, good: Path, model: Path, tmp_path: Path
) -> None:
    (model / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"{model}.* has no .* weights"):
        check_inputs(run_of_stage(stage, tmp_path, **({"model": good, "reference": good} | {key: model})), stage)


@pytest.mark.parametrize("stage", ["sft", "precompute", "train", "sample", "evaluate", "run"])
@pytest.mark.parametrize("key", ["model", "reference"])
def test_a_weight_that_is_not_finite_is_named_before_any_work(
    stage: str, key: str, good: Path, model: Path, tmp_path: Path
) -> None:
    weights = load_file(model / WEIGHTS)
    weights["model.norm.weight"][0] = np.nan
    save_file(weights, model / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=f"{model / WEIGHTS}: the weight model.norm.weight holds .* not finite"):
        check_inputs(run_of_stage(stage, tmp_path, **({"model": good, "reference": good} | {key: model})), stage)


@pytest.mark.parametrize("stage", ["prepare", "precompute", "train", "evaluate"])
def test_a_stage_behind_sft_says_that_sft_has_not_run(stage: str, good: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, model={"path": str(good)}, data={"train": [str(tmp_path / "rows.jsonl")]})
    with pytest.raises(UserError, match=r"out/sft/export is not there: the sft stage makes the model .* run it first"):
        check_inputs(run, stage)
    check_inputs(run, "run")


@pytest.mark.parametrize("stage", ["prepare", "precompute", "train", "evaluate"])
def test_a_stage_behind_sft_whose_rows_have_changed_since_is_refused(stage: str, good: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, model={"path": str(good)}, data={"train": [str(tmp_path / "rows.jsonl")]})
    layout = RunValues(run).layout
    shutil.copytree(good, layout.sft_export)
    manifest = TokenManifest(
        "sft", [ShardInfo("a.arrow", 640, "sha", 9)], Counts(), made_from=made_from(RunValues(run).token_source("sft"))
    )
    manifest.write(layout.sft_tokens / MANIFEST)
    check_inputs(run, "prepare")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() * 2)
    with pytest.raises(UserError, match=f"sft were prepared from other data: {rows} .*; run `raydpo sft` again"):
        check_inputs(run, stage)


def test_what_is_read_from_the_source_of_transformers_is_what_it_imports() -> None:
    assert causal_models() == dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    added = CONFIG_MAPPING_NAMES.keys() - known_types().keys()  # by code, when it is imported
    assert added.isdisjoint(causal_models().keys() - {"gpt-sw3"})
    assert known_types().items() <= CONFIG_MAPPING_NAMES.items()


def test_the_files_are_checked_without_torch(model: Path) -> None:
    check = f"from raydpo.model.model_files import check_model_files; check_model_files({str(model)!r})"
    script = f"import sys; {check}; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(answer.stdout.split()) & {"torch", "ray", "transformers"}


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 300), st.floats(-2, 2), st.text(max_size=3), st.just([]), st.just({})
)


@given(data=st.data())
def test_a_model_damaged_anywhere_loads_or_is_refused_with_a_remedy(
    data: st.DataObject, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = Path(shutil.copytree(good, tmp_path_factory.mktemp("damaged") / "model"))
    if data.draw(st.booleans(), label="in shards"):
        split(model)
    damage = data.draw(st.sampled_from([_delete, _truncate, _garble, _change_key, _change_tensor]))
    damage(model, data)
    try:
        check_model_files(str(model))
        check_tokenizer_files(str(model))
        load_model(str(model), dtype="float32")
    except UserError as error:
        assert any(word in str(error) for word in ("copy", "export", "take", "use ", "check", "give", "set "))  # noqa: PT017
    finally:
        shutil.rmtree(model)


def _file(model: Path, data: st.DataObject) -> Path:
    return data.draw(st.sampled_from(sorted([*model.glob("*config.json"), *model.glob("model*")])))


def _delete(model: Path, data: st.DataObject) -> None:
    _file(model, data).unlink()


def _truncate(model: Path, data: st.DataObject) -> None:
    file = _file(model, data)
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])


def _garble(model: Path, data: st.DataObject) -> None:
    file = _file(model, data)
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, min(len(content), 2000) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))


def _change_key(model: Path, data: st.DataObject) -> None:
    keys = sorted(json.loads((model / "config.json").read_text()))
    config(**{data.draw(st.sampled_from(keys)): data.draw(VALUES)})(model)


def _change_tensor(model: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(model.glob("*.safetensors"))))
    tensors = load_file(file)
    name = data.draw(st.sampled_from(sorted(tensors)))
    match data.draw(st.sampled_from(["remove", "cut", "flatten", "rename"])):
        case "remove":
            del tensors[name]
        case "cut":
            tensors[name] = np.ascontiguousarray(tensors[name][:-1])
        case "flatten":
            tensors[name] = tensors[name].reshape(-1)
        case "rename":
            tensors["other"] = tensors.pop(name)
    save_file(tensors, file)
