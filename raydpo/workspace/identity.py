"""What makes a run this run, kept beside its checkpoints and held against whoever wants to go on with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.config.schema import Reward, Train, Training
from raydpo.data.order import Order
from raydpo.data.shards import TokenManifest
from raydpo.errors import UserError
from raydpo.model.directory import weights_digest
from raydpo.reference.dataset import MANIFEST
from raydpo.storage.files import write_json
from raydpo.train.checkpoint.commits import Cursor, latest
from raydpo.workspace.objective import needs_reference, objective_terms, reward_terms

if TYPE_CHECKING:
    from raydpo.objective.registry import Term

FILE = "identity.json"


@dataclass(frozen=True)
class Identity:
    """Everything that decides which weights a training ends with, but for rounding.

    The number of workers, the ZeRO stage and the micro-batches are left out: a run may change them on the way.
    """

    data_digest: str
    seed: int
    global_batch_size: int
    epochs: int
    tail: str
    schedule_steps: int | None  # at which the learning rate ends; None where it is constant after the warm-up
    objective: dict[str, Any] | None  # None: supervised fine-tuning, which has no settings
    optimizer: dict[str, Any]
    dtype: str
    fp32_head: bool
    model_weights: str  # digest of what training starts from
    reference_weights: str | None  # None: training reads no reference

    @property
    def digest(self) -> str:
        """A name for all parts together; commits and exports carry it."""
        parts = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()

    def differences(self, then: Identity) -> list[str]:
        """The parts that are not what they were, each with its value then and now."""
        before = _flat(asdict(then))
        after = _flat(asdict(self))
        names = [*after, *(name for name in before if name not in after)]
        return [
            f"{name} was {before.get(name)} and is {after.get(name)}"
            for name in names
            if before.get(name) != after.get(name)
        ]


@dataclass(frozen=True)
class TrainingSettings:
    """What a run file says of one training, as far as it decides which weights come out, and where it leaves them."""

    training: Training  # its section: train, sft or reward
    seed: int
    dtype: str
    fp32_head: bool
    model: str  # what it starts from
    reference_model: str | None  # None: it has none, as the sft stage
    tokens: Path
    directory: Path
    chat_template: str | None = None  # a file: what exports render messages with, instead of the model's own


def identity_of(settings: TrainingSettings, order: Order) -> Identity:
    """The identity of a training that visits its rows so. Raises UserError for weights that cannot be used."""
    training = settings.training
    constant = training.optimizer.schedule == "constant"
    objective = None
    reference = None
    if isinstance(training, Train):
        objective = _objective_part(objective_terms(training))
        reference = settings.reference_model if needs_reference(training) else None
    if isinstance(training, Reward):
        objective = {"loss_type": "bradley_terry", **reward_terms(training)}
    return Identity(
        data_digest=order.digest,
        seed=order.seed,
        global_batch_size=order.global_batch_size,
        epochs=order.epochs,
        tail=order.tail,
        schedule_steps=None if constant else steps_of(training, order),
        objective=objective,
        optimizer=training.optimizer.model_dump(),
        dtype=settings.dtype,
        fp32_head=settings.fp32_head,
        model_weights=weights_digest(settings.model),
        reference_weights=weights_digest(reference) if reference else None,
    )


def _objective_part(terms: Sequence[Term]) -> dict[str, Any]:
    """The objective with every argument in force, whether the run file says it or leaves it to the loss."""
    if [term.weight for term in terms] == [1.0]:
        return _term_part(terms[0])
    return {"terms": [{"weight": term.weight} | _term_part(term) for term in terms]}


def _term_part(term: Term) -> dict[str, Any]:
    return {"loss_type": term.loss_type, **term.in_force}


def identity_now(settings: TrainingSettings) -> Identity | None:
    """The identity that a training would have now; None where neither prepare nor training has left any.

    Where the tokens have been removed since, what the training has kept is all that can be said.
    """
    order = _order_now(settings)
    return identity_of(settings, order) if order else read_identity(settings.directory)


def check_resumable_now(settings: TrainingSettings) -> None:
    """Raise UserError where a training would refuse to go on from what it has left, and with it its export.

    Where its tokens have been removed since, nothing can be said.
    """
    order = _order_now(settings)
    if order:
        check_resumable(settings.directory, identity_of(settings, order))


def order_of(training: Training, *, seed: int, num_rows: int, digest: str) -> Order:
    """The order in which a training visits prepared rows."""
    return Order(
        num_rows=num_rows,
        global_batch_size=training.global_batch_size,
        epochs=training.epochs,
        seed=seed,
        digest=digest,
        tail=training.tail,
    )


def _order_now(settings: TrainingSettings) -> Order | None:
    """The order of the rows that a stage has prepared; None where there are none."""
    manifest = settings.tokens / MANIFEST
    if not manifest.exists():
        return None
    found = TokenManifest.read(manifest)
    return order_of(settings.training, seed=settings.seed, num_rows=found.rows, digest=found.digest)


def steps_of(training: Training, order: Order) -> int:
    """The steps that a training takes: all that its order has, or max_steps of them."""
    return min(order.num_steps, training.max_steps or order.num_steps)


def write_identity(directory: Path, identity: Identity) -> None:
    """Keep the identity of the training in a directory. To be called before its first step."""
    write_json(directory / FILE, asdict(identity))


def read_identity(directory: Path) -> Identity | None:
    """What write_identity has kept; None without it. Raises UserError for a file that is something else."""
    path = directory / FILE
    try:
        return Identity(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or another raydpo wrote it ({error}); set another output_dir, or remove {directory} "
            "to train anew."
        ) from error


def check_resumable(directory: Path, identity: Identity) -> None:
    """Raise UserError when the newest commit in a training's directory is another run's; the message names the parts.

    Commits of a raydpo that kept no identity are refused too: nobody can say which weights they come from.
    """
    found = latest(directory / "checkpoints")
    if found is None or found.cursor.identity == identity.digest:
        return
    raise UserError(
        f"{directory} has committed step {found.cursor.step} of {_another_run(directory, found.cursor, identity)}. Set "
        f"another output_dir, or put back what was changed, or remove {directory} to train anew."
    )


def _another_run(directory: Path, cursor: Cursor, identity: Identity) -> str:
    kept = read_identity(directory)
    if kept is None:
        return f"a run that an earlier raydpo began, without keeping in {FILE} which weights it started from"
    if kept.digest != cursor.identity:
        return f"a run that {directory / FILE} does not describe"
    return f"another run: {'; '.join(identity.differences(kept))}"


def _flat(parts: dict[str, Any]) -> dict[str, Any]:
    """Sections of the run file by their keys: optimizer.lr, objective.beta."""
    flat: dict[str, Any] = {}
    for name, value in parts.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            flat[name] = value
    return flat
