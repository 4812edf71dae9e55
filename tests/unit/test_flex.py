"""Laws of the GPU's attention, as far as they can be seen without one: it sees what segment attention sees."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raydpo.data.pack import pack_rows
from raydpo.model.attention import Bounds, segment_attention, segments
from raydpo.model.flex import BLOCK, block_mask, flex_segment_attention
from tests.models import make_row

pytestmark = pytest.mark.unit

LENGTHS = st.integers(1, BLOCK + 20)
ROWS = st.lists(st.lists(LENGTHS, min_size=2, max_size=3), min_size=1, max_size=3)
WINDOWS = st.sampled_from([None, 1, 7, BLOCK, 300])


def _bounds(rows: list[list[int]]) -> Bounds:
    """Of rows given as (prompt length, completion lengths ...)."""
    marks, start = [], 0
    for lengths in rows:
        marks.append(tuple(start + sum(lengths[:i]) for i in range(len(lengths) + 1)))
        start += sum(lengths)
    return tuple(marks)


def _visible(bounds: Bounds, window: int | None) -> Tensor:
    """[T, T] by the definition: own prompt and self, not later, and not further back than the window."""
    size = bounds[-1][-1]
    seen, place = torch.zeros(size, size, dtype=torch.bool), torch.zeros(size)
    for start, first, *later in bounds:
        seen[start:first, start:first] = True
        place[start:first] = torch.arange(first - start)
        for begin, end in pairwise((first, *later)):
            seen[begin:end, start:first] = seen[begin:end, begin:end] = True
            place[begin:end] = torch.arange(first - start, first - start + end - begin)
    back = place[:, None] - place
    return seen & (back >= 0) & (back < (window or size))


@settings(max_examples=15, deadline=None)
@given(rows=ROWS, window=WINDOWS)
def test_the_block_mask_shows_exactly_the_visible_pairs(rows: list[list[int]], window: int | None) -> None:
    bounds = _bounds(rows)
    mask, visible = block_mask(bounds, window, torch.device("cpu")), _visible(bounds, window)
    size = len(visible)
    q, k = torch.arange(size)[:, None], torch.arange(size)[None]
    inside = mask.mask_mod(torch.tensor(0), torch.tensor(0), q, k)
    some, whole = _dense(mask.kv_num_blocks, mask.kv_indices), _dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    grown = [each.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:size, :size] for each in (some, whole)]
    assert torch.equal((grown[0] & inside) | grown[1], visible)
    assert not (some & whole).any()


def _dense(counts: Tensor, indices: Tensor) -> Tensor:
    blocks = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, (count, which) in enumerate(zip(counts[0, 0].tolist(), indices[0, 0], strict=True)):
        blocks[row, which[:count].long()] = True
    return blocks


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 9])
def test_both_attentions_compute_the_same(window: int | None, softcap: float | None) -> None:
    bounds = pack_rows([make_row([1] * 90, [2] * 40, [3] * 70), make_row([1], [2], [3] * 150)]).bounds
    torch.manual_seed(0)
    q = torch.randn(1, 4, bounds[-1][-1], 16)
    k, v = torch.randn(2, 1, 2, bounds[-1][-1], 16)
    options = {"bounds": bounds, "scaling": 0.3, "sliding_window": window, "softcap": softcap}
    expected, _ = segment_attention(nn.Module(), q, k, v, None, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        actual, _ = flex_segment_attention(nn.Module(), q, k, v, None, **options)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@given(rows=ROWS)
def test_segments_cover_every_token_once(rows: list[list[int]]) -> None:
    bounds = _bounds(rows)
    covered = [i for _, own in segments(bounds) for i in range(own.start, own.stop)]
    assert covered == list(range(bounds[-1][-1]))
