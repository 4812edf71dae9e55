"""Laws of the report: self-contained, honest about what is missing, safe with hostile text."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo.config.load import load_run_file
from raydpo.config.schema import Decoding
from raydpo.config.yaml12 import read_yaml, write_yaml
from raydpo.errors import UserError
from raydpo.evaluate.judgements import (
    Contest,
    Judged,
    Judgements,
    JudgeRecord,
    Said,
    Subject,
    agreement_of_orders,
    bias_of,
    unanswered_of,
    win_rate,
)
from raydpo.evaluate.records import Evaluation, RankedPair, Records, summarise
from raydpo.evaluate.reward_model import VERSION, Bin, RewardedPairs, measure
from raydpo.report import figures
from raydpo.report.elsewhere import reward_by_temperature, table_by_set
from raydpo.report.page import side_by_side, write_report
from raydpo.report.summary import summary_rows, summary_table
from raydpo.runtime.evaluation import summary
from raydpo.stages import report
from tests.evaluations import origin, rated

pytestmark = pytest.mark.unit

RUN_YAML = """\
name: tiny-sentiment
output_dir: out
model: {path: models/tiny, dtype: float32}
sample: {prompts: [prompts_train.jsonl]}
train: {workers: {count: 2}, objective: {beta: 0.1}, global_batch_size: 64}
evaluate: {prompts: [prompts_test.jsonl], samples_in_report: 8}
"""
HOSTILE = "</td><script>alert('x')</script><img src=x onerror=alert(1)> & \u202e"
WORDS = ["a", "film", "that", "never", "quite", "finds", "its", "warm", "wit", "dull", "plot", "great", "cast"]


def metrics_row(step: int, rng: random.Random) -> dict[str, Any]:
    margin = 1.6 * (1 - math.exp(-step / 40)) + rng.gauss(0, 0.12) * min(step, 1)
    return {
        "step": step,
        "loss": math.log(1 + math.exp(-margin)) + 0.02 * margin,
        "rewards/chosen": 0.3 * margin,
        "rewards/rejected": -0.7 * margin,
        "rewards/margins": margin,
        "rewards/accuracies": min(1.0, 0.5 + 0.22 * margin + rng.gauss(0, 0.02)),
        "tokens_per_second": rng.gauss(2100, 90),
        "rows_per_second": rng.gauss(41, 2),
        "mfu": None,
    }


def evaluation(step: int, prompts: int = 64, **parts: Any) -> Evaluation:
    rng = random.Random(step)
    lift = 0.35 * (1 - math.exp(-step / 40))
    samples = [
        rated(
            prompt=f"The film number {i} is",
            completion=" " + " ".join(rng.choices(WORDS, k=rng.randint(6, 24))) + ".",
            reward=max(-1.0, min(1.0, rng.gauss(0.18 + lift, 0.45))),
            kl=abs(rng.gauss(6 * lift, 2)) if step else 0.0,
            length=int(rng.gauss(22 + 12 * lift, 6)),
            finish_reason=rng.choice(["stop", "length"]),
        )
        for i in range(prompts)
    ]
    pairs = [RankedPair(i // 4, rng.random() < 0.68) for i in range(200)] if step else []
    seconds = {"sample": 8.1, "score": 0.4}
    return summarise(step, "policy", samples, made_from=origin(**parts), seconds=seconds, pairs=pairs)


def records(*steps: int, **parts: Any) -> Records:
    return Records([evaluation(step, **parts) for step in steps], {})


WHOLE = records(0, 50, 101)


def make_output(path: Path, *, train_steps: int = 101) -> Path:
    """A finished run as the other stages leave it."""
    rng = random.Random(0)
    (path / "train").mkdir(parents=True)
    (path / "tokens" / "train").mkdir(parents=True)
    (path / "run.yaml").write_text(RUN_YAML)
    rows = [metrics_row(step, rng) for step in range(train_steps)]
    (path / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = {"sft": 96.4, "sample": 81.2, "prepare": 6.3, "precompute": 41.0, "train": 178.8, "evaluate": 33.1}
    (path / "timings.json").write_text(json.dumps({"stages": stages}))
    counts = {"rows_read": 7228, "kept": 7228, "truncated_prompt": 0}
    (path / "tokens" / "train" / "manifest.json").write_text(json.dumps({"counts": counts}))
    return path


def test_the_report_loads_nothing_from_outside(tmp_path: Path) -> None:
    html = write_report(make_output(tmp_path), WHOLE).read_text(encoding="utf-8")
    sources = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"'>)\s]+)", html)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in html


@pytest.mark.parametrize("left", ["logps", "nothing"])
def test_a_run_without_rewards_has_a_report_too(tmp_path: Path, left: str) -> None:
    output = make_output(tmp_path)
    config = read_yaml(RUN_YAML)
    config["train"]["objective"] = {"loss_type": "preferred_ft"}
    (output / "run.yaml").write_text(write_yaml(config))
    rows = [{"step": step, "loss": 3.0 - 0.1 * step} for step in range(5)]
    if left == "logps":
        rows = [row | {"logps/chosen": -30.0, "logps/rejected": -40.0} for row in rows]
    (output / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report(output, WHOLE).read_text(encoding="utf-8")
    assert "loss preferred_ft," in html
    assert "Implicit rewards" not in html
    assert "accuracy, last tenth" not in html
    panels = figures.training_curves(rows, at_reference=None).axes
    assert len(panels) == (2 if left == "logps" else 1)


def test_a_batch_of_wanted_completions_alone_has_no_figures_of_others(tmp_path: Path) -> None:
    path = make_output(tmp_path) / "train" / "metrics.jsonl"
    rows = [{"step": step, "loss": 0.5, "rewards/chosen": 0.1, "rewards/rejected": -0.1} for step in range(4)]
    del rows[0]["rewards/chosen"]
    del rows[2]["rewards/rejected"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report(tmp_path, WHOLE).read_text(encoding="utf-8")
    assert "accuracy, last tenth" not in html
    _, rewards = figures.training_curves(rows, at_reference=None).axes
    lengths = {line.get_label(): len(line.get_xdata()) for line in rewards.get_lines()}
    assert (lengths["chosen"], lengths["rejected"]) == (3, 3)


def test_a_measure_that_some_steps_lack_is_named(tmp_path: Path) -> None:
    path = make_output(tmp_path, train_steps=2) / "train" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "loss": 0.1}\n')
    with pytest.raises(UserError, match="line 3: rewards/chosen is None"):
        write_report(tmp_path, WHOLE)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"beta": 0.1}, "loss sigmoid (β = 0.1),"),
        ({"loss_type": "simpo"}, "loss simpo (β = 2),"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}, "loss sigmoid (β = 0.1) + 0.2 × sft,"),
    ],
)
def test_the_report_says_which_loss_was_minimised(tmp_path: Path, objective: dict[str, Any], said: str) -> None:
    output = make_output(tmp_path)
    config = read_yaml(RUN_YAML)
    config["train"]["objective"] = objective
    (output / "run.yaml").write_text(write_yaml(config))
    assert said in write_report(output, WHOLE).read_text(encoding="utf-8")


def test_every_picture_is_also_a_png_file(tmp_path: Path) -> None:
    write_report(make_output(tmp_path), WHOLE)
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert names == {"training", "timings", "measures", "frontier", "rewards", "lengths"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "figures").iterdir())


def test_a_run_whose_stages_kept_no_seconds_has_a_report_without_them(tmp_path: Path) -> None:
    (make_output(tmp_path) / "timings.json").unlink()
    write_report(tmp_path, WHOLE)
    assert not (tmp_path / "figures" / "timings.png").exists()


def test_hostile_samples_are_shown_as_text(tmp_path: Path) -> None:
    first = evaluation(101)
    hostile = replace(first, samples=[replace(first.samples[0], completion=HOSTILE), *first.samples[1:]])
    html = write_report(make_output(tmp_path), Records([evaluation(0), hostile], {})).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(&#39;x&#39;)" in html
    assert "<script" not in html
    assert "<img src=x" not in html


@pytest.mark.parametrize(("missing", "stage"), [("run.yaml", "run"), ("train/metrics.jsonl", "train")])
def test_a_missing_input_names_the_file_and_its_stage(tmp_path: Path, missing: str, stage: str) -> None:
    (make_output(tmp_path) / missing).unlink()
    with pytest.raises(UserError, match=rf"{missing} is missing: `raydpo {stage}`"):
        write_report(tmp_path, WHOLE)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        ('{"step": 0, "lo', "line 1 is not JSON"),
        ("[]", "line 1 is not a JSON object"),
        ('{"step": 0}', "line 1: loss is None, not a finite number"),
        ('{"step": 0, "loss": NaN}', "line 1: loss is nan, not a finite number"),
        ('{"loss": 0.69}', "line 1: step is None, not a finite number"),
    ],
)
def test_a_broken_metrics_file_names_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    (make_output(tmp_path) / "train" / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=complaint):
        write_report(tmp_path, WHOLE)


def test_a_step_without_wanted_completions_has_none_of_their_metrics_and_a_report(tmp_path: Path) -> None:
    path = make_output(tmp_path, train_steps=3) / "train" / "metrics.jsonl"
    of_pairs = ("rewards/margins", "rewards/accuracies")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    single = [{name: value for name, value in row.items() if name not in of_pairs} for row in rows]
    del single[0]["rewards/chosen"]
    path.write_text("".join(json.dumps(row) + "\n" for row in single))
    assert write_report(tmp_path, WHOLE).exists()


@pytest.mark.parametrize(
    ("evaluated", "notice"),
    [
        ((), "There is no evaluation to show"),
        ((0,), "Only the reference"),
        ((50, 101), "The reference was not evaluated"),
    ],
)
def test_missing_evaluations_are_said_not_hidden(tmp_path: Path, evaluated: tuple[int, ...], notice: str) -> None:
    html = write_report(make_output(tmp_path), records(*evaluated)).read_text(encoding="utf-8")
    assert notice in html
    assert "the reward changed by" not in html


@pytest.mark.parametrize("train_steps", [1, 2])
def test_a_very_short_run_still_has_a_report(tmp_path: Path, train_steps: int) -> None:
    assert write_report(make_output(tmp_path, train_steps=train_steps), records(0, 2)).exists()


def test_steps_repeated_by_a_resumed_run_count_once(tmp_path: Path) -> None:
    path = make_output(tmp_path, train_steps=3) / "train" / "metrics.jsonl"
    again = {**metrics_row(2, random.Random(1)), "loss": 0.1234}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    facts = re.sub(r"\s+", " ", write_report(tmp_path, WHOLE).read_text(encoding="utf-8"))
    assert "<dt>loss, last tenth</dt><dd>0.1234</dd>" in facts


def test_samples_are_shown_in_prompt_order_whatever_their_reward() -> None:
    rows = side_by_side([evaluation(0), evaluation(101)], limit=5)
    assert [row.prompt for row in rows] == [f"The film number {i} is" for i in range(5)]
    assert all(row.reference and row.policy and row.reference.prompt == row.policy.prompt for row in rows)


def test_the_terminal_table_says_how_reward_and_length_changed_on_the_same_prompts() -> None:
    far = summary_table([evaluation(0, prompts=256), evaluation(101, prompts=256)]).splitlines()
    near = summary_table([evaluation(0, prompts=256), evaluation(1, prompts=256)]).splitlines()
    reward, kl, length, cut, accuracy, distinct, bleu, basis = far[1:]
    assert re.search(r"\+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\]: not 0$", reward)
    assert near[1].endswith(": may be 0")
    assert length.endswith(": not 0")
    assert not [row for row in (kl, cut, accuracy) if row.endswith("0") and ": " in row]
    assert re.match(r"distinct-2 +0\.\d{3} ", distinct)
    assert re.match(r"self-BLEU +[01]\.\d{3} ", bleu)
    assert basis == (
        "95 % intervals over 256 samples of 256 prompts, 200 held-out pairs of 50 prompts; "
        "temperature=1.0 top_p=1.0 max_tokens=64"
    )


def test_the_paired_difference_finds_what_overlapping_intervals_hide() -> None:
    """Prompts that differ by more than training moves them."""
    rng = random.Random(0)
    base = [rng.gauss(0, 1) for _ in range(64)]

    def rewarded(step: int, by: float) -> Evaluation:
        shifted = [
            replace(sample, numbers=sample.numbers | {"reward": reward + by + rng.gauss(0, 0.1)})
            for sample, reward in zip(evaluation(0).samples, base, strict=True)
        ]
        return summarise(step, "policy", shifted, made_from=origin(), seconds={})

    before, after = rewarded(0, 0.0), rewarded(5, 0.15)
    assert before.measures["reward"].high > after.measures["reward"].low, "the intervals overlap"
    assert summary_rows([before, after])[0].change.endswith("not 0")


def test_the_terminal_table_without_evaluations_says_so() -> None:
    assert "No evaluations" in summary_table([])


def test_the_reward_axis_shows_every_evaluation() -> None:
    figure = figures.rewards_by_kl(WHOLE.valid)
    assert figure
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["reference", "step 50", "step 101"]


def test_histogram_shares_add_up_to_one() -> None:
    axes = figures.reward_distribution([evaluation(0), evaluation(101)]).axes[0]
    filled = [container for container in axes.containers if len(container) > 1]
    assert [sum(bar.get_height() for bar in bars) for bars in filled] == pytest.approx([1.0, 1.0])


def test_different_prompts_are_not_compared_and_that_is_said() -> None:
    rows = summary_table([evaluation(0, prompts=40), evaluation(101, prompts=64)]).splitlines()
    assert rows[1].endswith("other prompts: not compared")
    assert rows[3].endswith("other prompts: not compared")


def test_samples_that_are_not_the_policys_have_no_sequence_kl_and_no_frontier(tmp_path: Path) -> None:
    make_output(tmp_path)
    write_report(tmp_path, WHOLE)
    assert (tmp_path / "figures" / "frontier.png").exists()
    sharpened = records(0, 50, 101, decoding=Decoding(temperature=0.7))
    html = write_report(tmp_path, sharpened).read_text(encoding="utf-8")
    assert "<td>summed token KL (nats)</td>" in html
    assert "<td>sequence KL" not in html
    assert "not the policy" in html
    assert not (tmp_path / "figures" / "frontier.png").exists(), "an earlier report's"
    assert figures.measures_by_step(sharpened.valid).axes[1].get_title("left") == "Summed token KL (nats)"
    assert figures.measures_by_step(WHOLE.valid).axes[1].get_title("left") == "Sequence KL (nats)"
    assert "sequence KL" not in summary_table(sharpened.valid)


def test_sets_and_temperatures_stand_beside_each_other(tmp_path: Path) -> None:
    cool = records(0, 101, decoding=Decoding(temperature=0.25))
    news = Records([replace(each, prompt_set="news") for each in records(0).valid], {101: ["prompts"]}, "news")
    html = write_report(make_output(tmp_path), WHOLE, elsewhere=[cool, news]).read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "temperatures.png").exists()
    assert "evaluations left out (news)" in html
    everywhere = [each.valid for each in (WHOLE, cool, news)]
    rows = table_by_set(everywhere, ["reward"]).rows
    assert [row[:3] for row in rows] == [["own", "1", "reward"], ["own", "0.25", "reward"], ["news", "1", "reward"]]
    assert rows[2][4] == "not measured", "there is no policy"
    figure = reward_by_temperature(everywhere)
    assert figure
    [axes] = figure.axes
    policy = axes.containers[1].lines[0]
    assert list(policy.get_xdata()) == [0.25, 1.0]
    assert list(policy.get_ydata()) == [each[-1].measures["reward"].mean for each in (cool.valid, WHOLE.valid)]
    assert reward_by_temperature(everywhere[::2]) is None, "no set has two temperatures"


def test_the_report_says_what_the_figures_were_made_from(tmp_path: Path) -> None:
    made_from = {"scorer": "my.rewards:kind", "scorer_source": "digest-of-source", "decoding": Decoding(top_p=0.5)}
    html = write_report(make_output(tmp_path), records(0, 101, **made_from)).read_text(encoding="utf-8")
    for words in ("my.rewards:kind", "digest-of-source", "top_p=0.5", "200 held-out pairs of 50 prompts"):
        assert words in html


def test_the_report_and_the_terminal_say_what_a_run_suffers_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make_output(tmp_path)
    assert "None of the patterns" in write_report(output, Records([], {})).read_text(encoding="utf-8")
    counts = {"rows_read": 4, "kept": 4, "truncated_completion": 3}
    directory = output / "tokens" / HOSTILE.split("<img")[0].replace("/", "")
    directory.mkdir()
    (directory / "manifest.json").write_text(json.dumps({"counts": counts}))
    found = report(load_run_file(output / "run.yaml", [f"output_dir={output}"]))
    assert found["findings"] == ["most rows too long"]
    assert "3 of 4 rows were cut" in capsys.readouterr().out
    html = (output / "report.html").read_text(encoding="utf-8")
    assert "3 of 4 rows were cut" in html
    assert "so ending is never trained" in html
    assert "<script" not in html


def test_records_that_are_left_out_are_said_in_the_report(tmp_path: Path) -> None:
    stale = Records([evaluation(0)], {101: ["scorer", "prompts"]})
    assert "step 101 (scorer, prompts)" in write_report(make_output(tmp_path), stale).read_text(encoding="utf-8")


def test_the_report_shows_what_became_of_the_rows(tmp_path: Path) -> None:
    html = re.sub(r"\s+", " ", write_report(make_output(tmp_path), WHOLE).read_text(encoding="utf-8"))
    assert "<h3>train</h3>" in html
    assert "<dt>rows read</dt><dd>7,228</dd>" in html


def test_a_jobs_result_calls_nothing_the_reference_that_is_not_and_nothing_a_kl_that_is_none() -> None:
    before, after = evaluation(0), evaluation(101)
    was, now = before.measures, after.measures
    assert summary([before, after]) == {
        "reward_before": [was["reward"].mean, was["reward"].low, was["reward"].high],
        "reward_after": [now["reward"].mean, now["reward"].low, now["reward"].high],
        "kl": now["kl"].mean,
        "length_before": was["length"].mean,
        "length_after": now["length"].mean,
        "pair_accuracy": now["pair_accuracy"].mean,
        "step": 101,
    }
    only_policies = summary([evaluation(50), evaluation(101, decoding=Decoding(top_p=0.9))])
    assert only_policies["reward_before"] is only_policies["length_before"] is only_policies["kl"] is None
    assert only_policies["reward_after"][0] == now["reward"].mean
    assert {*summary([]).values()} == {None}


def test_what_judges_said_is_shown_of_the_weights_that_were_evaluated(tmp_path: Path) -> None:
    judged = [Judged(f"p{i}", 3, "win", True, [Said("first", "win", HOSTILE)]) for i in range(4)]
    judge = JudgeRecord(
        HOSTILE, "planted", None, bias_of(judged), agreement_of_orders(judged), unanswered_of(judged), 0, 4, 40, 8, 0.25
    )
    subjects = [Subject(101, 1.0, weights, "reference") for weights in ("w", "others")]
    contests = [Contest(HOSTILE, subject, win_rate(judged), judged) for subject in subjects]
    output = make_output(tmp_path)
    page = write_report(output, WHOLE, Judgements(contests, [judge])).read_text()
    assert page.count("Win rate against reference") == 1
    assert "<script>" not in page
    assert page.count("1.000 [") >= 1
    assert "Judges" not in write_report(output, WHOLE).read_text()


def reward_record(output: Path, pairs: int = 60) -> Path:
    rng = np.random.default_rng(0)
    better = rng.normal(0.8, 1, size=(pairs, 2))
    lengths = rng.integers(1, 9, size=(2, pairs)).astype(float)
    sources = rng.choice(["news", "<b>chat</b>"], pairs).tolist()
    rewarded = RewardedPairs(range(pairs), better, rng.normal(size=(pairs, 2)), *lengths, sources=sources)
    path = output / "reward" / "evaluation.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"made_from": {"version": VERSION, "step": 120}, **measure(rewarded)}))
    return path


def test_the_report_shows_the_accuracy_of_the_reward_model_by_source_beside_the_rule_by_length(tmp_path: Path) -> None:
    output = make_output(tmp_path)
    found = json.loads(reward_record(output).read_text())
    html = write_report(output, WHOLE).read_text(encoding="utf-8")
    section = html.partition("<h2>Reward model</h2>")[2].partition("<h2>")[0]
    assert (output / "figures" / "reliability.png").exists()
    rule = max(("longer_wins", "shorter_wins"), key=lambda name: found[name]["mean"])
    for share in (found["accuracy"], found[rule], *(of["accuracy"] for of in found["by_source"].values())):
        assert f"{share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}]" in section
    assert f"<dd>{found['expected_calibration_error']:.3f}</dd>" in section
    assert "<b>chat</b>" not in section


def test_the_line_of_sureness_goes_through_the_bins_that_have_pairs(tmp_path: Path) -> None:
    bins = [Bin(0.5, 0.75, 3, 0.6, 0.4), Bin(0.75, 0.9, 0, None, None), Bin(0.9, 1.0, 1, 0.95, 1.0)]
    [axes] = figures.reliability_plot(bins).axes
    diagonal, line = axes.get_lines()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [(0.6, 0.4), (0.95, 1.0)]
    assert axes.get_ylim()[0] < 0.4


def test_a_reward_record_of_another_version_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    output = make_output(tmp_path)
    path = reward_record(output)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "made_from": {"version": 0}}))
    assert "Reward model" not in write_report(output, WHOLE).read_text(encoding="utf-8")
    path.write_text(json.dumps({**record, "accuracy": "high"}))
    with pytest.raises(UserError, match=r"evaluation\.json is not what the reward stage writes \(accuracy"):
        write_report(output, WHOLE)
