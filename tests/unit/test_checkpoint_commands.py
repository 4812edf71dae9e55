"""`raydpo checkpoints` without a cluster: what it prints and how it exits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.cli import main
from raydpo.cli.checkpoints import COMMANDS
from raydpo.train.checkpoint.commits import MANIFEST
from tests.commits import flip_a_bit, save

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """Two commits, by 2 workers at step 10 and by 4 at step 20."""
    directory = tmp_path / "out/train/checkpoints"
    older = save(tmp_path / "elsewhere", 10)
    save(directory, 20, world_size=4)
    older.rename(directory / older.name)
    return tmp_path / "out"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """The exit code and all that was printed."""
    code = main(["checkpoints", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize("below", [".", "train", "train/checkpoints"])
def test_ls_finds_the_commits_of_a_run_from_wherever_it_is_named(
    below: str, output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(capsys, "ls", output_dir / below)
    assert code == 0
    rows = [line.split() for line in said.splitlines()]
    assert rows[0] == ["step", "age", "size", "workers", "zero", "verified", "name"]
    assert [(row[0], row[5], row[6], row[7], row[8]) for row in rows[1:]] == [
        ("10", "2", "2", "yes", "step-000010.attempt-10"),
        ("20", "4", "2", "yes", "step-000020.attempt-20"),
    ]


def test_ls_marks_what_does_not_verify(output_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = output_dir / "train/checkpoints"
    flip_a_bit(checkpoints / "step-000010.attempt-10/rank-00001.safetensors")
    flip_a_bit(checkpoints / "step-000020.attempt-20" / MANIFEST)
    _, said = run(capsys, "ls", output_dir)
    assert [line.split()[-2] for line in said.splitlines()[1:]] == ["no", "no"]


def test_verify_says_that_whole_commits_are_intact(output_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "verify", output_dir)
    assert code == 0
    assert [line.split(",")[0] for line in said.splitlines()] == [
        "step-000010.attempt-10: intact",
        "step-000020.attempt-20: intact",
    ]


@pytest.mark.parametrize("name", ["rank-00001.safetensors", MANIFEST])
def test_verify_names_the_broken_file_and_fails(
    name: str, output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = output_dir / "train/checkpoints/step-000020.attempt-20" / name
    flip_a_bit(broken)
    code, said = run(capsys, "verify", output_dir)
    assert code == 1
    assert f"{broken} is missing or does not match its hash" in said
    assert "step-000010.attempt-10: intact" in said
    assert run(capsys, "verify", output_dir / "train/checkpoints/step-000010")[0] == 0, "the attempt may be left out"


def test_diff_of_a_commit_with_itself_is_none(output_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = output_dir / "train/checkpoints/step-000010"
    assert run(capsys, "diff", commit, commit) == (0, "no difference\n")


def test_diff_names_cursors_and_the_largest_delta_of_each_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (save(tmp_path / str(step), step) for step in (10, 13))
    code, said = run(capsys, "diff", first, second)
    assert (code, said) == (1, "step: 10 → 13\nweight/w: max |Δ| 3\n")


@pytest.mark.parametrize("command", ["ls", "verify", "export", "diff"])
def test_a_directory_without_commits_is_refused_with_the_remedy(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(capsys, command, *[tmp_path / name for name in ("absent", "model")[: len(COMMANDS[command][1])]])
    assert code == 2
    assert f"{tmp_path / 'absent'} holds no commit; name an output_dir" in said


def test_a_broken_commit_is_not_exported(output_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = output_dir / "train/checkpoints/step-000020.attempt-20/rank-00003.safetensors"
    flip_a_bit(broken)
    code, said = run(capsys, "export", output_dir, tmp_path / "model")
    assert code == 2
    assert f"{broken} is missing" in said
    assert not (tmp_path / "model").exists()


def test_listing_needs_neither_torch_nor_ray(output_dir: Path) -> None:
    arguments = ["checkpoints", "ls", str(output_dir)]
    script = f"import sys; from raydpo.cli import main; main({arguments}); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert "step-000020" in answer.stdout
    assert not set(answer.stdout.split()) & {"torch", "ray", "numpy", "transformers", "deepspeed", "pydantic"}
