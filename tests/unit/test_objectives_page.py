"""docs/objectives.md is true: its table is the registry, and its example is all that a loss takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.objective.contract import LABEL, MISMATCHED, RANK, REF_LOGPS
from raydpo.objective.registry import LOSSES

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "objectives.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| .* \| ([^|]*) \| ((?:reference|nothing)[^|]*) \|$", re.MULTILINE)
ARGUMENT = re.compile(r"`(\w+)` ([\w.]+)")
NEEDS = {REF_LOGPS: "reference", RANK: "ranks", LABEL: "labels", MISMATCHED: "completions of other prompts"}
DIFF = re.compile(r"^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_table_has_every_loss_with_its_arguments_and_needs() -> None:
    rows = {name: (dict(ARGUMENT.findall(arguments)), needs) for name, arguments, needs in ROW.findall(PAGE)}
    assert rows.keys() == LOSSES.keys()
    for name, (arguments, needs) in rows.items():
        loss = LOSSES[name]
        assert arguments == {each: _said(value) for each, value in loss.defaults.items()}, name
        words = [word for column, word in NEEDS.items() if column in loss.needs]
        assert needs == (", ".join(words) or "nothing"), name


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def test_the_example_is_the_whole_of_a_new_loss(tmp_path: Path) -> None:
    for folder in ("raydpo/config", "raydpo/objective", "raydpo/storage", "raydpo/track"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (
        "raydpo/__init__.py",
        "raydpo/errors.py",
        "tests/pairs.py",
        "tests/unit/test_losses.py",
        "pyproject.toml",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / file, tmp_path / file)
    [diff] = DIFF.findall(PAGE)
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    asked = [sys.executable, "-m", "pytest", "-q", "tests/unit/test_losses.py", "-k", "squared_hinge or every"]
    answer = subprocess.run(
        asked, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout
    assert "squared_hinge" not in LOSSES
