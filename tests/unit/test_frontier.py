"""Laws of the frontier: which runs a file asks for, curves at equal KL, and what may be claimed of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.frontier import load_frontier
from raydpo.config.yaml12 import write_yaml
from raydpo.errors import UserError
from raydpo.evaluate.frontier import BestOf, Curves, Point, Run, envelope, mean_line, points_of, pooled
from raydpo.evaluate.records import Evaluation, summarise
from raydpo.evaluate.stats import Interval
from raydpo.report.claims import against, claims, monotone
from raydpo.report.frontier import write_frontier
from raydpo.stages.frontier import _copy_reference, frontier, plan
from tests.evaluations import origin, rated

pytestmark = pytest.mark.unit

SEEDS, PROMPTS = 3, 64
CHECKOUT = Path(__file__).resolve().parents[2]
RECIPES = CHECKOUT / "jobs" / "recipes"


def frontier_file(tmp_path: Path, **changes: Any) -> Path:
    base = {
        "name": "base",
        "output_dir": "unused",
        "model": {"path": "/models/start", "dtype": "float32"},
        "sft": {"train": ["/data/sft.jsonl"]},
        "sample": {"prompts": ["/data/prompts.jsonl"]},
        "evaluate": {"prompts": ["/data/test.jsonl"]},
        "best_of_n": {"n": [4]},
    }
    (tmp_path / "base.yaml").write_text(write_yaml(base))
    tree = {
        "name": "small",
        "output_dir": str(tmp_path / "out"),
        "base": str(tmp_path / "base.yaml"),
        "seeds": [0, 7],
        "methods": {
            "dpo": {"sweep": {"train.objective.beta": [1.0, 0.1]}},
            "unlikelihood": {
                "set": {"train.objective.loss_type": "unlikelihood"},
                "sweep": {"train.objective.unlikelihood_alpha": [0.5]},
            },
            "preferred_ft": {"set": {"train.objective.loss_type": "preferred_ft"}},
        },
    }
    path = tmp_path / "frontier.yaml"
    path.write_text(write_yaml(tree | changes))
    return path


def test_every_strength_is_trained_with_every_seed_in_a_directory_of_its_own(tmp_path: Path) -> None:
    children = load_frontier(frontier_file(tmp_path)).children()
    assert [(child.method, child.strength, child.seed) for child in children] == [
        ("dpo", "beta=1.0", 0),
        ("dpo", "beta=1.0", 7),
        ("dpo", "beta=0.1", 0),
        ("dpo", "beta=0.1", 7),
        ("unlikelihood", "alpha=0.5", 0),
        ("unlikelihood", "alpha=0.5", 7),
        ("preferred_ft", "", 0),
        ("preferred_ft", "", 7),
    ]
    assert len({child.run.output_dir for child in children}) == len(children)
    assert [child.run.train.objective.beta for child in children[:4]] == [1.0, 1.0, 0.1, 0.1]


def test_trainings_share_the_model_the_rows_of_their_seed_and_the_reference_store(tmp_path: Path) -> None:
    frontier = load_frontier(frontier_file(tmp_path))
    for child in frontier.children():
        assert child.run.model.path == str(frontier.root / "shared" / "sft" / "export")
        assert child.run.reference.store == str(frontier.root / "shared" / "reference")
        assert child.run.data.train == [str(frontier.root / f"shared/seed-{child.seed}/samples/pairs.jsonl")]
        assert child.run.data.format == "ranked"
        assert child.run.sft is None
        assert child.run.sample is None
        assert child.run.seed == child.seed


def test_the_rows_of_a_seed_are_prepared_as_its_trainings_ask(tmp_path: Path) -> None:
    frontier = load_frontier(frontier_file(tmp_path))
    plain, others = frontier.rows(7, {}, others=False), frontier.rows(7, {}, others=True)
    child = next(child for child in frontier.children() if child.seed == 7)
    assert plain.data == others.data == child.run.data
    assert plain.output_dir != others.output_dir


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1, 1]}, "seeds has 1 twice"),
        ({"seeds": []}, "seeds"),
        ({"subject": "ppo"}, "subject=ppo is no method; known are dpo, unlikelihood, preferred_ft"),
        ({"methods": {"dpo": {"set": {"train.objektive": 1}}}}, "unknown key train.objektive"),
        ({"methods": {"dpo": {"sweep": {"train.objective.beta": []}}}}, "methods.dpo.sweep"),
        ({"methods": {"dpo": {"sweep": {"train.objective.beta": [-1.0]}}}}, "train.objective.beta = -1.0"),
        ({"set": {"evaluate": None, "best_of_n": None}}, "needs an evaluate section"),
        ({"metods": {}}, "unknown key metods"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        load_frontier(frontier_file(tmp_path, **changes))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("frontier_*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_are_frontier_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    asked = load_frontier(path)
    assert len(plan(asked)) == len(asked.children()) > 0


def test_a_loss_that_does_not_take_what_the_base_sets_is_named_before_anything_runs(tmp_path: Path) -> None:
    path = frontier_file(tmp_path, set={"train.objective.beta": 0.1})
    with pytest.raises(UserError, match=r"unlikelihood alpha=0\.5: train\.objective\.beta is set, and unlikelihood"):
        frontier(load_frontier(path))
    assert not (tmp_path / "out").exists()


def test_siblings_with_the_same_rows_take_the_reference_s_record_from_whoever_has_it(tmp_path: Path) -> None:
    children = [child for child in load_frontier(frontier_file(tmp_path)).children() if child.seed == 7]
    for child in children:
        rows = tmp_path / ("others" if child.method == "unlikelihood" else "rows")
        rows.mkdir(exist_ok=True)
        Path(child.run.output_dir).mkdir(parents=True)
        (Path(child.run.output_dir) / "tokens").symlink_to(rows)
    [first, second, other, last] = [Path(child.run.output_dir) / "evaluations" for child in children]
    second.mkdir()
    (second / "step-000000.json").write_text("{}")
    for child in children * 2:
        _copy_reference(child, children)
    assert all((there / "step-000000.json").exists() for there in (first, second, last))
    assert not other.exists()


def test_a_point_keeps_nothing_of_the_points_before_it(tmp_path: Path) -> None:
    objective = {"train.objective": {"loss_type": "sigmoid"}}
    methods = {"dpo": {"set": objective, "sweep": {"train.objective.beta": [1.0, 0.1]}}, "alone": {"set": objective}}
    children = load_frontier(frontier_file(tmp_path, methods=methods, seeds=[0])).children()
    assert [child.run.train.objective.beta for child in children] == [1.0, 0.1, None]


def test_a_curve_is_straight_between_points_and_flat_beyond_the_last() -> None:
    kls, rewards = [0.0, 2.0, 4.0], [0.0, 1.0, 0.5]
    assert envelope(kls, rewards, 0) == 0
    assert envelope(kls, rewards, 1) == pytest.approx(0.5)
    assert envelope(kls, rewards, 2) == 1
    assert envelope(kls, rewards, 3) == 1, "a policy nearer the reference is admissible"
    assert envelope(kls, rewards, 9) == 1


@given(
    st.lists(st.tuples(st.floats(0.01, 50), st.floats(-5, 5)), min_size=1, max_size=6),
    st.floats(0, 60),
    st.floats(0, 60),
)
def test_more_distance_never_reaches_less(points: list[tuple[float, float]], a: float, b: float) -> None:
    kls, rewards = zip((0.0, 0.0), *points, strict=True)
    near, far = sorted((a, b))
    assert envelope(kls, rewards, near) <= envelope(kls, rewards, far) + 1e-9


def noise(seed: int, spread: float = 0.3) -> Any:
    return np.random.default_rng(seed).normal(0, spread, (SEEDS, PROMPTS))


def point(method: str, strength: str, reward: float, kl: float, *, shared: Any = 0.0, seed: int = 1) -> Point:
    """With noise of its own, and what all methods share of a prompt's difficulty."""
    return Point(method, strength, reward + shared + noise(seed, 0.05), kl + noise(seed + 1, 0.05))


def compared(other: Point, *more: Point, best: tuple[BestOf, ...] = ()) -> Curves:
    shared = noise(0)
    dpo = [point("dpo", "beta=1", 0.3, 0.5, shared=shared, seed=2), point("dpo", "beta=0.1", 0.6, 2.0, shared=shared)]
    return Curves(shared, [*dpo, other, *more], best, draws=400)


@pytest.mark.parametrize(
    ("reward", "decision", "said"),
    [
        (0.3, "below", "dpo dominates other"),
        (0.9, "above", "other dominates dpo"),
        (0.6, "not decided", "Neither of dpo and other dominates"),
    ],
)
def test_a_point_is_below_or_above_where_the_interval_says_so(reward: float, decision: str, said: str) -> None:
    comparison = compared(point("other", "", reward, 2.0, shared=noise(0), seed=5))
    [verdict] = comparison.verdicts("other", "dpo")
    assert verdict.decision == decision
    assert verdict.gap.low <= verdict.gap.mean <= verdict.gap.high
    assert verdict.gap.mean == pytest.approx(0.6 - reward, abs=0.03)
    assert said in against([verdict], "dpo", "other")


def test_pairing_removes_what_all_policies_share_of_a_prompt() -> None:
    shared = noise(0)
    [paired] = compared(point("other", "", 0.5, 2.0, shared=shared, seed=5)).verdicts("other", "dpo")
    [unpaired] = compared(point("other", "", 0.5, 2.0, shared=noise(9), seed=5)).verdicts("other", "dpo")
    assert paired.gap.high - paired.gap.low < (unpaired.gap.high - unpaired.gap.low) / 2


def test_strengths_are_told_from_the_nearest_outwards() -> None:
    order = compared(point("other", "", 0.3, 2.0)).order("dpo")
    assert order.pairs == [("beta=1", "beta=0.1")]
    assert order.kl[0].low > 0
    assert "dpo is monotone in its strength" in monotone(order, "dpo")
    turned = Curves(np.zeros((SEEDS, PROMPTS)), [point("dpo", "a", 0.6, 0.5), point("dpo", "b", 0.2, 2.0)]).order("dpo")
    assert "is not shown to be monotone" in monotone(turned, "dpo")
    assert "The reward falls from a to b" in monotone(turned, "dpo")


def test_best_of_n_stands_at_its_bound_with_the_width_of_its_interval() -> None:
    sure = BestOf("best of n", 4, 2.0, Interval(0.4, 0.39, 0.41, 64, 64))
    vague = BestOf("vague", 4, 2.0, Interval(0.4, -0.6, 1.4, 64, 64))
    comparison = compared(point("other", "", 0.3, 2.0), best=(sure, vague))
    assert comparison.methods == ["dpo", "other", "best of n", "vague"]
    assert comparison.verdicts("best of n", "dpo")[0].decision == "below"
    assert comparison.verdicts("vague", "dpo")[0].decision == "not decided"


def test_the_share_of_the_attainable_is_one_on_its_line_and_none_beyond_it() -> None:
    reference = np.zeros((2, PROMPTS))
    on_the_line = Point("dpo", "", np.full((2, PROMPTS), 0.5), np.full((2, PROMPTS), 1.0))
    comparison = Curves(reference, [on_the_line], draws=50)
    line = [(0.0, 0.0), (1.0, 0.5), (3.0, 1.0)]
    share = comparison.share_of_attainable("dpo", line, 1.0)
    assert share is not None
    assert share.mean == pytest.approx(1)
    assert comparison.share_of_attainable("dpo", line, 2.0) is None, "the method has no point there"
    assert comparison.share_of_attainable("dpo", line[:2], 1.5) is None, "the line ends before"


def test_lines_of_seeds_are_averaged_as_far_as_all_of_them_reach() -> None:
    line = mean_line([[(0, 0.0), (2, 1.0)], [(0, 0.2), (4, 1.0)]])
    assert line[0] == (0, pytest.approx(0.1))
    assert line[-1] == (2, pytest.approx((1.0 + 0.6) / 2))
    assert pooled([Interval(0, -1, 1, 5, 5), Interval(1, 0, 2, 5, 5)]) == Interval(0.5, -0.5, 1.5, 10, 5)


def evaluation(step: int) -> Evaluation:
    samples = [rated(f"prompt {i}", "text", i + step / 10, step / 5, 3, "stop") for i in range(8)]
    return summarise(step, "model", samples, made_from=origin(), seconds={})


def run(method: str, seed: int, *steps: int) -> Run:
    return Run(method, "", seed, [evaluation(step) for step in (0, *steps)])


def test_points_are_of_the_seeds_that_all_methods_have() -> None:
    runs = [run("dpo", 0, 5, 10), run("dpo", 1, 5, 10), run("ipo", 1, 10)]
    reference, points, seeds = points_of(runs)
    assert seeds == [1]
    assert [p.method for p in points] == ["dpo", "ipo"]
    assert reference.shape == points[0].rewards.shape
    assert len(points[0].course) == 3
    with pytest.raises(UserError, match="no seed has been trained"):
        points_of([run("dpo", 0, 5), run("ipo", 1, 5)])


def test_the_page_the_picture_and_the_numbers_are_written(tmp_path: Path) -> None:
    runs = [run(method, seed, 5, 10) for method in ("dpo", "ipo") for seed in (0, 1)]
    result = write_frontier(tmp_path, runs, [tmp_path / "best_of_n.json"], subject="dpo", name="small")
    page = (tmp_path / "frontier.html").read_text()
    tree = json.loads((tmp_path / "frontier.json").read_text())
    assert [p["method"] for p in tree["points"]] == ["dpo", "ipo"]
    assert tree["claims"] == result["claims"]
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "What holds here" in page


def test_claims_name_every_other_method() -> None:
    comparison = compared(point("other", "", 0.3, 2.0), point("third", "x=1", 0.3, 1.0))
    said = claims(comparison, "dpo", {1.0: {"dpo": Interval(0.5, 0.4, 0.6, 9, 9)}})
    assert any("other" in sentence for sentence in said)
    assert any("third" in sentence for sentence in said)
    assert said[-1] == "Of the reward that is attainable at a KL of 1 nats, reached: dpo 50% [40%, 60%]."
