"""The engine against the usual way, interleaved in one process: packed rows with one prompt, or padded full sequences.

Run: make bench                   (torch and transformers only)

Random weights in the shape of SmolLM2-135M: speed does not depend on the values. "padded" is the layout of common
trainers: chosen and rejected as two rows, each with its own prompt, padded to the longest, logits at every position.
Both compute the same DPO loss on the same pairs with a stored reference, and the losses are compared. Times are the
process's CPU seconds, medians of interleaved rounds; MFU is over the least arithmetic (raydpo.model.flops) and the
matrix product measured here.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow
from raydpo.model import attention
from raydpo.model.batch import Batch
from raydpo.model.flops import forward_flops, matmul_ceiling
from raydpo.model.score import ScoringModel
from raydpo.objective import objectives
from raydpo.objective.preference import PairLogps, dpo_loss

SHAPES = {"prompt >> completion": (256, 32), "prompt = completion": (96, 96), "prompt << completion": (16, 128)}
BETA = 0.1


def smollm_shape(dtype: torch.dtype, attention_name: str) -> LlamaForCausalLM:
    """SmolLM2-135M's architecture with random weights, equal for equal arguments."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    config._attn_implementation = attention_name
    return LlamaForCausalLM(config).to(dtype)


def make_pairs(count: int, prompt: int, completion: int) -> list[TokenRow]:
    """Pairs whose lengths vary by half around the given ones."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> list[int]:
        return rng.integers(3, 49152, rng.integers(length // 2, length * 3 // 2 + 1)).tolist()

    return [TokenRow(bytes(16), tokens(prompt), (tokens(completion), tokens(completion))) for _ in range(count)]


def packed(rows: list[TokenRow], dtype: torch.dtype) -> tuple[Callable[[], float], Callable[[], None], float]:
    """A training step and a reference pass of the engine, and the least operations of one forward pass."""
    lm = smollm_shape(dtype, attention.NAME).train()
    model, loss = ScoringModel(lm), objectives.dpo(beta=BETA).loss
    batch = Batch.from_pack(pack_rows(rows), np.zeros((len(rows), 2), dtype=np.float32))

    def step() -> float:
        model.zero_grad()
        total, _, _ = model(batch, loss)
        (total / len(rows)).backward()
        return float(total.detach()) / len(rows)

    return step, lambda: model.token_logps(batch), forward_flops(lm, batch.bounds)


def padded(rows: list[TokenRow], dtype: torch.dtype) -> tuple[Callable[[], float], Callable[[], None]]:
    """The same with two padded rows a pair and logits at every position."""
    lm = smollm_shape(dtype, "sdpa").train()
    sequences = [(row.prompt_ids, row.completions[side]) for side in (0, 1) for row in rows]
    longest = max(len(p) + len(c) for p, c in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    seen, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (p, c) in enumerate(sequences):
        ids[i, : len(p) + len(c)] = torch.tensor(p + c)
        seen[i, : len(p) + len(c)] = 1
        wanted[i, len(p) : len(p) + len(c)] = True

    def logps() -> Tensor:
        logits = lm(input_ids=ids, attention_mask=seen).logits[:, :-1].float()
        token_logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        return (token_logps * wanted[:, 1:]).sum(1)

    def step() -> float:
        lm.zero_grad()
        values, zeros = logps(), torch.zeros(len(rows))
        policy = PairLogps(values[: len(rows)], values[len(rows) :])
        mean = dpo_loss(policy, PairLogps(zeros, zeros), beta=BETA).mean()
        mean.backward()
        return float(mean.detach())

    def reference() -> None:
        with torch.no_grad():
            logps()

    return step, reference


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| dtype | shape | step: padded / packed CPU s | ratio | MFU | reference ratio | Δ loss |")
    print("|---|---|---|---|---|---|---|")
    for name in options.dtypes:
        dtype = getattr(torch, name)
        for shape, (prompt, completion) in SHAPES.items():
            rows = make_pairs(options.pairs, prompt, completion)
            step, score, flops = packed(rows, dtype)
            usual_step, usual_score = padded(rows, dtype)
            gap = abs(step() - usual_step())  # also the warm-up
            times: dict[str, list[float]] = {"packed": [], "padded": [], "score": [], "usual": []}
            ceilings = []
            for _ in range(options.rounds):
                ceilings.append(matmul_ceiling(dtype, "cpu"))
                for key, work in (("packed", step), ("padded", usual_step), ("score", score), ("usual", usual_score)):
                    times[key].append(cpu_seconds(work))
            mid = {key: statistics.median(values) for key, values in times.items()}
            mfu = 3 * flops / (mid["packed"] / torch.get_num_threads()) / statistics.median(ceilings)
            print(
                f"| {name} | {shape} | {mid['padded']:.1f} / {mid['packed']:.1f} | {mid['padded'] / mid['packed']:.2f} "
                f"| {mfu:.0%} | {mid['usual'] / mid['score']:.2f} | {gap:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
