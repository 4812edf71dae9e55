"""What must not be written down: values under a secret name, and credentials inside addresses."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "REDACTED"

_NAME = r"token|secret|passw|key|credential|auth"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET_PARAMETER = re.compile(rf"(?i)([?&][^=&\s]*(?:{_NAME}|sig)[^=&\s]*=)[^&\s]+")


def redact_text(text: str) -> str:
    """Replace the userinfo (`s3://user:password@…`) and secret query parameters of every address in a text."""
    return _SECRET_PARAMETER.sub(rf"\g<1>{REDACTED}", _USERINFO.sub(REDACTED, text))


def redact(value: Any) -> Any:
    """Redact every text inside nested mappings and sequences; other values stay."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    return value


def redact_environment(env: dict[str, str]) -> dict[str, str]:
    """Redact the variables whose name sounds secret, and credentials inside the values of the others."""
    return {name: REDACTED if _SECRET_NAME.search(name) else redact_text(value) for name, value in env.items()}
