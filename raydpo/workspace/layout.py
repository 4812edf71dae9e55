"""Where a run keeps things: every path below output_dir is named here and nowhere else, and its reference store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raydpo.config.schema import Model, Pool, Reference
from raydpo.model import version
from raydpo.model.directory import weights_digest
from raydpo.reference.store import Key, Store


class Layout:
    """The files of one run.

    model: what the run file starts from; rows: its files of preference rows; sft, sample: whether it has these stages.
    """

    def __init__(
        self, output_dir: str, *, model: str, reference: Reference, rows: Sequence[str], sft: bool, sample: bool
    ) -> None:
        self.root = Path(output_dir)
        self.pairs = self.root / "samples" / "pairs.jsonl"
        self.sampled = self.root / "samples" / "sampled.json"  # what the samples were made from, written last
        self.samples = self.root / "samples" / "samples.jsonl"
        self.drawn = self.root / "samples" / "drawn"  # completions, as they are drawn
        self.rated = self.root / "samples" / "rated"  # their rewards, as they come
        self.train_tokens = self.root / "tokens" / "train"
        self.held_out_tokens = self.root / "tokens" / "held_out"
        self.sft_tokens = self.root / "tokens" / "sft"
        self.train = self.root / "train"
        self.sft = self.root / "sft"
        self.exports = self.root / "exports"
        self.evaluations = self.root / "evaluations"
        self.judgements = self.root / "judgements" / "judgements.json"
        self.replies = self.root / "judgements" / "replies"  # of endpoints, as they come
        self.logs = self.root / "logs"
        self.timings = self.root / "timings.json"
        self.reference_store = reference.store or str(self.root / "reference")  # may be an address
        self.sft_export = self.sft / "export"
        self.start_model = str(self.sft_export) if sft else model
        self.reference_model = reference.model or self.start_model
        self.pair_files = [str(self.pairs)] if sample else rows
        # Where this run's stages remove and replace files: no input may lie there.
        self.written_over = [self.root / "tokens", self.train, self.exports, self.evaluations]
        if sft:
            self.written_over.append(self.sft)
        if sample:
            self.written_over.append(self.pairs.parent)

    def export(self, step: int) -> Path:
        """The policy after `step` steps, as transformers and vLLM load it."""
        return self.exports / f"step-{step:06d}"

    def sft_export_of(self, step: int) -> Path:
        """The one export of the sft stage, whatever number of steps it takes."""
        return self.sft_export


def store_of(layout: Layout, model: Model, pool: Pool) -> Store:
    """The store of a run's reference model, whose log-probs are made in the number format of `model` by the pool."""
    key = Key(
        weights=weights_digest(layout.reference_model),
        dtype=model.dtype,
        fp32_head=model.fp32_head,
        attention=version.backend_for("cuda" if pool.gpus else "cpu"),
        scorer_version=version.VERSION,
    )
    return Store(layout.reference_store, key)
