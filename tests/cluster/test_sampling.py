"""Laws of sampling around the engine: mixed-up weights end a stage, lost processes do so in plain words."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from raydpo.config.schema import BestOfN, Decoding, Model, Pool, RunFile, Sampler
from raydpo.data.prompts import Prompt, read_prompts
from raydpo.errors import UserError
from raydpo.evaluate.records import Evaluation
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.reference.scoring import score_rows
from raydpo.report.best_of_n import read_best_of_n
from raydpo.reward.contract import Group
from raydpo.rollout.engine import Completion
from raydpo.rollout.samples import SampleTable
from raydpo.runtime.best_of_n import best_of_n
from raydpo.runtime.cluster.connection import user_errors
from raydpo.runtime.evaluation import Evaluator, evaluate_exports
from raydpo.runtime.pairing import sample_pairs
from raydpo.runtime.pools import rewards
from raydpo.runtime.pools.policies import PolicyScorer, PolicyScorers
from raydpo.runtime.pools.rewards import rate_each, reward_process
from raydpo.runtime.pools.sampled import sampled
from raydpo.runtime.pools.sampling import PROMPTS_PER_CALL, RESTARTS, Drawing, Samplers
from raydpo.stages.values import RunValues
from raydpo.workspace.asked import OriginsToday
from tests.cluster.own_ray import own_ray
from tests.cluster.runfiles import whole_run
from tests.models import exact, exact_logps, make_row

pytestmark = pytest.mark.cluster

OPTIONS = {"num_cpus": 0, **RESTARTS}
PROMPTS = [Prompt("a", [0, 1], "p row 1")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with own_ray(cpus=2, gpus=1):
        yield


class Dying:
    """An engine that the system kills, every time."""

    def sample(self, *_: object) -> None:
        os._exit(9)


class Refusing:
    """An engine that does not start."""

    def __init__(self) -> None:
        raise ValueError("No available memory for the cache blocks")

    def sample(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (Dying, "was lost, and again after a restart"),
        (Refusing, "could not start: ValueError: No available memory for the cache blocks"),
    ],
)
def test_a_sampler_that_is_lost_says_why_and_what_to_lower(engine: type, says: str) -> None:
    actor = ray.remote(**OPTIONS)(engine).remote()
    samplers = Samplers([actor], Sampler(kv_cache_gib=7, max_num_seqs=33))
    with pytest.raises(UserError, match=says) as raised:
        list(samplers.sample("/m", PROMPTS, Decoding(), n=1, seed=0))
    for words in ("sampler.kv_cache_gib=7", "sampler.max_num_seqs=33", actor._actor_id.hex()):
        assert words in str(raised.value)
    assert "Traceback" not in str(raised.value)


class EngineDyingOnce:
    """An engine that notes its calls in a file, and that the system kills in the second, once.

    By then the first call's completions are kept; a process that dies earlier may take with it what it has not sent.
    """

    def __init__(self, notes: Path, table: Path) -> None:
        self._notes = notes
        self._table = table

    def sample(self, _: str, prompts: Sequence[Sequence[int]], __: Decoding, n: int, seed: int, ___: int) -> object:
        with self._notes.open("a") as notes:
            notes.write(f"{seed}\n")
        if len(self._notes.read_text().splitlines()) == 2:
            while not list(self._table.rglob("*.parquet")):
                time.sleep(0.05)
            os._exit(9)
        return [[Completion([seed], "", "stop")] * n for _ in prompts]


def test_the_death_of_a_sampler_costs_the_call_that_it_was_at(tmp_path: Path) -> None:
    actor = ray.remote(**OPTIONS)(EngineDyingOnce).remote(tmp_path / "notes", tmp_path / "table")
    drawing = Drawing("/m", PROMPTS * (3 * PROMPTS_PER_CALL), Decoding(), n=1, seed=0)
    table = SampleTable(tmp_path / "table", {"weights": "w", "decoding": {}})
    calls = list(sampled(Samplers([actor], Sampler()), drawing, table, lambda prompts, drawn: None))
    first_seeds = [0, PROMPTS_PER_CALL, 2 * PROMPTS_PER_CALL]
    assert [call[0][0].ids for call in calls] == [[seed] for seed in first_seeds]
    asked = [int(line) for line in (tmp_path / "notes").read_text().splitlines()]
    # A busy machine may give the call in the queue first, once the actor is back; none is made twice but the lost one.
    assert sorted(asked) == [first_seeds[0], first_seeds[1], first_seeds[1], first_seeds[2]]


def test_a_reward_function_that_takes_its_process_down_is_named() -> None:
    with pytest.raises(UserError, match=r"'tests.cluster.rewards:dies' took its process down at prompts 1 to 2"):
        rate_each("tests.cluster.rewards:dies", [Group(1, "a", ["c"]), Group(2, "b", ["d"])])


def test_a_wait_for_a_reward_function_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewards, "SAY_EVERY_S", 1.0)
    with reward_process("tests.cluster.rewards:takes_long") as process:
        assert process.rate([Group(3, "a", ["b", "c"])]) == [[1.0, 1.0]]
    assert "reward 'tests.cluster.rewards:takes_long' has been at prompt 3 for" in capfd.readouterr().err


class OtherWeights(Samplers):
    """Samplers that draw by some model other than the one that is asked for."""

    def __init__(self) -> None:
        super().__init__([], Sampler())

    def draw(self, drawing: Drawing, calls: Iterable[int]) -> Iterator[tuple[int, list[list[Completion]]]]:
        answer = Completion([20, 30], "text", "stop", (-0.01, -0.01))  # an untrained model is nowhere as sure
        for call in calls:
            yield call, [[answer] * drawing.n for _ in drawing.members(call)]


class OwnWeights(Samplers):
    """Samplers that draw by the model that is asked for: its likeliest tokens."""

    def __init__(self) -> None:
        super().__init__([], Sampler())

    def draw(self, drawing: Drawing, calls: Iterable[int]) -> Iterator[tuple[int, list[list[Completion]]]]:
        lm = AutoModelForCausalLM.from_pretrained(drawing.model, dtype=torch.float32)
        for call in calls:
            yield call, [[_likeliest(lm, prompt.ids)] for prompt in drawing.members(call)]


@torch.no_grad()
def _likeliest(lm: PreTrainedModel, prompt: Sequence[int], tokens: int = 8) -> Completion:
    ids = list(prompt)
    logps: list[float] = []
    for _ in range(tokens):
        logp, token = lm(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(dim=0).max(dim=0)
        ids.append(int(token))
        logps.append(float(logp))
    return Completion(ids[len(prompt) :], f"text of {ids[-1]}", "length", tuple(logps))


def asked(inputs: Path, output_dir: Path, *sections: str) -> RunFile:
    tree = whole_run(inputs, output_dir)
    unused: Sequence[str] = [name for name in ("sft", "sample", "evaluate") if name not in sections]
    for name in unused:
        del tree[name]
    if "sample" not in sections:
        tree["data"]["train"] = [str(inputs / "pairs.jsonl")]
    return RunFile.model_validate(tree)


class Counting(Samplers):
    """Samplers that answer with as many letters as the seed says, and remember whose calls they were."""

    def __init__(self) -> None:
        super().__init__([], Sampler())
        self.seeds: list[int] = []

    def draw(self, drawing: Drawing, calls: Iterable[int]) -> Iterator[tuple[int, list[list[Completion]]]]:
        for call in calls:
            asked = drawing.request(call)
            self.seeds.append(asked.seed)
            each = [Completion([seed % 7], "e" * (seed % 7), "stop") for seed in range(asked.n * len(asked.prompts))]
            yield call, [each[first : first + asked.n] for first in range(0, len(each), asked.n)]


def kept_rewards(scores: Path) -> list[int]:
    """How many completions each reward has rated, none of them twice."""
    counts = []
    for directory in sorted(scores.iterdir()):
        ids = [each for file in directory.glob("*.parquet") for each in pq.read_table(file)["id"].to_pylist()]
        assert len(set(ids)) == len(ids)
        counts.append(len(ids))
    return counts


def test_best_of_n_draws_and_rates_what_is_new_alone(inputs: Path, tmp_path: Path) -> None:
    run = asked(inputs, tmp_path, "evaluate")
    drawn: list[int] = []
    rated: list[list[int]] = []
    for section in ({"n": [4], "samples": 20}, {"n": [4, 40]}, {"n": [4, 40], "rewards": ["length"]}):
        tree = run.model_copy(update={"best_of_n": BestOfN.model_validate(section)})
        engines = Counting()
        best_of_n(RunValues(tree).best_of_n(), engines)
        drawn.append(len(engines.seeds))
        rated.append(kept_rewards(tmp_path / "scores"))
        found = read_best_of_n(tmp_path / "best_of_n.json")
        assert found
        assert found.samples == tree.best_of_n.samples_per_prompt
    assert drawn == [2, 1, 0]
    # Later blocks repeat the texts of the first, and what has been rated once is not rated again.
    [distinct] = rated[0]
    assert distinct
    assert rated == [[distinct], [distinct], [distinct, distinct]]


class Telling(PolicyScorer):
    """An actor that only says where it would compute, once to each that asks."""

    def score(self, unit: Any) -> Any:
        return [[str(self._device)] for _ in unit.rows]


class DyingOnce(PolicyScorer):
    """An actor that the system kills the first time that anything is asked of a model."""

    def score(self, unit: Any) -> Any:
        died = Path(unit.model.path) / "died"
        if not died.exists():
            died.touch()
            os._exit(9)
        return super().score(unit)


@pytest.mark.parametrize(("asked_for", "device"), [(0, "cpu"), (0.5, "cuda"), (1, "cuda")])
def test_a_policy_scorer_computes_on_the_device_that_it_was_given(asked_for: float, device: str) -> None:
    scorers = PolicyScorers(Pool(cpus=0, gpus=asked_for), Model(path="m"), 64, Telling)
    assert scorers.logps("m", [make_row([5], [7])]) == [[device]]
    scorers.close()


def test_a_policy_scorer_that_dies_changes_no_number(inputs: Path, tmp_path: Path) -> None:
    model = str(shutil.copytree(inputs / "model", tmp_path / "model"))
    form = Model(path=model, dtype="float32")
    rows = [make_row([5, 6, number], [7, 8], [9]) for number in range(4)]
    scorers = PolicyScorers(Pool(cpus=0), form, 64, DyingOnce)
    found = scorers.logps(model, rows)
    scorers.close()
    assert (tmp_path / "model" / "died").exists()
    direct = ScoringModel(load_model(model, dtype="float32"))
    expected, _ = score_rows(direct, rows, tokens_per_microbatch=64, device=torch.device("cpu"))
    for ours, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-5)


def evaluated(run: RunFile, step: int, model: str, engines: Samplers) -> Evaluation:
    evaluator = Evaluator(RunValues(run).evaluations(), engines)
    with evaluator.scorers() as scorers:
        return evaluator.evaluate(step, model, scorers)


def test_an_evaluation_of_other_weights_ends_and_leaves_no_record(inputs: Path, tmp_path: Path) -> None:
    run = asked(inputs, tmp_path, "evaluate")
    with pytest.raises(UserError, match="the sampler does not hold the weights of"):
        evaluated(run, 0, run.model.path, OtherWeights())
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".parquet")]


def test_samples_of_other_weights_are_not_kept(inputs: Path, tmp_path: Path) -> None:
    run = asked(inputs, tmp_path, "sample")
    with pytest.raises(UserError, match="the sampler does not hold the weights of"), user_errors():
        sample_pairs(RunValues(run).sampling(), OtherWeights())
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".parquet", ".jsonl")]


def test_an_evaluation_is_made_anew_for_another_scorer_and_only_then(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = asked(inputs, tmp_path, "evaluate")
    assert run.evaluate
    evaluate_exports(RunValues(run).evaluations(), OwnWeights())
    [by_letters] = OriginsToday(RunValues(run).evaluations()).records().valid
    evaluate_exports(RunValues(run).evaluations(), OwnWeights())
    assert capsys.readouterr().out.count("evaluating step 0") == 1
    other = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"reward": "length"})})
    evaluate_exports(RunValues(other).evaluations(), OwnWeights())
    assert "step 0 (scorer, scorer_source)" in capsys.readouterr().out
    [by_words] = OriginsToday(RunValues(other).evaluations()).records().valid
    assert by_words.measures["reward"] != by_letters.measures["reward"]
    assert by_words.samples[0].completion == by_letters.samples[0].completion


def test_the_kl_of_a_bfloat16_policy_is_that_of_its_weights_without_their_rounding(
    inputs: Path, tmp_path: Path
) -> None:
    run = asked(inputs, tmp_path, "evaluate")
    run = run.model_copy(update={"model": run.model.model_copy(update={"dtype": "bfloat16"})})
    assert run.evaluate
    policy = tmp_path / "policy"
    shutil.copytree(run.model.path, policy)
    unmoved = evaluated(run, 5, str(policy), OwnWeights())
    assert set(unmoved.column("kl")) == {0.0}
    ref = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.bfloat16)
    moved = deepcopy(ref)
    with torch.no_grad():
        for weights in moved.parameters():
            weights *= 1.01
    moved.save_pretrained(policy)
    found = evaluated(run, 5, str(policy), OwnWeights())
    prompts = read_prompts(run.evaluate.prompts, "prompt", load_row_tokenizer(str(policy)), limit=run.evaluate.limit)
    drawn = OwnWeights().sample(str(policy), prompts, run.evaluate.decoding, n=1, seed=0)
    with torch.no_grad():
        for sample, prompt, [completion] in zip(found.samples, prompts, drawn, strict=True):
            row = make_row(prompt.ids, completion.ids)
            [p], [q] = exact_logps(exact(moved), row), exact_logps(exact(ref), row)
            assert sample.numbers["kl"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=0.01)
