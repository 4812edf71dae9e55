"""What the installed transformers can load, read from its source: importing it takes seconds, and loads torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from raydpo.errors import UserError

# Names of transformers' own. tests/unit/test_model_files.py holds what is read here against what it imports.
_TYPES = ("models/auto/auto_mappings.py", "CONFIG_MAPPING_NAMES")
_CAUSAL = ("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
_CLASSIFIERS = ("models/auto/modeling_auto.py", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES")

# Their positions are rows of a table, or of a weight: what lies beyond is an IndexError, on a GPU a device assert.
TABLED_POSITIONS = {
    "biogpt",
    "codegen",
    "ctrl",
    "gpt-sw3",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gptj",
    "mpt",
    "openai-gpt",
    "opt",
}


@cache
def known_types() -> Mapping[str, str]:
    """Every model_type, with the name of its configuration's class."""
    return _mapping(*_TYPES)


@cache
def causal_models() -> Mapping[str, str]:
    """Every model_type that has a causal language model, with the name of its class."""
    return _mapping(*_CAUSAL)


@cache
def sequence_classifiers() -> Mapping[str, str]:
    """Every model_type that has a sequence classifier, with the name of its class."""
    return _mapping(*_CLASSIFIERS)


def check_has_classifier(model: str, kind: str) -> None:
    """Raise UserError where transformers has no sequence classifier for a model_type: no reward model can be made."""
    if kind not in sequence_classifiers():
        both = sorted(kind for kind in sequence_classifiers() if kind in causal_models())
        raise UserError(
            f"model {model!r}: transformers has no sequence classifier for model_type {kind!r}, which is what a reward "
            f"model is exported as; set reward.model to one of {', '.join(both)}."
        )


def _mapping(file: str, name: str) -> Mapping[str, str]:
    """A mapping that a file of transformers assigns as `name = OrderedDict([("key", "value"), ...])`."""
    for statement in ast.parse((_source() / file).read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Call(args=[pairs])) if found == name:
                return dict(ast.literal_eval(pairs))
    raise LookupError(f"transformers/{file} has no mapping {name} any more")


def _source() -> Path:
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("transformers is not installed; install raydpo with its dependencies (see the README).")
    return Path(spec.submodule_search_locations[0])
