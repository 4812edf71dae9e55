"""Weight files whose numbers are all finite. No torch: drivers look before anything heavy is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from raydpo.errors import UserError

# In each of these formats a NaN or an infinity is a number whose exponent's bits are all ones.
_EXPONENT: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F80_0000),
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
}
NOT_FINITE = (
    "holds numbers that are not finite (NaN or infinity); whatever made the model went wrong there: take an earlier "
    "checkpoint of it, or another model."
)
_BLOCK = 1 << 22  # numbers looked at together


def check_finite(file: Path) -> None:
    """Raise UserError for a safetensors file that holds a NaN or an infinity, with the tensor's name.

    Raises it for a file that is cut short too. Not looked at are tensors of other types than floating point of 16 to
    64 bits, and single numbers: such may be bounds that nothing reaches, as in Gemma 4's vision tower.
    """
    header, offset = _header(file)
    size = file.stat().st_size - offset
    for name, about in header.items():
        begin, end = about["data_offsets"]
        if end > size:
            raise UserError(f"the weights in {file} are cut short; copy or export the model again, whole.")
        if about["dtype"] in _EXPONENT and about["shape"] and end > begin:
            content = np.memmap(file, np.uint8, "r", offset=offset + begin, shape=end - begin)
            if not _finite(content, *_EXPONENT[about["dtype"]]):
                raise UserError(f"{file}: the weight {name} {NOT_FINITE}")


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a file by name, and where their bytes begin."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, file.stat().st_size)))
        except ValueError as error:
            raise UserError(
                f"{file} has no readable weights; copy or export the model again, whole ({error})."
            ) from error
    return {name: about for name, about in header.items() if name != "__metadata__"}, 8 + length


def _finite(content: np.ndarray, word: type[np.unsignedinteger[Any]], exponent: int) -> bool:
    numbers = content.view(word)
    return not any(
        bool(((numbers[begin : begin + _BLOCK] & word(exponent)) == exponent).any())
        for begin in range(0, len(numbers), _BLOCK)
    )
