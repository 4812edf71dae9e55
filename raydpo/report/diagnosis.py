"""A diagnosis in words: what the figures of a run show, what that usually means, and what to try.

Each rule is a function of the figures that it looks at. It returns a finding, or None where the figures do not show its
pattern or are not there. A rule knows what is usual, not what is true of this run: a finding is a place to look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydpo.evaluate.records import Evaluation
from raydpo.evaluate.stats import Interval, paired_difference
from raydpo.report.course import Course, Metrics, course_of
from raydpo.report.summary import difference, digits_of, format_change, reference_and_policy

FALL_NATS = 1.0  # a completion e times less probable; rounding in bfloat16 moves a whole completion by less
FALL_ERRORS = 3.0  # standard errors: batches hold other rows, so their means differ by chance too
LN2_TOLERANCE = 0.01  # a margin of 0.02 moves the loss by that; learning runs are beyond it after some dozen steps
EARLY_STEPS = 20  # a loss that has to learn what is preferred needs longer
AT_ONCE = 0.98  # people agree on 73 to 85 % of pairs (Ouyang et al. 2022, Zheng et al. 2023), so more is too good
ALWAYS = 0.95  # of the steps; the first ones may pass, while the policy is the reference
LENGTH_CORRELATION = 0.2  # weaker ones leave most of a gain to other causes
LENGTH_SHARE = 0.5  # of the gain in reward: most of it
KL_PER_TOKEN = 1.0  # nats; language models have an entropy of 1 to 3 a token, so little is left of the reference
MOSTLY_CUT = 0.5  # of the samples
MEMORISED_GAP = 0.1  # of accuracy, beyond the held-out pairs' upper bound
MOST = 0.5  # of the rows


@dataclass(frozen=True)
class Finding:
    """One pattern that the figures of a run show. All parts are plain text, of whole sentences but for the name."""

    name: str
    seen: str  # with the figures and the steps
    means: str
    remedy: str  # what to try


def diagnose(
    metrics: Metrics,
    evaluations: Sequence[Evaluation],
    data_counts: Mapping[str, Mapping[str, int]],
    *,
    beta: float | None,
    max_grad_norm: float,
) -> list[Finding]:
    """All findings about a run, in the order data, training, evaluation; none where nothing stands out.

    evaluations are by rising step and may be empty. data_counts says what became of the rows of each dataset, by the
    names of raydpo.data.shards.Counts. beta is None for a loss without one; a max_grad_norm of 0 clips nothing.
    """
    findings = [
        mostly_truncated(data_counts),
        stuck_at_ln2(metrics),
        right_at_once(metrics),
        both_fall(metrics, beta),
        always_clipped(metrics, max_grad_norm),
        memorised(metrics, evaluations),
        rewarded_for_length(evaluations),
        kl_explodes(evaluations),
        no_longer_ends(evaluations),
    ]
    return [finding for finding in findings if finding]


def in_short(findings: Sequence[Finding]) -> str:
    """Findings for the terminal, a few lines each; empty where there are none."""
    if not findings:
        return ""
    lines = ["diagnosis (the report says what each point usually means):"]
    for finding in findings:
        lines.append(f"- {finding.name}: {finding.seen}")
        lines.append(f"  try: {finding.remedy}")
    return "\n".join(lines)


def mostly_truncated(data_counts: Mapping[str, Mapping[str, int]]) -> Finding | None:
    """Most rows of a dataset were cut or left out for their length."""
    shown = []
    for dataset, counts in data_counts.items():
        cut = counts.get("truncated_prompt", 0) + counts.get("truncated_completion", 0)
        dropped = counts.get("dropped_too_long", 0)
        rows = counts.get("rows_read", 0)
        if cut + dropped > MOST * rows:
            shown.append(f"{dataset}: {cut:,} of {rows:,} rows were cut and {dropped:,} dropped")
    if not shown:
        return None
    return Finding(
        "most rows too long",
        f"Most rows did not fit data.max_length ({'; '.join(shown)}).",
        "The policy learns from stumps: a completion that was cut has no end, so ending is never trained, and a prompt "
        "that was cut may lack what was asked. Where long rows were dropped, it learns from the short ones alone.",
        "Raise data.max_length, with train.tokens_per_microbatch where a row then needs more; the quantiles in "
        "tokens/*/manifest.json say how long rows are. Or choose data.truncation so that what matters stays.",
    )


def stuck_at_ln2(metrics: Metrics) -> Finding | None:
    """The loss began at ln 2, as losses of the logistic kind do while policy and reference are the same, and stays."""
    losses = course_of(metrics, "loss")
    margins = course_of(metrics, "rewards/margins")
    if losses is None or margins is None or not _is_ln2(losses.first):
        return None
    end = losses.end
    if not _is_ln2(end.mean):
        return None
    rates = course_of(metrics, "learning_rate")
    rate = f" The learning rate was at most {rates.values.max():.2g}." if rates else ""
    return Finding(
        "stuck at ln 2",
        f"The loss is {end.mean:.4f} over {end.span} where ln 2 = {math.log(2):.4f} is a policy that has not moved; "
        f"the margin of the rewards is {margins.end.mean:+.4f}.{rate}",
        "The policy has learnt next to nothing of what is preferred: the steps are too small or too few, most of the "
        "run was warm-up, or chosen and rejected do not differ in a way that can be learnt.",
        "Raise train.optimizer.lr, set warmup_steps well below the number of steps, train longer. If it stays, read "
        "some pairs: are the labels right, and do the two completions differ?",
    )


def right_at_once(metrics: Metrics) -> Finding | None:
    """Nearly all pairs are ranked rightly within the first few steps."""
    accuracies = course_of(metrics, "rewards/accuracies")
    if accuracies is None:
        return None
    early = accuracies.part(1, 1 + min(EARLY_STEPS, accuracies.window))  # of the first step policy and reference tie
    if not early.mean >= AT_ONCE:
        return None
    return Finding(
        "accuracy at once 1.0",
        f"Already over {early.span} {early.mean:.1%} of the pairs are ranked rightly.",
        "Something simple tells chosen from rejected: a length, a phrase, a template, a missing end, another model as "
        "the author. The policy learns that and has no need of what was meant.",
        "Compare chosen and rejected of some pairs, and their lengths in tokens/*/manifest.json. Take both completions "
        "from one model, best the policy itself, and give them the same form.",
    )


def both_fall(metrics: Metrics, beta: float | None) -> Finding | None:
    """Chosen and rejected completions both become less probable than they were at the start."""
    chosen, rejected = (_log_probability(metrics, kind, beta) for kind in ("chosen", "rejected"))
    if chosen is None or rejected is None or not (_falls(chosen) and _falls(rejected)):
        return None
    return Finding(
        "chosen and rejected both fall",
        f"From {chosen.begin.span} to {chosen.end.span} the log-probability of chosen completions fell by "
        f"{chosen.begin.mean - chosen.end.mean:.1f} nats, that of rejected ones by "
        f"{rejected.begin.mean - rejected.end.mean:.1f}.",
        "A preference loss asks for a difference only, and pushing both down is one way to it; the probability goes to "
        "completions that nobody has labelled. It is common, strongest where the two are alike, and a fault only if "
        "samples get worse.",
        "Look at reward and samples of the evaluations. To hold chosen up: supervised fine-tuning on chosen first (the "
        f"sft section), {f'a larger beta than {beta:g}, ' if beta else ''}a smaller lr, fewer epochs.",
    )


def always_clipped(metrics: Metrics, max_grad_norm: float) -> Finding | None:
    """The gradient is longer than max_grad_norm at practically every step."""
    norms = course_of(metrics, "grad_norm")
    if norms is None or max_grad_norm <= 0:
        return None
    clipped = int((norms.values > max_grad_norm).sum())
    if clipped < ALWAYS * len(norms.values):
        return None
    return Finding(
        "gradient always clipped",
        f"The gradient's norm was above max_grad_norm={max_grad_norm:g} at {clipped:,} of {len(norms.values):,} steps "
        f"(median {np.median(norms.values):.3g}).",
        "Each step has the same length whatever the batch says, so the norm no longer guards against single bad "
        "batches but scales the learning rate. Losses that sum over tokens have large gradients for long completions.",
        "Set train.optimizer.max_grad_norm above the median. Where the loss then jumps, lower lr instead.",
    )


def memorised(metrics: Metrics, evaluations: Sequence[Evaluation]) -> Finding | None:
    """Pairs that are trained on are ranked much better than held-out ones."""
    accuracies = course_of(metrics, "rewards/accuracies")
    _, after = reference_and_policy(evaluations)
    held_out = after.measures.get("pair_accuracy") if after else None
    if accuracies is None or after is None or held_out is None:
        return None
    trained = accuracies.end
    if not trained.mean - held_out.high >= MEMORISED_GAP:
        return None
    return Finding(
        "pairs learnt by heart",
        f"Over {trained.span} {trained.mean:.1%} of the pairs trained on are ranked rightly, of the {held_out.n} "
        f"held-out ones {held_out.mean:.1%} [{held_out.low:.1%}, {held_out.high:.1%}] at step {after.step}.",
        "The policy has learnt the pairs themselves and not what tells them apart, or the held-out ones are of another "
        "kind.",
        f"{_best_evaluation(evaluations)}Train fewer epochs, with a smaller lr or a larger beta, or add pairs.",
    )


def rewarded_for_length(evaluations: Sequence[Evaluation]) -> Finding | None:
    """Completions got longer, long ones have the higher reward, and that is most of what the reward gained."""
    before, after = reference_and_policy(evaluations)
    if before is None or after is None:
        return None
    gain = difference(before, after, "reward")
    growth = difference(before, after, "length")
    if gain is None or growth is None or gain.low <= 0:
        return None
    correlation, slope = _reward_by_length(before, after)
    if correlation < LENGTH_CORRELATION or slope * growth.mean < LENGTH_SHARE * gain.mean:
        return None
    digits = digits_of("reward")
    return Finding(
        "longer, not better",
        f"From step 0 to step {after.step} completions grew by {growth.mean:.1f} tokens and the reward by "
        f"{format_change(gain, digits)}. Reward and length correlate by {correlation:.2f}; at equal length the reward "
        f"changed by {format_change(_at_equal_length(before, after, slope), digits)}.",
        "The reward, or the labels that were trained on, favour length, and the policy has learnt to write more.",
        "Compare completions of like length. Balance the lengths of chosen and rejected, or take a reward function or "
        "a loss that is normalised by length.",
    )


def kl_explodes(evaluations: Sequence[Evaluation]) -> Finding | None:
    """An evaluated policy is so far from the reference that hardly anything of that is left."""
    means = {e.step: (e.measures["kl"].mean, e.measures["length"].mean) for e in evaluations}
    by_token = {step: kl / length for step, (kl, length) in means.items() if length > 0}
    worst = max(by_token, key=lambda step: by_token[step], default=None)
    if worst is None or by_token[worst] < KL_PER_TOKEN:
        return None
    first = next(step for step, kl in by_token.items() if kl >= KL_PER_TOKEN)
    return Finding(
        "KL explodes",
        f"The KL to the reference is {by_token[worst]:.2f} nats a token at step {worst}, and above {KL_PER_TOKEN:g} "
        f"since step {first}.",
        "Of what the reference would write hardly anything is left: the policy exploits the reward, repeats itself or "
        "has fallen apart.",
        "Read its samples. Lower train.optimizer.lr, raise beta, train fewer steps, or take the checkpoint before "
        f"step {first}.",
    )


def no_longer_ends(evaluations: Sequence[Evaluation]) -> Finding | None:
    """The policy's completions are cut at max_tokens far more often than the reference's."""
    before, after = reference_and_policy(evaluations)
    if before is None or after is None:
        return None
    was, now = before.measures["cut"], after.measures["cut"]
    if now.mean < MOSTLY_CUT or now.low <= was.high:
        return None
    return Finding(
        "completions no longer end",
        f"{now.mean:.0%} of the completions of step {after.step} were cut at max_tokens="
        f"{after.made_from.decoding.max_tokens}, of the reference's {was.mean:.0%}.",
        "The policy has unlearnt to end: chosen completions lack the end token, were truncated, or are longer than "
        "rejected ones. Rewards are then of stumps.",
        "Keep data.append_eos on and see in tokens/*/manifest.json that no completion was truncated. If completions "
        "are right and just longer, raise evaluate.decoding.max_tokens.",
    )


def _is_ln2(loss: float) -> bool:
    return abs(loss - math.log(2)) < LN2_TOLERANCE


def _log_probability(metrics: Metrics, kind: str, beta: float | None) -> Course | None:
    """The course of the log-probability of chosen or rejected completions in nats, up to a constant.

    Rewards are β times the distance from the reference, which differs less from batch to batch than the log-probs
    themselves. A loss without a reference has only these.
    """
    rewards = course_of(metrics, f"rewards/{kind}")
    if rewards and beta:
        return Course(rewards.steps, rewards.values / beta)
    return course_of(metrics, f"logps/{kind}")


def _falls(course: Course) -> bool:
    """Whether the end is below the beginning by FALL_NATS, and by more than chance explains."""
    begin = course.begin
    end = course.end
    error = math.sqrt((begin.values.var(ddof=1) + end.values.var(ddof=1)) / course.window)
    return begin.mean - end.mean >= max(FALL_NATS, FALL_ERRORS * error)


def _reward_by_length(before: Evaluation, after: Evaluation) -> tuple[float, float]:
    """Correlation of reward and length among samples of one model, and reward per token of length by least squares.

    Each model's means are taken out, so that what training changed has no say. 0 and 0 where either is constant.
    """
    lengths = np.concatenate([_centred(e.column("length")) for e in (before, after)])
    rewards = np.concatenate([_centred(e.column("reward")) for e in (before, after)])
    length_spread = float(lengths @ lengths)
    reward_spread = float(rewards @ rewards)
    if not length_spread or not reward_spread:
        return 0.0, 0.0
    common = float(lengths @ rewards)
    return common / math.sqrt(length_spread * reward_spread), common / length_spread


def _centred(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array - array.mean()


def _at_equal_length(before: Evaluation, after: Evaluation, slope: float) -> Interval:
    """Interval of the reward's change, prompt by prompt, less what the lengths explain."""

    def adjusted(evaluation: Evaluation) -> list[float]:
        both = zip(evaluation.column("reward"), evaluation.column("length"), strict=True)
        return [reward - slope * length for reward, length in both]

    prompts = [sample.prompt for sample in before.samples]
    return paired_difference(adjusted(before), adjusted(after), prompts)


def _best_evaluation(evaluations: Sequence[Evaluation]) -> str:
    """Which step ranked held-out pairs best, where it is not the last one; else nothing."""
    accuracies = {e.step: e.measures["pair_accuracy"].mean for e in evaluations if "pair_accuracy" in e.measures}
    best = max(accuracies, key=lambda step: accuracies[step])
    if accuracies[best] == accuracies[evaluations[-1].step]:
        return ""
    return f"Step {best} ranked {accuracies[best]:.1%} of the held-out pairs rightly: take it. "
