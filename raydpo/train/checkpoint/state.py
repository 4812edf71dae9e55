"""The training state in files: each rank writes the slices it holds, and any slice can be read back.

A slice is a range of a flattened parameter: its float32 master weights ("weight") and the optimizer's tensors under
their own names ("square_avg", ...). One rank's slices are one safetensors file, whose tensors are called
`<kind>/<parameter>`; rank 0's also holds what is not trained, whole, as `untrained/<name>`. The files say nothing of
how the optimizer lays its memory out, so every number of ranks and every ZeRO stage reads those of every other; and a
reader never needs more than what it asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from raydpo.storage.files import whole_file

WEIGHT = "weight"
UNTRAINED = "untrained"


@dataclass(frozen=True)
class SavedSlice:
    """A range of one flattened parameter, in float32."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    start: int
    values: Mapping[str, np.ndarray]  # by kind, all of one length

    @property
    def size(self) -> int:
        """Bytes of the values of all kinds."""
        return sum(values.nbytes for values in self.values.values())

    def first_not_finite(self) -> str | None:
        """`<kind>/<parameter>` of the first values that hold a NaN or an infinity."""
        for kind, values in self.values.items():
            # The extremes tell, because a NaN is one of them wherever there is one; nothing is allocated.
            if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
                return f"{kind}/{self.name}"
        return None


@dataclass(frozen=True)
class Untrained:
    """A tensor of the model that is saved with it and not trained."""

    name: str
    dtype: str  # in the model; numpy has no bfloat16, whose values are kept in float32
    values: np.ndarray


def write_state(
    path: Path, slices: Sequence[SavedSlice], scalars: dict[str, float], untrained: Sequence[Untrained] = ()
) -> None:
    """Write one rank's file, whole or not at all. Scalars are state that all parameters share, as `step`."""
    tensors = {f"{kind}/{each.name}": values for each in slices for kind, values in each.values.items()}
    tensors |= {f"{UNTRAINED}/{each.name}": each.values for each in untrained}
    places = {each.name: {"start": each.start, "shape": each.shape} for each in slices}
    kinds = sorted({kind for each in slices for kind in each.values})
    about = {
        "places": places,
        "kinds": kinds,
        "scalars": scalars,
        "untrained": {each.name: each.dtype for each in untrained},
    }
    with whole_file(path) as temporary:
        save_file(tensors, temporary, {name: json.dumps(value) for name, value in about.items()})


class SavedState:
    """The state of a whole commit, read from the files of all ranks."""

    def __init__(self, directory: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.scalars: dict[str, float] = {}
        self.untrained: dict[str, Untrained] = {}
        self._places: dict[str, list[tuple[int, safe_open]]] = {}
        kinds: set[str] = set()
        for path in sorted(directory.glob("rank-*.safetensors")):
            file = safe_open(path, "np")
            metadata = file.metadata()
            self.scalars |= json.loads(metadata["scalars"])
            for name, place in json.loads(metadata["places"]).items():
                self.shapes[name] = tuple(place["shape"])
                self._places.setdefault(name, []).append((place["start"], file))
            kinds |= set(json.loads(metadata["kinds"]))
            for name, dtype in json.loads(metadata.get("untrained", "{}")).items():  # older versions saved none
                self.untrained[name] = Untrained(name, dtype, file.get_tensor(f"{UNTRAINED}/{name}"))
        self.kinds = sorted(kinds)

    def read(self, kind: str, name: str, start: int, stop: int) -> np.ndarray:
        """A range of a flattened parameter; RuntimeError where the files do not hold all of it."""
        values = np.empty(stop - start, np.float32)
        missing = stop - start
        for first, file in self._places.get(name, []):
            stored = file.get_slice(f"{kind}/{name}")
            low = max(start, first)
            high = min(stop, first + stored.get_shape()[0])
            if low < high:
                values[low - start : high - start] = stored[low - first : high - first]
                missing -= high - low
        if missing:
            raise RuntimeError(f"the checkpoint lacks {missing} of the elements {start} to {stop} of {kind} of {name}.")
        return values

    def whole(self, kind: str, name: str) -> np.ndarray:
        """All of a parameter, in its own shape."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, int(np.prod(shape))).reshape(shape)


def largest_differences(first: SavedState, second: SavedState) -> dict[str, float]:
    """max |Δ| by `<kind>/<parameter>` and `untrained/<name>`; infinity where the other has none or another shape."""
    found = {}
    for name in sorted(first.shapes.keys() | second.shapes.keys()):
        same_shape = first.shapes.get(name) == second.shapes.get(name)
        for kind in sorted({*first.kinds, *second.kinds}):
            comparable = same_shape and kind in first.kinds and kind in second.kinds
            gap = np.abs(first.whole(kind, name) - second.whole(kind, name)).max() if comparable else np.inf
            found[f"{kind}/{name}"] = float(gap)
    for name in sorted(first.untrained.keys() | second.untrained.keys()):
        found[f"{UNTRAINED}/{name}"] = _largest_difference(first.untrained.get(name), second.untrained.get(name))
    return found


def _largest_difference(first: Untrained | None, second: Untrained | None) -> float:
    if first is None or second is None or first.values.shape != second.values.shape:
        return np.inf
    return float(np.abs(np.subtract(first.values, second.values, dtype=np.float64)).max())
