"""Laws of swapping a sampler's weights: every copy is made anew, and a name that did not come is told."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch import Tensor, nn

from raydpo.rollout.weights import METHOD, PACKED, keeps_copy, swap_weights

pytestmark = pytest.mark.unit


class Packing:
    """As vLLM's: what is multiplied by is a copy."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        copy = layer.weight.detach().clone()
        setattr(layer, PACKED, lambda x: x @ copy.t())


class Tied(nn.Module):
    """An embedding and a head that shares its matrix; the head packs a copy when it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.LayerNorm(3)
        setattr(self.head, METHOD, Packing())
        getattr(self.head, METHOD).process_weights_after_loading(self.head)

    def load_weights(self, weights: dict[str, Tensor]) -> set[str]:
        for name, value in weights.items():
            self.get_parameter(name).data.copy_(value)
        return set(weights)


class Worker:
    def __init__(self, model: nn.Module, files: dict[str, dict[str, Tensor]]) -> None:
        self._model, self._files = model, files

    def get_model(self) -> nn.Module:
        return self._model

    def reload_weights(self, *, weights_path: str) -> None:
        self._model.load_weights(self._files[weights_path])


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (5, 3), "norm.weight": (3,), "norm.bias": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_a_tied_head_multiplies_by_the_matrix_that_was_loaded_last() -> None:
    model = Tied()
    files = {"B": weights(1), "C": weights(2)}
    worker = Worker(model, files)
    x = torch.randn(2, 3)
    for name in ("B", "C", "B"):
        assert swap_weights(worker, name) == []
        assert torch.equal(getattr(model.head, PACKED)(x), x @ files[name]["embed.weight"].t())


def test_weights_that_did_not_come_are_named() -> None:
    cut = weights(1)
    del cut["norm.bias"]
    assert swap_weights(Worker(Tied(), {"B": cut}), "B") == ["norm.bias"]


def test_the_models_own_way_of_loading_is_back_after_a_swap_that_failed() -> None:
    model = Tied()
    before = model.load_weights
    with pytest.raises(KeyError):
        swap_weights(Worker(model, {}), "nowhere")
    assert model.load_weights == before


def test_a_layer_that_gave_its_matrix_up_is_left_alone() -> None:
    layer = nn.Linear(3, 5)
    setattr(layer, PACKED, None)
    assert keeps_copy(layer)
    layer.weight = nn.Parameter(torch.empty(0))
    assert not keeps_copy(layer)


def test_vllms_private_names_exist_on_the_pinned_version() -> None:
    layers = importlib.import_module("vllm.model_executor.layers.utils")
    embedding = importlib.import_module("vllm.model_executor.layers.vocab_parallel_embedding")
    runner = importlib.import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    assert f"layer.{PACKED}" in inspect.getsource(layers.dispatch_cpu_unquantized_gemm)
    assert "dispatch_cpu_unquantized_gemm" in inspect.getsource(
        embedding.UnquantizedEmbeddingMethod.process_weights_after_loading
    )
    assert METHOD in inspect.getsource(embedding.VocabParallelEmbedding.__init__)
    assert "weights_path" in inspect.signature(runner.reload_weights).parameters
    assert callable(runner.get_model)
