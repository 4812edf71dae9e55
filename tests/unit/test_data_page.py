"""docs/data.md is true: its table is the registry, and its run files are ones that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raydpo.config.load import load_run_file
from raydpo.data.context import COLUMNS
from raydpo.data.formats import FOR_SFT, FORMATS

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.*) \| (pair|unpaired|ranked|sft) \| (.+) \|$", re.MULTILINE)
RUN_FILE = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_table_has_every_format_in_the_order_in_which_they_are_tried() -> None:
    registry = [(name, each.columns, each.kind) for name, each in [*FORMATS.items(), *FOR_SFT.items()]]
    assert [(name, columns, kind) for name, columns, kind, _ in ROW.findall(PAGE)] == registry


def test_every_run_file_of_the_page_can_be_read(tmp_path: Path) -> None:
    files = RUN_FILE.findall(PAGE)
    assert len(files) >= 4
    for number, text in enumerate(files):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"name: page\noutput_dir: out\nmodel: {{path: m}}\n{text}")
        assert load_run_file(path).data.train


def test_every_column_for_the_template_is_named() -> None:
    assert all(f"| `{column}`" in PAGE for column in COLUMNS)
