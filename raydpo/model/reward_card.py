"""What an export says of the reward model that it holds. No torch: it is read before a model loads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from raydpo.errors import UserError
from raydpo.storage.files import write_json

CARD = "reward_model.json"


@dataclass(frozen=True)
class HeldOut:
    """What the reward model does on pairs that it was not trained on."""

    pairs: int
    accuracy: float  # the share of them whose better completion has the higher reward
    mean: float  # of the rewards of all completions
    spread: float  # their standard deviation


@dataclass(frozen=True)
class RewardCard:
    """The kind of a reward model and where it comes from."""

    head: Literal["last"]  # the reward is read where the last token of a completion stands, its EOS
    heads: int  # more than 1: an ensemble, of which the export's `score` is the mean
    tokenizer: str  # raydpo.model.tokenizer.vocabulary_digest of the tokens that it reads
    identity: str  # of the run, as in its commits
    step: int
    held_out: HeldOut | None = None  # None: not evaluated, or there were no held-out rows

    def write(self, directory: Path) -> None:
        """Write the card of the export in a directory."""
        write_json(directory / CARD, asdict(self))


def read_card(path: str) -> RewardCard:
    """The card of an export. Raises UserError where the directory holds no reward model that raydpo has made."""
    file = Path(path) / CARD
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        held_out = found.pop("held_out")
        return RewardCard(**found, held_out=HeldOut(**held_out) if held_out else None)
    except FileNotFoundError:
        raise UserError(
            f"reward model {path!r} has no {CARD}, so it is none that raydpo has made; give the export of `raydpo "
            "reward`, which lies in <output_dir>/reward/export."
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}); export the reward model again.") from error
