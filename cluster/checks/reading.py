"""The manifests as trees: YAML 1.1, as kubectl and Ray read it, and a key given twice is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cluster.checks.shapes import Tree


@dataclass(frozen=True)
class Manifest:
    """One Kubernetes object, and the file that it stands in."""

    file: str
    tree: Tree

    @property
    def kind(self) -> str:
        """Its kind, such as RayJob."""
        return str(self.tree.get("kind"))

    @property
    def name(self) -> str:
        """What it is called in the cluster."""
        metadata = self.tree.get("metadata")
        return str(metadata.get("name")) if isinstance(metadata, dict) else "without a name"

    def __str__(self) -> str:
        """`kueue.yaml: LocalQueue raydpo-gpu`, as problems begin."""
        return f"{self.file}: {self.kind} {self.name}"


def documents(text: str) -> list[Any]:
    """Every document of a file. Raises ValueError where it is no YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)  # to which `no` is false: an environment variable has to be quoted
    try:
        return [document for document in yaml.load_all(text) if document is not None]
    except YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None


def manifests(file: str, text: str) -> list[Manifest]:
    """The objects of a file. Raises ValueError where a document is no mapping."""
    trees = documents(text)
    if not trees or not all(isinstance(tree, dict) for tree in trees):
        raise ValueError("a manifest is a mapping with apiVersion, kind and metadata")
    return [Manifest(file, tree) for tree in trees]
