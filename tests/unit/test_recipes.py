"""The recipes are valid run files, each named where the documents list them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.config.load import load_run_file
from raydpo.stages.inputs import loss_checks
from raydpo.stages.values import RunValues

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
RECIPES = sorted((CHECKOUT / "jobs" / "recipes").glob("*.yaml"))
RUN_FILES = [path for path in RECIPES if not path.name.startswith("frontier_")]


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_recipe_is_a_run_file_whose_loss_takes_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    run = load_run_file(path)
    checks = list(loss_checks(run, RunValues(run).rows()))
    assert checks
    for check in checks:
        check()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run_and_what_was_seen(path: Path) -> None:
    text = path.read_text()
    assert "\n# Run: " in text
    assert "\n# Seen: " in text
    pages = [page.read_text() for page in ((CHECKOUT / "docs").glob("*.md"))]
    assert any(path.name in page for page in pages)
