"""Any rewards on the held-out pairs of one run: accuracy beside the rule by length, calibration, and their difference.

Run: python -m benchmarks.held_out RUNFILE reward_model:EXPORT implicit:EXPORT ...   (after `raydpo prepare RUNFILE`)

A reward is named as in a run file. Each of them rates the same rows in the pool of `rating`, and what it has rated is
kept, so that a further reward costs no more than itself. Differences are to the first one, pair by pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from raydpo.config.load import load_run_file
from raydpo.data.shards import read_shard, to_rows
from raydpo.data.tokens import TokenRow
from raydpo.evaluate.reward_model import RewardedPairs, measure
from raydpo.evaluate.rewarded import rewarded_pairs
from raydpo.evaluate.stats import Interval, paired_difference
from raydpo.model.tokenizer import load_tokenizer
from raydpo.reference.dataset import open_dataset
from raydpo.reward.contract import Group
from raydpo.runtime.cluster import connection
from raydpo.runtime.pools.rewards import reward_process
from raydpo.stages.values import RunValues


def main() -> None:
    """Rate and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("rewards", nargs="+", metavar="reward")
    options, overrides = parser.parse_known_args()
    names = [name for name in options.rewards if "=" not in name.partition(":")[0]]
    overrides += [each for each in options.rewards if each not in names]
    values = RunValues(load_run_file(options.run_file, overrides))
    rows = [row for path in open_dataset(values.layout.held_out_tokens).shards for row in to_rows(read_shard(path))]
    with connection.connect(values.cluster):
        found = {name: rated(name, rows, values) for name in names}
    print(table(found))


def rated(name: str, rows: Sequence[TokenRow], values: RunValues) -> RewardedPairs:
    """The pairs of the rows with the rewards that a reward of this name gives them."""
    tokenizer = load_tokenizer(values.layout.start_model)

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    groups = [
        Group(number, text(row.prompt_ids), list(map(text, row.completions)), row.prompt_ids, row.completions)
        for number, row in enumerate(rows, start=1)
    ]
    with reward_process(name, values.rewards()) as process:
        rewards = [reward for of_group in process.rate(groups) for reward in of_group]
    return rewarded_pairs(rows, torch.tensor(rewards)[:, None], sources=["all"] * len(rows))


def table(found: dict[str, RewardedPairs]) -> str:
    """One line a reward, in markdown."""
    [first, *_] = found.values()
    figures = measure(first)
    rule = max(("longer_wins", "shorter_wins"), key=lambda name: figures[name]["mean"])
    lines = [
        f"{len(first.right)} pairs of {len(set(first.prompts))} prompts; {rule.replace('_', ' ')}: "
        f"{_interval(Interval(**figures[rule]))}",
        "",
        "| reward | accuracy | above the rule by length | above the first reward | calibration error |",
        "|---|---|---|---|---|",
    ]
    for name, pairs in found.items():
        own = measure(pairs)
        accuracy = Interval(**own["accuracy"])
        above_length = Interval(**own["accuracy_above_length"])
        above_first = paired_difference(first.right.astype(float), pairs.right.astype(float), pairs.prompts)
        lines.append(
            f"| {name} | {_interval(accuracy)} | {_interval(above_length)} "
            f"| {'' if pairs is first else _interval(above_first)} | {own['expected_calibration_error']:.3f} |"
        )
    return "\n".join(lines)


def _interval(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    main()
