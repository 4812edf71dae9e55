"""YAML 1.2, as a reader of run files expects it: `1e-6` is a number, `no` is a word, a key given twice is an error."""

from __future__ import annotations

import io
import sys
from typing import Any, BinaryIO

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.nodes import MappingNode, ScalarNode


class _Composer(Composer):
    """Finds a key that is given twice.

    The library's constructor looks for them too, but not beside a merge (`<<`), and its message shows both values: in
    `cluster.env` they may be secrets.
    """

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            if key.value in seen:
                raise DuplicateKeyError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node


def read_yaml(source: str | BinaryIO) -> Any:
    """Parse one document. Raises ruamel.yaml.error.YAMLError, with a mark where the place is known."""
    yaml = _yaml()
    yaml.Composer = _Composer
    return yaml.load(source)


def write_yaml(value: Any) -> str:
    """Block style, keys in the order given; `read_yaml` gives the value back."""
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.allow_unicode = False  # escaped, because a reader folds some of the letters that end a line elsewhere
    yaml.width = sys.maxsize  # one line each, because the library's folding of escaped text loses spaces
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def _yaml() -> YAML:
    # Pure, because a parser in C, where one is installed, reads YAML 1.1, to which `no` is false.
    return YAML(typ="safe", pure=True)
