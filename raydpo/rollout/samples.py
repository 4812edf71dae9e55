"""The samples table: everything that a sampler has drawn, in parquet files that are found by what was asked.

A table is a directory. Below it, all that decides a completion besides its prompt and its seed (weights, decoding,
number format, ...) has a directory of its own, named after it and with it in words in `drawn_by.json`. In there each
request that was answered is one file, whole or absent, named after the request. Who asks the same finds the file,
whatever for, and two who write it at once write the same.

A request is at most some tens of prompts with n completions each, and what is kept or lost together: a bfloat16 engine
rounds by the batch that it is given, so the batch is part of what is asked, and a request that is drawn again meets the
same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.errors import UserError
from raydpo.rollout.engine import Completion
from raydpo.storage.files import whole_file, write_json

# A row is a completion; rows stand prompt after prompt, n for each.
SCHEMA = pa.schema(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),  # with the token that ended it
        ("completion", pa.string()),  # without special tokens
        ("finish_reason", pa.dictionary(pa.int8(), pa.string())),  # "stop" or "length"
        ("seed", pa.int64()),
        ("logps", pa.list_(pa.float64())),  # see Completion; null where nobody asked
        ("weights", pa.dictionary(pa.int8(), pa.string())),  # digest, of the model that drew
        ("decoding", pa.dictionary(pa.int8(), pa.string())),  # as JSON
    ]
)
_DRAWN_BY = "drawn_by.json"


@dataclass(frozen=True)
class Request:
    """n completions for each of some prompts of token ids. Completion j of prompt i has the seed seed + i * n + j."""

    prompts: tuple[tuple[int, ...], ...]
    n: int
    seed: int

    @cached_property
    def name(self) -> str:
        """A hash of all of it."""
        return _digest([self.prompts, self.n, self.seed])


class SampleTable:
    """What one model has drawn in one way.

    drawn_by: whatever decides the ids that a request gets, `weights` and `decoding` among it; as JSON gives it back.
    """

    def __init__(self, root: Path, drawn_by: Mapping[str, Any]) -> None:
        self._drawn_by = dict(drawn_by)
        self._directory = root / _digest(self._drawn_by)

    def has(self, request: Request) -> bool:
        """Whether a request was answered and kept."""
        return self._path(request).exists()

    def read(self, request: Request) -> list[list[Completion]]:
        """The completions of a kept request, by prompt. Raises UserError for a file that is damaged."""
        path = self._path(request)
        try:
            rows = pq.read_table(path, schema=SCHEMA).to_pylist()
        except (pa.ArrowException, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it, and its completions are drawn again.") from error
        if len(rows) != len(request.prompts) * request.n:
            raise UserError(f"{path} holds {len(rows)} completions of {len(request.prompts)} x {request.n}; remove it.")
        completions = [_completion(row) for row in rows]
        return [completions[first : first + request.n] for first in range(0, len(rows), request.n)]

    def write(self, request: Request, completions: Sequence[Sequence[Completion]]) -> None:
        """Keep the completions of a request, n for each of its prompts, whole or not at all."""
        words = self._directory / _DRAWN_BY
        if not words.exists():
            write_json(words, self._drawn_by)  # nobody reads it but people
        with whole_file(self._path(request)) as temporary:
            pq.write_table(self._table(request, completions), temporary, compression="zstd")

    def _path(self, request: Request) -> Path:
        return self._directory / f"{request.name}.parquet"

    def _table(self, request: Request, completions: Sequence[Sequence[Completion]]) -> pa.Table:
        flat = [completion for answers in completions for completion in answers]
        prompts = [prompt for prompt, answers in zip(request.prompts, completions, strict=True) for _ in answers]
        columns = {
            "prompt_ids": prompts,
            "completion_ids": [each.ids for each in flat],
            "completion": [each.text for each in flat],
            "finish_reason": [each.finish_reason for each in flat],
            "seed": range(request.seed, request.seed + len(flat)),
            "logps": [each.logps or None for each in flat],
            "weights": [self._drawn_by["weights"]] * len(flat),
            "decoding": [json.dumps(self._drawn_by["decoding"])] * len(flat),
        }
        return pa.table({name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}, SCHEMA)


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(row["completion_ids"], row["completion"], row["finish_reason"], tuple(row["logps"] or ()))


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
