"""The frontier file: which losses, how strong, with which seeds, over one run file; and the run files that follow.

Every training is an ordinary run with a directory of its own, which `raydpo train` takes as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from raydpo.config.load import checked_run_file, read_mapping, set_key
from raydpo.config.problems import describe_problems
from raydpo.config.schema import RunFile
from raydpo.config.schema.section import Directory, Location, Section
from raydpo.errors import UserError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Keys = dict[str, Any]
"""Dotted keys of a run file, and their values."""


class Method(Section):
    """One curve of the figure: keys that are the same at all its points, and one key that tells them apart."""

    set: Keys = {}
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({}, max_length=1)  # none: one point


class FrontierFile(Section):
    """Methods, their strengths, and seeds. The run file `base` says all the rest."""

    name: str = Field(pattern=NAME)
    output_dir: Directory
    base: Location
    set: Keys = {}  # laid over the base for all methods
    seeds: list[Annotated[int, Field(ge=0, lt=2**62)]] = Field(min_length=1)
    methods: dict[Annotated[str, Field(pattern=NAME)], Method] = Field(min_length=1)
    subject: str | None = None  # the method that the claims are about; by default the first

    @model_validator(mode="after")
    def _seeds_differ(self) -> FrontierFile:
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds has {twice[0]} twice; a seed that comes twice is one run, not two: remove one")
        return self

    @model_validator(mode="after")
    def _subject_is_there(self) -> FrontierFile:
        if self.subject is not None and self.subject not in self.methods:
            raise ValueError(f"subject={self.subject} is no method; known are {', '.join(self.methods)}")
        return self

    @property
    def about(self) -> str:
        """The method that the claims are about."""
        return self.subject or next(iter(self.methods))


@dataclass(frozen=True)
class Child:
    """One training: a method at one strength with one seed."""

    method: str
    strength: str  # such as "beta=0.1"; empty where the method has one point
    seed: int
    run: RunFile  # with its evaluate section

    @property
    def label(self) -> str:
        """For messages and tables."""
        return " ".join(part for part in (self.method, self.strength, f"seed {self.seed}") if part)


@dataclass(frozen=True)
class Frontier:
    """A frontier file that has been read, with the tree of its base."""

    file: FrontierFile
    tree: Mapping[str, Any]  # the base's, with `set` laid over

    @property
    def root(self) -> Path:
        """Where everything goes."""
        return Path(self.file.output_dir)

    def fine_tuning(self) -> RunFile:
        """The run that fine-tunes the model all others start from, where the base has an sft section.

        One for all seeds: what is compared are methods, and they share the reference that their KL is measured to.
        """
        return self._run("shared", output_dir=self.root / "shared")

    def sampling(self, seed: int) -> RunFile:
        """The run that samples and rates what the trainings of a seed learn from, and the reference's evaluation."""
        return self._run(f"shared-{seed}", output_dir=self._of_seed(seed), seed=seed, started=True)

    def rows(self, seed: int, loss: Mapping[str, Any], *, others: bool) -> RunFile:
        """The run that prepares and scores the rows of a seed.

        others: with a completion of another prompt in every row, which `loss`, the keys of an objective, asks for.
        """
        directory = self._of_seed(seed) / ("rows-with-others" if others else "rows")
        return self._run(f"rows-{seed}", output_dir=directory, seed=seed, started=True, prepared=True, keys=loss)

    def children(self) -> list[Child]:
        """All trainings, in the order of the methods, of their strengths and of the seeds."""
        return [
            self._child(method, strength, keys, seed)
            for method, strength, keys in self._points()
            for seed in self.file.seeds
        ]

    def _points(self) -> Iterator[tuple[str, str, Keys]]:
        for name, method in self.file.methods.items():
            if not method.sweep:
                yield name, "", method.set
            for key, values in method.sweep.items():
                for value in values:
                    yield name, f"{key.rpartition('.')[2].removeprefix(name + '_')}={value}", {**method.set, key: value}

    def _child(self, method: str, strength: str, keys: Keys, seed: int) -> Child:
        directory = self.root / method / (strength.replace("=", "-") or "alone") / f"seed-{seed}"
        run = self._run(f"{method}-{seed}", output_dir=directory, seed=seed, started=True, prepared=True, keys=keys)
        return Child(method, strength, seed, run)

    def _of_seed(self, seed: int) -> Path:
        return self.root / "shared" / f"seed-{seed}"

    def _run(
        self,
        name: str,
        *,
        output_dir: Path,
        seed: int | None = None,
        started: bool = False,
        prepared: bool = False,
        keys: Mapping[str, Any] | None = None,
    ) -> RunFile:
        """The base in another directory. started: after its sft stage; prepared: after its sample stage, too."""
        tree = copy.deepcopy(dict(self.tree))
        tree |= {"name": f"{self.file.name}-{name}", "output_dir": str(output_dir)}
        tree["reference"] = {"store": str(self.root / "shared" / "reference"), **(tree.get("reference") or {})}
        if seed is not None:
            tree["seed"] = seed
        if started and tree.pop("sft", None):
            tree["model"] = {**tree["model"], "path": str(self.root / "shared" / "sft" / "export")}
        if prepared:
            tree.pop("best_of_n", None)
            if sample := tree.pop("sample", None):
                pairs = self._of_seed(tree["seed"]) / "samples" / "pairs.jsonl"
                ranked = sample.get("pairs", "all") == "all"
                tree["data"] = {
                    **(tree.get("data") or {}),
                    "train": [str(pairs)],
                    "format": "ranked" if ranked else "pairs",
                }
        for key, value in (keys or {}).items():
            set_key(tree, key, value, f"{self.file.name}: {name}")
        return checked_run_file(tree, f"{self.file.name}: {name}")


def load_frontier(path: str | Path) -> Frontier:
    """Read a frontier file and its base. Raises UserError that names the file and every problem found in it.

    The run files of all trainings are made and checked too: what is wrong with the last is known before the first.
    """
    try:
        file = FrontierFile.model_validate(read_mapping(Path(path)), strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {describe_problems(error)}") from None
    tree = read_mapping(Path(file.base))
    for key, value in file.set.items():
        set_key(tree, key, value, f"{path}: set")
    frontier = Frontier(file, tree)
    if frontier.fine_tuning().evaluate is None:
        raise UserError(f"{file.base}: a frontier compares rewards and KLs, so its base needs an evaluate section.")
    frontier.children()
    return frontier
