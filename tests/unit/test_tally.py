"""Figures of a pool of scorers, which here have nothing but answers."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from raydpo.config.schema import Pool
from raydpo.runtime.pools.elastic import ElasticPool
from raydpo.runtime.pools.pool import WORDS
from raydpo.runtime.pools.scorer import Scored
from raydpo.track.tally import Tally

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("flops", "mfu"), [(30.0, 0.25), (None, None)])
def test_mfu_is_of_what_scorers_could_have_done_and_none_where_it_is_not_known(
    flops: float | None, mfu: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    pool: ElasticPool[Any, Any] = ElasticPool(cast(Any, None), Pool(), WORDS)
    with Tally("reference", 4, pool) as tally:
        for _ in range(2):
            tally.add(Scored(np.zeros(2, np.float32), tokens=9, flops=flops, seconds=2.0, ceiling=60.0))
        assert tally.result()["mfu"] == mfu
    assert ("MFU=" in capsys.readouterr().err) == (mfu is not None)
