"""Where a judge is asked, and with which key. The key itself is in the environment, and written down nowhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from raydpo.config.schema import AskedJudge
from raydpo.errors import UserError

OPENAI = "https://api.openai.com/v1"
_NO_KEY = "none"  # the client will not do without one


@dataclass(frozen=True)
class Address:
    """Where a judge is asked."""

    model: str
    base_url: str
    api_key: str = field(repr=False)
    identity: str  # what decides its replies beside the request: the address, or the digest of served weights
    key_from: str | None = None  # the variable that the key stands in; None: it needs none


def remote_address(name: str, asked: AskedJudge) -> Address:
    """Where a judge with a model is asked. UserError where the variable with its key is not set."""
    assert asked.model
    variable = asked.api_key_env or (None if asked.base_url else "OPENAI_API_KEY")
    key = os.environ.get(variable, "") if variable else _NO_KEY
    if not key:
        raise UserError(
            f"judge {name}: the environment has no {variable}, which must hold the key of its endpoint; set it, or "
            "name another in api_key_env."
        )
    base_url = asked.base_url or OPENAI
    return Address(asked.model, base_url, key, identity=base_url, key_from=variable)
