"""Laws of every architecture: log-probs and gradients are those of the model itself in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from raydpo.data.tokens import TokenRow
from raydpo.errors import UserError
from raydpo.model.batch import Batch
from raydpo.model.layout import is_packed, layout_name
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.objective.registry import make_objective, resolve
from raydpo.train.checkpoint.state import WEIGHT, SavedState
from raydpo.train.checkpoint.untrained import load_buffers
from raydpo.train.offline import export_commit
from tests.commits import save_model
from tests.families import FAMILIES, PACKED, REFUSED, WINDOW, save_family
from tests.models import exact_logps, make_batch, make_row, random_rows

pytestmark = pytest.mark.unit

SHARED_PREFIX = [make_row([3, 4, 5, 6], [7, 8, 9, 10], [7, 8, 9, 11]), make_row([3, 4, 5, 6], [7, 8], [7, 8, 9])]
ONE_TOKEN = [make_row([5], [7], [8]), make_row([5], [9, 10, 11], [12]), make_row([5, 6, 7], [13], [14, 15])]
# No token comes twice: in Doge, which keeps the largest of scores that know no position, the two would tie.
LONG = [make_row([*range(p, p + 2 * WINDOW)], [*range(p + 60, p + 80)], [*range(p + 80, p + 110)]) for p in (11, 90)]
ROWS = {
    "ragged": random_rows(6, seed=1),
    "one token": ONE_TOKEN,
    "shared prefix": SHARED_PREFIX,
    "longer than every window": LONG,
    "four completions": random_rows(3, seed=2, completions=4),
}
LOSS = make_objective(resolve(["sigmoid"], beta=0.1)).loss
COARSE = {"xlstm"}  # computes in bfloat16 inside whatever its weights are, and cannot be loaded in bfloat16 itself


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return request.param, save_family(request.param, tmp_path_factory.mktemp(request.param))


def _twin(path: str) -> PreTrainedModel:
    """The model in float64, with transformers' plain attention, or its default where the plain one fails."""
    for attention in ("eager", "sdpa"):
        twin = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float64, attn_implementation=attention, experts_implementation="eager"
        ).eval()
        try:
            twin(input_ids=torch.ones(1, 2, dtype=torch.int64))
            return twin
        except RuntimeError:
            continue
    raise AssertionError(path)


def _oracle(twin: PreTrainedModel, rows: list[TokenRow]) -> list[Tensor]:
    return [
        logps.double().gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        for row in rows
        for logps, completion in zip(exact_logps(twin, row), row.completions, strict=True)
    ]


def test_a_family_is_packed_or_padded_as_it_allows_and_says_which(family: tuple[str, str]) -> None:
    name, path = family
    lm = load_model(path, dtype="float32")
    assert is_packed(lm) == (name in PACKED)
    assert layout_name(lm).startswith("packed rows" if name in PACKED else "padded sequences")


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_token_logps_are_the_models_own(family: tuple[str, str], rows: list[TokenRow]) -> None:
    model = ScoringModel(load_model(family[1], dtype="float32"))
    with torch.no_grad():
        expected = torch.cat(_oracle(_twin(family[1]), rows))
    tolerance = 0.05 if family[0] in COARSE else 1e-5
    torch.testing.assert_close(model.token_logps(make_batch(rows)).double(), expected, rtol=5e-6, atol=tolerance)


def test_gradients_are_the_models_own(family: tuple[str, str]) -> None:
    rows = ROWS["ragged"]
    ref_logps = torch.full((len(rows), 2), -50.0)
    lm, twin = load_model(family[1], dtype="float32"), _twin(family[1])
    batch = make_batch(rows, ref_logps)
    total, *_ = ScoringModel(lm)(batch, LOSS)
    total.backward()
    LOSS(batch.scored(torch.cat(_oracle(twin, rows)))).sum().backward()
    expected = dict(twin.named_parameters())
    scale = max(p.grad.norm() for p in expected.values() if p.grad is not None)
    tolerance = 0.05 if family[0] in COARSE else 1e-4
    for name, parameter in lm.named_parameters():
        if expected[name].grad is None:  # a router's bias, an indexer
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        gap = (parameter.grad - expected[name].grad).norm()
        assert gap <= tolerance * expected[name].grad.norm() + 1e-7 * scale, name


def test_bfloat16_models_pass_their_trial_too(family: tuple[str, str]) -> None:
    if family[0] in COARSE:
        with pytest.raises(UserError, match=r"a text of a few tokens ends it with RuntimeError.*another version of"):
            load_model(family[1], dtype="bfloat16")
        return
    assert is_packed(load_model(family[1], dtype="bfloat16")) == (family[0] in PACKED)


def test_a_step_comes_back_from_commit_and_export(family: tuple[str, str], tmp_path: Path) -> None:
    batch = make_batch(ROWS["ragged"], torch.full((len(ROWS["ragged"]), 2), -50.0))
    lm, resumed = (load_model(family[1], dtype="float32") for _ in range(2))
    before = ScoringModel(lm).token_logps(batch)
    _step(lm.train(), batch)
    after = ScoringModel(lm).token_logps(batch)
    assert not torch.equal(before, after)
    commit = save_model(tmp_path / "checkpoints", lm)
    exported = load_model(str(export_commit(commit, tmp_path / "export")), dtype="float32")
    assert torch.equal(ScoringModel(exported).token_logps(batch), after)
    saved = SavedState(commit.path)
    parameters = dict(resumed.named_parameters())
    with torch.no_grad():
        for name in saved.shapes:
            parameters[name].copy_(torch.from_numpy(saved.whole(WEIGHT, name)))
    load_buffers(resumed, saved)
    assert torch.equal(ScoringModel(resumed).token_logps(batch), after)


@pytest.mark.parametrize("name", ["gemma4_text", "deepseek_v3"])
def test_a_commit_of_an_older_version_is_resumed_and_not_exported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, batch = save_family(name, tmp_path / "model"), make_batch(ROWS["ragged"])
    lm, resumed = (load_model(path, dtype="float32") for _ in range(2))
    monkeypatch.setattr("tests.commits.copy_untrained", lambda lm: [])  # as older versions saved
    commit = save_model(tmp_path / "checkpoints", lm)
    load_buffers(resumed, SavedState(commit.path))
    assert torch.equal(ScoringModel(resumed).token_logps(batch), ScoringModel(lm).token_logps(batch))
    with pytest.raises(UserError, match=f"{commit.path} does not hold .*older version.*Run the training's command"):
        export_commit(commit, tmp_path / "export")


def _step(lm: PreTrainedModel, batch: Batch) -> None:
    """One step of the weights, and of the buffers that a forward pass of some models may change."""
    total, *_ = ScoringModel(lm)(batch, LOSS)
    total.backward()
    torch.optim.SGD(lm.parameters(), lr=1e-3).step()
    parameters = {name for name, _ in lm.named_parameters(remove_duplicate=False)}
    for name, buffer in lm.state_dict().items():
        if name not in parameters and buffer.is_floating_point():
            buffer.mul_(1.125)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_no_fixed_function_of_earlier_tokens_is_refused_with_the_reason(
    name: str, tmp_path: Path
) -> None:
    settings, reason = REFUSED[name]
    path = save_family(name, tmp_path, settings)
    with pytest.raises(UserError, match=f"{tmp_path}.*{reason}"):
        load_model(path, dtype="float32")
