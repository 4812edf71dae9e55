"""Laws of the sampler check at work: samples of the model that is named pass, samples of another do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from raydpo.data.prompts import Prompt
from raydpo.data.tokens import TokenRow
from raydpo.errors import UserError
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.reference.scoring import score_rows
from raydpo.rollout.engine import Completion
from raydpo.runtime.pools.probing import confirm_sampler
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

PROMPTS = [Prompt("", [0, 5, 6], "p row 1"), Prompt("", [0, 9], "p row 2"), Prompt("", [0, 7], "p row 3")]
IDS = [[11, 12, 13, 1], [14], [15, 16]]


@torch.no_grad()
def sampled_by(path: Path) -> list[Completion]:
    """As an engine gives them, with log-probs for the first two prompts."""
    lm = LlamaForCausalLM.from_pretrained(path)
    completions = []
    for prompt, ids in zip(PROMPTS[:2], IDS, strict=False):
        logps = lm(torch.tensor([prompt.ids + ids])).logits[0, len(prompt.ids) - 1 : -1].log_softmax(1)
        values = tuple(float(logps[i, token]) for i, token in enumerate(ids))
        completions.append(Completion(ids, "", "stop", values))
    return [*completions, Completion(IDS[2], "", "stop")]


def confirm(policy: ScoringModel, model: str, drawn: Sequence[Completion]) -> float:
    def score(rows: Sequence[TokenRow]) -> list[list[np.ndarray]]:
        return score_rows(policy, rows, tokens_per_microbatch=64, device=torch.device("cpu"))[0]

    return confirm_sampler(score, model, PROMPTS, drawn, dtype="float32")


def test_only_samples_of_the_named_weights_pass(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "old")
    save_tiny_model(tmp_path / "new")
    chimera = LlamaForCausalLM.from_pretrained(tmp_path / "new")
    with torch.no_grad():  # another vocabulary matrix under the same trunk
        chimera.lm_head.weight.copy_(chimera.lm_head.weight.flip(0))
    chimera.save_pretrained(tmp_path / "chimera")
    policy = ScoringModel(load_model(str(tmp_path / "new"), dtype="float32"))
    assert confirm(policy, "new", sampled_by(tmp_path / "new")) < 1e-5
    with pytest.raises(UserError, match="does not hold the weights of exports/step-8"):
        confirm(policy, "exports/step-8", sampled_by(tmp_path / "chimera"))
