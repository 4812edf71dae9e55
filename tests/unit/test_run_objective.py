"""The preference loss of a run file: read, checked before anything heavy, and what it asks of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo.config.load import load_run_file
from raydpo.config.schema import RunFile
from raydpo.data.tokens import TokenRow
from raydpo.errors import UserError
from raydpo.evaluate.ranking import ranked_pairs
from raydpo.runtime.cluster.preflight import bills
from raydpo.stages.inputs import check_inputs
from raydpo.stages.values import RunValues
from raydpo.workspace.objective import needs_reference, objective_terms, preference_objective

pytestmark = pytest.mark.unit


def with_objective(run_file: Path, **values: Any) -> RunFile:
    return load_run_file(run_file, [f"train.objective.{key}={value}" for key, value in values.items()])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["sigmoid"]),
        ({"name": "dpo", "beta": 0.1, "label_smoothing": 0.0}, ["sigmoid"]),  # as run.yaml had it
        ({"loss_type": "dpo"}, ["sigmoid"]),
        ({"loss_type": "[simpo, sft]", "loss_weights": "[1.0, 0.2]"}, ["simpo", "sft"]),
    ],
)
def test_a_run_file_names_its_losses(run_file: Path, values: dict[str, Any], expected: list[str]) -> None:
    assert [term.loss_type for term in objective_terms(with_objective(run_file, **values).train)] == expected


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "dpo", "loss_type": "simpo"}, "name=dpo and loss_type=simpo are not the same; remove name"),
        ({"name": "ipo"}, 'train.objective.name = "ipo"'),
        ({"loss_type": "[]"}, "train.objective.loss_type = []: must have at least 1 item"),
        ({"loss_type": 7}, "train.objective.loss_type = 7: must be a valid list"),
        ({"loss_weights": "[-1.0]"}, "train.objective.loss_weights[0] = -1.0: must be greater than or equal to 0"),
        ({"f_divergence_type": "kl"}, "'reverse_kl', 'forward_kl', 'js_divergence' or 'alpha_divergence'"),
        ({"unlikelihood_alpha": 2.0}, "less than or equal to 1"),
    ],
)
def test_a_value_that_no_loss_allows_is_refused_where_the_file_is_read(
    run_file: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as refused:
        with_objective(run_file, **values)
    assert str(run_file) in str(refused.value)
    assert said.replace("'", "") in str(refused.value).replace("'", "")


@pytest.mark.parametrize("stage", ["train", "run"])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss_type": "sigmod"}, "there is no such loss; the nearest is sigmoid"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "hinge does not take it"),
        ({"loss_type": "[sigmoid, sft]", "loss_weights": "[1.0]"}, "1 values for the 2 losses"),
        ({"loss_type": "[bco, hinge]"}, "bco is a mean over completions and hinge is a mean over pairs"),
    ],
)
def test_a_loss_that_cannot_be_is_refused_before_the_stage_begins(
    run_file: Path, stage: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check_inputs(with_objective(run_file, **values), stage)


@pytest.mark.parametrize("loss_type", ["aot", "[aot, sft]", "kto"])
def test_a_coupled_loss_wants_rows_to_compare(run_file: Path, loss_type: str) -> None:
    alone = load_run_file(run_file, [f"train.objective.loss_type={loss_type}", "train.global_batch_size=1"])
    with pytest.raises(UserError, match=r"train.global_batch_size = 1: (aot|kto) compares the rows .* set it to 2"):
        check_inputs(alone, "train")
    assert objective_terms(load_run_file(run_file, ["train.global_batch_size=1"]).train)
    assert objective_terms(with_objective(run_file, loss_type=loss_type).train)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.reference=overlap", "train.reference=overlap brings sums only; set train.reference: precompute"),
        ("reference.keep_token_logps=false", "reference.keep_token_logps=false keeps sums only; set it to true"),
    ],
)
def test_a_loss_of_tokens_asks_for_a_reference_that_has_them(run_file: Path, key: str, said: str) -> None:
    run = load_run_file(run_file, ["train.objective.ld_alpha=0.5", key])
    with pytest.raises(UserError, match=said):
        check_inputs(run, "train")


@pytest.mark.parametrize(
    ("loss_type", "needed"),
    [("sigmoid", True), ("ipo", True), ("[simpo, sft]", False), ("[sft, sigmoid]", True), ("unlikelihood", False)],
)
def test_the_reference_is_scored_for_those_who_read_it_only(run_file: Path, loss_type: str, needed: bool) -> None:
    run = with_objective(run_file, loss_type=loss_type)
    assert needs_reference(run.train) is needed
    assert ("precompute" in bills(RunValues(run).processes(), "run")) is needed
    assert "precompute" in bills(RunValues(run).processes(), "precompute")  # whoever asks for it gets it
    overlapped = load_run_file(run_file, [f"train.objective.loss_type={loss_type}", "train.reference=overlap"])
    asked = {demand.what for demand in bills(RunValues(overlapped).processes(), "train")["train"]}
    assert ("reference.pool" in asked) is needed


def test_the_objective_of_a_run_file_is_that_of_its_terms(run_file: Path) -> None:
    objective = preference_objective(with_objective(run_file, loss_type="orpo").train)
    assert (objective.needs, objective.mean_over) == (frozenset(), "pairs")


@pytest.mark.parametrize(("loss_type", "chosen_is_preferred"), [("sigmoid", False), ("sigmoid_norm", True)])
def test_held_out_pairs_are_ranked_by_what_the_loss_compares(
    run_file: Path, loss_type: str, chosen_is_preferred: bool
) -> None:
    """Log-ratios of −4 over 4 tokens and −2 over one: the sum is worse, the mean is better."""
    row = TokenRow(bytes(16), [7], ([1, 2, 3, 4], [5]))
    scored = [[np.full(4, -2.0), np.array([-3.0])]]
    reference = np.array([[-4.0, -1.0]], dtype=np.float32)
    compares = preference_objective(with_objective(run_file, loss_type=loss_type).train).compares
    [pair] = ranked_pairs([row], scored, reference, compares)
    assert pair.right is chosen_is_preferred


def test_metrics_of_tokens_are_told_on_request(run_file: Path) -> None:
    assert preference_objective(load_run_file(run_file).train).observes == ()
    asked = load_run_file(run_file, ["train.metrics=[entropy, logits]"])
    assert preference_objective(asked.train).observes == ("entropy", "logits")
    with pytest.raises(UserError, match="entropie"):
        load_run_file(run_file, ["train.metrics=[entropie]"])
