"""The rooms: who may import whom, and what a room may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
IMPORT_ROOM = """
import importlib, pkgutil, sys
room = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
    importlib.import_module(module.name)
print(*sorted(name for name in sys.modules if "." not in name))
"""


def modules_loaded_by(room: str) -> set[str]:
    answer = subprocess.run(
        [sys.executable, "-c", IMPORT_ROOM, room], capture_output=True, text=True, cwd=CHECKOUT, check=True
    )
    return set(answer.stdout.split())


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("raydpo.config", {"torch", "ray", "transformers", "deepspeed", "vllm", "pyarrow", "numpy"}),
        ("raydpo.objective", {"ray", "transformers", "deepspeed", "vllm", "pyarrow"}),
    ],
)
def test_the_lowest_rooms_load_nothing_heavy(room: str, forbidden: set[str]) -> None:
    loaded = modules_loaded_by(room)
    assert "raydpo" in loaded
    assert not loaded & forbidden


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        # What Ray's own processes import to pass on: the feed, the entry point, the actor classes.
        ("runtime.feed.plan", {"torch", "transformers", "deepspeed"}),
        ("workspace.job", {"torch", "transformers", "deepspeed"}),
        ("runtime.feed.readers", {"torch", "transformers", "deepspeed"}),
        ("runtime.prepare", {"torch", "transformers", "deepspeed"}),
        # Drivers. TorchTrainer loads torch.
        ("runtime.pools.pool", {"torch", "transformers", "deepspeed"}),
        ("runtime.trainer.driver", {"transformers", "deepspeed"}),
    ],
)
def test_whoever_only_passes_work_on_loads_nothing_that_only_the_work_needs(module: str, forbidden: set[str]) -> None:
    script = f"import sys, raydpo.{module}; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    loaded = set(answer.stdout.split())
    assert f"raydpo.{module}" in loaded
    assert not loaded & forbidden


def parameters_of(tree: ast.AST) -> Iterator[ast.arg]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            yield from (*node.posonlyargs, *node.args, *node.kwonlyargs)


def test_the_run_file_is_handed_to_stages_and_to_nobody_below_them() -> None:
    takers = {
        path.relative_to(CHECKOUT / "raydpo").parts[0]
        for path in (CHECKOUT / "raydpo").rglob("*.py")
        for parameter in parameters_of(ast.parse(path.read_text(encoding="utf-8")))
        if parameter.annotation and "RunFile" in ast.unparse(parameter.annotation)
    }
    assert "stages" in takers
    assert takers <= {"stages", "config", "report"}, "config writes it out, and a report is of the whole"


def test_a_room_imports_only_what_stands_below_it() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert answer.returncode == 0, answer.stdout
    assert "0 broken" in answer.stdout


def test_every_file_of_unit_tests_is_marked_so() -> None:
    files = (Path(__file__).parent).glob("test_*.py")
    unmarked = [path.name for path in files if "\npytestmark = pytest.mark.unit\n" not in path.read_text()]
    assert unmarked == [], "make test would run them one after the other, among those that start clusters"
