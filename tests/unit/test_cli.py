"""The command line: instant help, mistakes answered before anything heavy loads, every stage reached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raydpo import stages
from raydpo.cli import STAGES, main
from raydpo.config.load import load_run_file
from raydpo.config.schema import RunFile
from raydpo.data.shards import Counts, ShardInfo, TokenManifest
from raydpo.reference.dataset import MANIFEST
from raydpo.stages.values import RunValues
from raydpo.workspace.provenance import made_from

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (CHECKOUT / "jobs").glob("*.py") if path.stem in STAGES)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=CHECKOUT, check=False)


HEAVY = {"ray", "torch", "transformers", "deepspeed", "vllm", "pyarrow"}


def test_help_explains_every_stage_and_imports_nothing_but_the_standard_library() -> None:
    script = (
        "import sys\nfrom raydpo.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    answer = python("-c", script)
    assert answer.returncode == 0
    assert all(f"\n    {stage}" in answer.stdout for stage in STAGES)
    assert not set(answer.stderr.split()) & (HEAVY | {"pydantic", "ruamel"})


def test_a_missing_model_is_refused_before_torch_or_ray_is_imported(run_file: Path) -> None:
    arguments = ["run", str(run_file), "model.path=/nowhere"]
    script = f"import sys; from raydpo.cli import main; main({arguments}); print(*sys.modules)"
    answer = python("-c", script)
    assert "'/nowhere' does not exist" in answer.stderr
    assert not set(answer.stdout.split()) & (HEAVY - {"pyarrow"})


def test_a_bad_run_file_is_refused_before_anything_heavy_is_imported() -> None:
    script = "import sys; from raydpo.cli import main; main(['train', 'absent.yaml']); print(*sys.modules)"
    answer = python("-c", script)
    assert "absent.yaml: cannot read the run file" in answer.stderr
    loaded = set(answer.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_with_the_overridden_run_file(
    stage: str, run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(run: RunFile) -> dict[str, int]:
        return {"epochs": run.train.epochs}

    run = load_run_file(run_file)
    shards = [ShardInfo("part.arrow", rows=64, sha256="", tokens=0)]
    tokens = TokenManifest("pair", shards, Counts(), made_from=made_from(RunValues(run).token_source("train")))
    tokens.write(RunValues(run).layout.train_tokens / MANIFEST)  # as prepare has left it for the stages behind it
    monkeypatch.setattr(stages, stage, fake)
    assert main([stage, str(run_file), "train.epochs=3"]) == 0
    status = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (status["stage"], status["status"], status["result"]) == (stage, "succeeded", {"epochs": 3})


def test_the_doctor_leaves_no_trace_in_the_output_directory(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "doctor", lambda run: {})
    assert main(["doctor", str(run_file)]) == 0
    assert not (run_file.parent / "out").exists()


def test_every_stage_but_the_doctor_has_a_job_script() -> None:
    assert set(JOBS) == set(STAGES) - {"doctor"}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_script_is_its_stage_on_the_command_line(job: str) -> None:
    answer = python(f"jobs/{job}.py", "absent.yaml")
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"raydpo {job}: absent.yaml: cannot read the run file")
    assert "Traceback" not in answer.stderr
    status = json.loads(answer.stdout)
    assert (status["status"], status["stage"]) == ("failed", job)
