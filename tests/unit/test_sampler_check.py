"""Laws of the sampler check: rounding passes, other weights do not, and a number that is none never passes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raydpo.errors import UserError
from raydpo.evaluate.sampler_check import TOLERANCE, check_sampler

pytestmark = pytest.mark.unit

OWN = [np.asarray([-1.0, -2.0, -0.5], dtype=np.float32), np.asarray([-3.0], dtype=np.float32)]


def moved(by: float) -> list[list[float]]:
    return [[value + sign * by for value, sign in zip(each, (1, -1, 1), strict=False)] for each in OWN]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rounding_passes_and_its_size_is_told(dtype: str) -> None:
    small = TOLERANCE[dtype] / 2
    assert check_sampler(moved(small), OWN, model="m", dtype=dtype) == pytest.approx(small, rel=1e-3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("by", [1.0, math.nan, math.inf])
def test_other_weights_are_named_with_the_directory(dtype: str, by: float) -> None:
    with pytest.raises(UserError, match="does not hold the weights of exports/step-7"):
        check_sampler(moved(by), OWN, model="exports/step-7", dtype=dtype)


def test_differences_that_cancel_in_the_mean_do_not_pass() -> None:
    own = [np.asarray([-2.0, -2.0], dtype=np.float32)]
    with pytest.raises(UserError):
        check_sampler([[-3.0, -1.0]], own, model="m", dtype="bfloat16")


def test_a_completion_without_log_probs_is_no_proof() -> None:
    with pytest.raises(ValueError, match="0 log-probs from the sampler, 3"):
        check_sampler([[], [-3.0]], OWN, model="m", dtype="float32")
