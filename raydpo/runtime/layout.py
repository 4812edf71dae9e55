"""Where a run keeps things: every path below output_dir is named here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from raydpo.config.schema import RunFile


class Layout:
    """The files of one run."""

    def __init__(self, run: RunFile) -> None:
        self.root = Path(run.output_dir)
        self.pairs = self.root / "samples" / "pairs.jsonl"
        self.sampled = self.root / "samples" / "sampled.json"  # what the samples were made from, written last
        self.samples = self.root / "samples" / "samples.jsonl"
        self.train_tokens = self.root / "tokens" / "train"
        self.held_out_tokens = self.root / "tokens" / "held_out"
        self.sft_tokens = self.root / "tokens" / "sft"
        self.train = self.root / "train"
        self.sft = self.root / "sft"
        self.exports = self.root / "exports"
        self.evaluations = self.root / "evaluations"
        self.timings = self.root / "timings.json"
        self.reference_store = run.reference.store or str(self.root / "reference")  # may be an address
        self.sft_export = self.sft / "export"
        self.start_model = str(self.sft_export) if run.sft else run.model.path
        self.reference_model = run.reference.model or self.start_model
        self.pair_files = [str(self.pairs)] if run.sample else run.data.train

    def export(self, step: int) -> Path:
        """The policy after `step` steps, as transformers and vLLM load it."""
        return self.exports / f"step-{step:06d}"
