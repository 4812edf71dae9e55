"""Swapping a vLLM engine's weights so that nothing of the old ones stays. vLLM's private names are used here only.

What `reload_weights` leaves undone (0.32.0): its CPU build multiplies by a repacked copy of a matrix, `cpu_linear`,
which is made when weights are loaded into the module that has it. A tied output head has no weights in a checkpoint. So
its matrix changes with the embedding's, while its copy stays what the former model made it: new trunk, old head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

PACKED = "cpu_linear"  # a closure over the repacked copy
METHOD = "quant_method"  # makes it, in process_weights_after_loading; unquantised modules have one as well


def swap_weights(worker: Any, path: str) -> list[str]:
    """Load the weights of a directory into a vLLM worker; returns the parameters that the directory did not give.

    Fit for vLLM's `collective_rpc`, which hands the worker over.
    """
    model = worker.get_model()
    expected = {name for name, _ in model.named_parameters()}  # a shared matrix has one name
    loaded = _reloaded(worker, model, path)
    for module in model.modules():
        if keeps_copy(module):
            getattr(module, METHOD).process_weights_after_loading(module)
    return sorted(expected - loaded)


def keeps_copy(module: nn.Module) -> bool:
    """Whether a module multiplies by a repacked copy of a matrix that it holds as well.

    Linear layers give their matrix up for the copy; they are packed anew from the file, and there is nothing to pack
    them from here.
    """
    weight = getattr(module, "weight", None)
    return hasattr(module, PACKED) and isinstance(weight, Tensor) and weight.ndim == 2


def _reloaded(worker: Any, model: Any, path: str) -> set[str]:
    """Reload, and return the names that came: vLLM itself only logs those that did not."""
    loaded: set[str] = set()
    load_weights = model.load_weights

    def listening(weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        names = load_weights(weights)
        loaded.update(names)
        return names

    model.load_weights = listening
    try:
        worker.reload_weights(weights_path=path)
    finally:
        del model.load_weights  # the method of the class is back
    return loaded
