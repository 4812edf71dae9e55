"""What makes a run this run, kept beside its checkpoints and held against whoever wants to go on with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.config.errors import UserError
from raydpo.config.files import write_json
from raydpo.config.schema import RunFile, Training
from raydpo.data.order import Order
from raydpo.data.shards import TokenManifest
from raydpo.model.directory import weights_digest
from raydpo.runtime.dataset import MANIFEST
from raydpo.runtime.layout import Layout
from raydpo.runtime.objective import needs_reference, objective_terms
from raydpo.train.commits import Cursor, latest

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
        before, after = _flat(asdict(then)), _flat(asdict(self))
        names = [*after, *(name for name in before if name not in after)]
        return [
            f"{name} was {before.get(name)} and is {after.get(name)}"
            for name in names
            if before.get(name) != after.get(name)
        ]


def train_identity(run: RunFile, order: Order) -> Identity:
    """The identity of the preference training. Raises UserError for weights that cannot be used."""
    layout = Layout(run)
    return _identity(
        run,
        run.train,
        order,
        objective=_objective_part(objective_terms(run)),
        model=layout.start_model,
        reference=layout.reference_model if needs_reference(run) else None,
    )


def _objective_part(terms: Sequence[Term]) -> dict[str, Any]:
    """The objective with every argument in force, whether the run file says it or leaves it to the loss."""
    if [term.weight for term in terms] == [1.0]:
        return _term_part(terms[0])
    return {"terms": [{"weight": term.weight} | _term_part(term) for term in terms]}


def _term_part(term: Term) -> dict[str, Any]:
    return {"loss_type": term.loss_type, **term.in_force}


def train_identity_now(run: RunFile) -> Identity | None:
    """The identity that preference training would have now; None where neither prepare nor training has left any.

    Where the tokens have been removed since, what the training has kept is all that can be said.
    """
    layout = Layout(run)
    order = _order_now(run, run.train, layout.train_tokens)
    return train_identity(run, order) if order else read_identity(layout.train)


def sft_identity(run: RunFile, order: Order) -> Identity:
    """The identity of the supervised fine-tuning. Raises UserError for weights that cannot be used."""
    assert run.sft
    return _identity(run, run.sft, order, objective=None, model=run.model.path, reference=None)


def check_sft_resumable(run: RunFile) -> None:
    """Raise UserError where the sft stage would refuse to go on from what it has left, and with it its export.

    Where its tokens have been removed since, nothing can be said.
    """
    layout = Layout(run)
    assert run.sft
    order = _order_now(run, run.sft, layout.sft_tokens)
    if order:
        check_resumable(layout.sft, sft_identity(run, order))


def _identity(
    run: RunFile,
    training: Training,
    order: Order,
    *,
    objective: dict[str, Any] | None,
    model: str,
    reference: str | None,
) -> Identity:
    constant = training.optimizer.schedule == "constant"
    return Identity(
        data_digest=order.digest,
        seed=order.seed,
        global_batch_size=order.global_batch_size,
        epochs=order.epochs,
        tail=order.tail,
        schedule_steps=None if constant else steps_of(training, order),
        objective=objective,
        optimizer=training.optimizer.model_dump(),
        dtype=run.model.dtype,
        fp32_head=run.model.fp32_head,
        model_weights=weights_digest(model),
        reference_weights=weights_digest(reference) if reference else None,
    )


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


def _order_now(run: RunFile, training: Training, tokens: Path) -> Order | None:
    """The order of the rows that a stage has prepared; None where there are none."""
    if not (tokens / MANIFEST).exists():
        return None
    found = TokenManifest.read(tokens / MANIFEST)
    return order_of(training, seed=run.seed, num_rows=found.rows, digest=found.digest)


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
