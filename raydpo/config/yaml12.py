"""YAML as a reader of run files expects it: `1e-6` is a number, and a key given twice is an error."""

from __future__ import annotations

import re
from typing import Any, BinaryIO

import yaml

_FLOAT_TAG = "tag:yaml.org,2002:float"
_MERGE_TAG = "tag:yaml.org,2002:merge"
# YAML 1.1 wants a dot in every float and a sign in every exponent, so PyYAML leaves 1e-6 and 1.5e3 as text.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self._refuse_duplicates(node)
        return super().construct_mapping(node, deep)

    def _refuse_duplicates(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader would take for a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, list("-+.0123456789"))


def read_yaml(source: str | BinaryIO) -> Any:
    """Parse one document. Raises yaml.YAMLError, with a mark where the place is known."""
    return yaml.load(source, Loader=_Loader)


def write_yaml(value: Any) -> str:
    """Block style, keys in the order given; `read_yaml` gives the value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)  # escaped: YAML folds some letters
