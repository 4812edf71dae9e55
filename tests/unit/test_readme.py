"""The documents: what they name exists, and what they show works."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from raydpo.cli import COMMANDS, GROUPS, STAGES, checkpoints, reference
from raydpo.config.keys import is_known
from raydpo.config.load import load_run_file
from raydpo.config.schema import RunFile
from raydpo.reference.shard import SCHEMA
from raydpo.reference.store import Key, Store

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = [
    str(path.relative_to(CHECKOUT))
    for pattern in ("*.md", "docs/*.md", "cluster/**/*.md")
    for path in sorted(CHECKOUT.glob(pattern))
]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")

# A word that begins with a folder of the checkout and a slash is meant as a path, in a sentence or in a command.
REPOSITORY_PATH = re.compile(r"(?<![\w/.-])(?:\.ci|cluster|docs|jobs|raydpo|requirements|tests)/[\w./-]*")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
SECTION_ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \|$", re.MULTILINE)
SECTIONS = set(RunFile.model_fields)


def blocks(language: str) -> list[str]:
    return [body for found, body in FENCE.findall(README) if found == language]


def code() -> str:
    """Everything in the README that is set as code: shell blocks and spans, one a line."""
    return "\n".join([*blocks(""), *SPAN.findall(FENCE.sub("", README))])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_exists(document: str) -> None:
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    paths = [CHECKOUT / path.rstrip(".") for path in REPOSITORY_PATH.findall(text)]
    paths += [(CHECKOUT / document).parent / link for link in LINK.findall(text)]
    assert paths
    assert [path for path in paths if not path.exists()] == []


def test_every_make_target_that_the_readme_names_is_in_the_makefile() -> None:
    named = set(re.findall(r"^make (\w+)", code(), re.MULTILINE))
    assert named >= {"demo", "test"}
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    assert named <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


def test_the_readmes_test_command_is_what_continuous_integration_runs() -> None:
    [quick_start] = [block for block in blocks("") if block.startswith("git clone")]
    assert quick_start.splitlines()[-1].startswith("make test ")
    assert "make test" in (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_every_subcommand_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"\braydpo ([a-z]\w*)", code()))
    assert named >= {"run", "doctor", "precompute"}
    assert named <= {*STAGES, *COMMANDS}
    commands = {"checkpoints": checkpoints.COMMANDS, "reference": reference.COMMANDS}
    assert commands.keys() == GROUPS.keys()
    for name, group in commands.items():
        assert set(re.findall(rf"\braydpo {name} (\w+)", code())) == set(group)


@pytest.mark.parametrize("example", blocks("yaml"))
def test_an_example_run_file_is_valid(example: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(example, encoding="utf-8")
    assert load_run_file(tmp_path / "run.yaml").name == "mine"


def test_every_key_that_the_readme_names_is_in_the_schema() -> None:
    spans = SPAN.findall(FENCE.sub("", README))
    dotted = [span for span in spans if re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", span) and _section(span) in SECTIONS]
    overrides = re.findall(r"\s([a-z0-9_.]+)=\S", "\n".join(line for line in code().splitlines() if "run.yaml" in line))
    assert dotted
    assert overrides
    assert [key for key in dotted + overrides if not is_known(key)] == []


def _section(key: str) -> str:
    return key.partition(".")[0]


def test_the_table_of_sections_is_the_schemas() -> None:
    table = README.partition("| section |")[2].partition("\n\n")[0]
    assert SECTION_ROW.findall(table) == list(RunFile.model_fields)


def test_the_readmes_five_lines_read_a_reference_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    completion = {"completion_id": b"r" * 16, "logps": -1.5, "tokens": 1, "token_logps": [-1.5]}
    store = Store(str(tmp_path / "runs/mine/reference"), Key("0123", "float32", False, "segments", 1))
    store.claim()
    store.commit(pa.Table.from_pylist([completion], schema=SCHEMA))
    monkeypatch.chdir(tmp_path)
    [example] = blocks("python")
    assert len(example.splitlines()) == 5
    exec(compile(example, "README.md", "exec"), {})
    assert "'logps': -1.5" in capsys.readouterr().out
