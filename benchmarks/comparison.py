"""What vs_trl.py measured, as ratios and a table.

The arithmetic of a peer is κ·ρ·π times the least: κ passes over the model against raydpo's three, ρ for reading each
prompt twice, π for padding. That product is the speed-up to expect where both use the machine equally well.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.child import Answer
from benchmarks.measure import BUSY, device_seconds

DEFAULTS, BEST, ENGINE, SYSTEM = "TRL, defaults", "TRL, best settings", "raydpo, engine alone", "raydpo train"
REWARD = "raydpo reward"
PASSES = {DEFAULTS: 5, BEST: 3}  # forward, backward (two), recomputation under checkpointing, reference forward
REWARD_PASSES = {DEFAULTS: 4, BEST: 3}  # there is no reference
OUR_PASSES = 3
TOLERANCE = 1e-5  # of the first loss, in float32


@dataclass(frozen=True)
class Comparison:
    """One shape in one dtype. `answers` holds the rounds that were measured; `first_losses` come before them."""

    shape: str
    dtype: str
    pairs: int
    tokens: int  # with every prompt once
    repeated_tokens: int  # with every prompt once for each completion
    step_flops: float  # the least operations of one step
    ceiling: float  # operations per second, of a matrix product in the same run
    answers: Mapping[str, Sequence[Answer]]
    first_losses: Mapping[str, float]
    passes: Mapping[str, int] = field(default_factory=lambda: PASSES)  # of TRL's two

    def busy(self, name: str) -> float:
        """Median busy seconds of a step."""
        return statistics.median(answer.busy for answer in self.answers[name])

    def peak(self, name: str) -> int | None:
        """The most memory held in any round, in bytes."""
        peaks = [answer.peak for answer in self.answers[name] if answer.peak is not None]
        return max(peaks, default=None)

    def mfu(self, name: str) -> float:
        """Share of the ceiling that the least arithmetic of a step takes up."""
        return self.step_flops / device_seconds(self.busy(name)) / self.ceiling

    def factors(self, peer: str) -> tuple[float, float, float]:
        """κ, ρ and π against one of TRL's two, from the batches that it really made."""
        padded = [answer.padded_tokens for answer in self.answers[peer]]
        pi = statistics.median(tokens / self.repeated_tokens for tokens in padded if tokens)
        return self.passes[peer] / OUR_PASSES, self.repeated_tokens / self.tokens, pi

    def loss_gap(self) -> float:
        """Largest difference between the first losses of two contenders."""
        losses = self.first_losses.values()
        return max(losses) - min(losses)

    def check(self) -> None:
        """ArithmeticError when float32 contenders do not compute the same loss."""
        if self.dtype == "float32" and not self.loss_gap() <= TOLERANCE:
            losses = ", ".join(f"{name} {loss:.7f}" for name, loss in self.first_losses.items())
            raise ArithmeticError(f"{self.shape}: first losses differ by {self.loss_gap():.1e}: {losses}")

    def record(self) -> dict[str, Any]:
        """Everything, measured and derived."""
        summary = {
            name: {"busy": self.busy(name), "mfu": self.mfu(name), "peak": self.peak(name)} for name in self.answers
        }
        return {**asdict(self), "summary": summary, "factors": {peer: self.factors(peer) for peer in self.passes}}

    def markdown(self) -> str:
        """The table and the lines below it."""
        lines = [
            f"{self.shape}, {self.dtype}: {self.pairs} pairs, {self.tokens} tokens with every prompt once; "
            f"ceiling {self.ceiling / 1e9:.0f} GFLOP/s; first losses differ by {self.loss_gap():.1e}",
            "",
            f"| contender | {BUSY} | wall s | × {DEFAULTS} | × {BEST} | tokens/s | MFU | peak GiB | of TRL's |",
            "|---|---|---|---|---|---|---|---|---|",
            *(self._line(name) for name in self.answers),
            "",
            *(self._limit(peer) for peer in self.passes),
        ]
        return "\n".join(lines)

    def _line(self, name: str) -> str:
        busy, peak, base = self.busy(name), self.peak(name), self.peak(DEFAULTS)
        wall = statistics.median(answer.wall for answer in self.answers[name])
        memory = f"{peak / 2**30:.2f} | {peak / base:.2f}" if peak and base else "- | -"
        return (
            f"| {name} | {busy:.2f} | {wall:.2f} | {self.busy(DEFAULTS) / busy:.2f} | {self.busy(BEST) / busy:.2f} "
            f"| {self.tokens / device_seconds(busy):.0f} | {self.mfu(name):.0%} | {memory} |"
        )

    def _limit(self, peer: str) -> str:
        kappa, rho, pi = self.factors(peer)
        product = kappa * rho * pi
        ours = [name for name in self.answers if name not in self.passes]
        shares = (f"{name} reaches {self.busy(peer) / self.busy(name) / product:.0%}" for name in ours)
        return f"- against {peer}: κ·ρ·π = {kappa:.2f} · {rho:.2f} · {pi:.2f} = {product:.2f}; {', '.join(shares)}"
