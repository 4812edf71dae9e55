"""The run file: what is read, what is refused and in which words, and what is never written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raydpo.config.load import dump_run_file, load_run_file
from raydpo.config.yaml12 import read_yaml, write_yaml
from raydpo.errors import UserError

pytestmark = pytest.mark.unit

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
MINIMAL = "name: small\noutput_dir: runs/small\nmodel: {path: models/small}\ndata: {train: [pairs.jsonl]}\n"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[!f]*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_are_run_files(path: Path) -> None:
    assert load_run_file(path).name == path.stem.replace("_", "-")


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_run_file(path, overrides)
    return str(caught.value)


def test_defaults_fill_what_a_minimal_file_leaves_out(run_file: Path) -> None:
    run = load_run_file(run_file)
    assert (run.name, run.train.objective.loss_type, run.sft) == ("small", ["sigmoid"], None)


def test_relative_paths_are_taken_from_the_current_directory_and_addresses_stay(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = load_run_file(run_file, ["data.train=[pairs.jsonl, s3://bucket/more.jsonl]", "model.path=org/name"])
    assert run.data.train == [str(tmp_path / "pairs.jsonl"), "s3://bucket/more.jsonl"]
    assert run.output_dir == str(tmp_path / "runs/small")
    assert run.model.path == "org/name"  # a hub name, as no such directory is there
    (tmp_path / "org/name").mkdir(parents=True)
    assert load_run_file(run_file, ["model.path=org/name"]).model.path == str(tmp_path / "org/name")


def test_an_address_where_a_directory_is_needed_is_refused(run_file: Path) -> None:
    message = refusal(run_file, "output_dir=s3://bucket/out")
    assert "output_dir" in message and "s3://bucket/out" in message and "a directory" in message


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("output_dir=~nosuchuser/out", "output_dir"),
        ("model.path=~nosuchuser/model", "model.path"),
        ("data.train=[a.jsonl, ~nosuchuser/b.jsonl]", "data.train[1]"),
        ("data.held_out=[~nosuchuser]", "data.held_out[0]"),
        ("sft.train=[~nosuchuser/a]", "sft.train[0]"),
        ("reference.store=~nosuchuser/store", "reference.store"),
        ("reference.model=~nosuchuser", "reference.model"),
        ("evaluate.prompts=[~nosuchuser/*.jsonl]", "evaluate.prompts[0]"),
        ("sample.prompts=[~nosuchuser/*.jsonl]", "sample.prompts[0]"),
    ],
)
def test_the_home_of_nobody_is_named_with_its_field(run_file: Path, override: str, field: str) -> None:
    assert f"{field}: there is no user 'nosuchuser'; write the directory out" in refusal(run_file, override)


def test_a_reference_store_may_be_an_address_and_its_credentials_are_not_written_down(run_file: Path) -> None:
    run = load_run_file(run_file, ["reference.store=s3://name:password@bucket/prefix?scheme=http"])
    assert run.reference.store == "s3://name:password@bucket/prefix?scheme=http"
    assert "password" not in dump_run_file(run)


@pytest.mark.parametrize("number", ["1e-6", "1.0e-6", "1E-6", ".000001", "1.e-06", "+1e-6"])
def test_a_number_may_be_written_in_every_usual_way(run_file: Path, number: str) -> None:
    assert load_run_file(run_file, [f"train.optimizer.lr={number}"]).train.optimizer.lr == 1e-6
    run_file.write_text(MINIMAL + f"train: {{optimizer: {{lr: {number}}}}}\n")
    assert load_run_file(run_file).train.optimizer.lr == 1e-6


@pytest.mark.parametrize("word", ["no", "on", "yes", "off", "y", "12:30"])
def test_a_word_that_older_yaml_took_for_something_else_is_a_word(run_file: Path, word: str) -> None:
    run_file.write_text(MINIMAL + f"cluster: {{env: {{WORD: {word}}}}}\n")
    assert load_run_file(run_file).cluster.env == {"WORD": word}
    run_file.write_text(dump_run_file(load_run_file(run_file)))
    assert load_run_file(run_file).cluster.env == {"WORD": word}


def test_a_later_override_wins_over_an_earlier_one_and_over_the_file(run_file: Path) -> None:
    run_file.write_text(MINIMAL + "train: {epochs: 5, keep_last: 7}\n")
    run = load_run_file(run_file, ["train.epochs=2", "train.epochs=3"])
    assert (run.train.epochs, run.train.keep_last) == (3, 7)


def test_an_override_may_hold_a_list_open_a_section_or_close_it(run_file: Path) -> None:
    opened = load_run_file(run_file, ["sft.train=[a.jsonl, b.jsonl]", "cluster.env.OMP_NUM_THREADS='1'"])
    assert opened.sft is not None
    assert [Path(path).name for path in opened.sft.train] == ["a.jsonl", "b.jsonl"]
    assert opened.cluster.env == {"OMP_NUM_THREADS": "1"}
    assert load_run_file(run_file, ["sft.train=[a.jsonl]", "sft=null"]).sft is None


@pytest.mark.parametrize(
    ("override", "field", "bound"),
    [
        ("train.optimizer.lr=0", "train.optimizer.lr = 0", "must be greater than 0"),
        ("train.objective.label_smoothing=0.5", "train.objective.label_smoothing = 0.5", "must be less than 0.5"),
        ("train.zero.stage=4", "train.zero.stage = 4", "must be 0, 1, 2 or 3"),
        ("train.epochs=0.1", "train.epochs = 0.1", "must be a valid integer"),
        ("train.epochs='2'", 'train.epochs = "2"', "must be a valid integer"),
        ("train.epochs=2.0", "train.epochs = 2.0", "must be a valid integer"),
        ("train.epochs=true", "train.epochs = true", "must be a valid integer"),
        ("train.optimizer.lr='0.1'", 'train.optimizer.lr = "0.1"', "must be a valid number"),
        ("train.optimizer.lr=.inf", "train.optimizer.lr = Infinity", "must be a finite number"),
        ("train=null", "train = null", "must be a section"),
        ("model.path=7", "model.path = 7", "put it in quotes"),
        ("data.train=[a.jsonl, 7]", "data.train[1] = 7", "put it in quotes"),
        ("name=a b", 'name = "a b"', "must match pattern"),
        ("cluster.object_store_gib=0.07", "cluster.object_store_gib = 0.07", "greater than or equal to 0.0733"),
        ("reference.pool.min_actors=2", "reference.pool", "min_actors=2 is above max_actors=1"),
    ],
)
def test_a_bad_value_is_answered_with_field_value_and_bound(
    run_file: Path, override: str, field: str, bound: str
) -> None:
    message = refusal(run_file, override)
    assert str(run_file) in message
    assert field in message
    assert bound in message


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("train.epoch", "train.epochs"),
        ("trian.epochs", "train.epochs"),
        ("train.lr", "train.optimizer.lr"),
        ("train.beta", "train.objective.beta"),
        ("outptu_dir", "output_dir"),
        ("cluster.environment", "cluster.env"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(run_file: Path, wrong: str, nearest: str) -> None:
    from_override = refusal(run_file, f"{wrong}=1")
    assert f"unknown key {wrong}; the nearest known key is {nearest}." in from_override

    tree: dict[str, Any] = read_yaml(MINIMAL)
    section, _, key = wrong.rpartition(".")
    (tree.setdefault(section, {}) if section else tree)[key] = 1
    run_file.write_text(write_yaml(tree))
    from_file = refusal(run_file)
    assert wrong.partition(".")[0] in from_file
    assert "nearest known key" in from_file


def test_every_problem_is_listed_at_once(run_file: Path) -> None:
    message = refusal(run_file, "train.epochs=0", "train.keep_last=0", "seed=-1")
    assert "3 problems" in message
    assert all(field in message for field in ("train.epochs = 0", "train.keep_last = 0", "seed = -1"))


def test_a_missing_key_is_named(run_file: Path) -> None:
    run_file.write_text(MINIMAL.replace("name: small\n", ""))
    assert refusal(run_file) == f"{run_file}: name is missing; add it."


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (MINIMAL + "name: other\n", "line 5, column 1: key 'name' is given twice"),
        (MINIMAL + "train: {epochs: 1, epochs: 2}\n", "line 5, column 20: key 'epochs' is given twice"),
        (MINIMAL + "sft: &s {seed: 1}\ntrain: {<<: *s, epochs: 1, epochs: 2}\n", "line 6, column 28: key 'epochs'"),
        ("- name\n- model\n", "line 1: a run file is a mapping such as `name: my-run`; this one is a list"),
        ("", "this one is empty"),
        ("name: [small\n", "line 2"),
        ("name: small\x00", "not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_with_its_place(run_file: Path, content: str, complaint: str) -> None:
    run_file.write_text(content)
    message = refusal(run_file)
    assert str(run_file) in message
    assert complaint in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "absent.yaml: cannot read the run file (No such file" in refusal(tmp_path / "absent.yaml")


@pytest.mark.parametrize("override", ["train.epochs", "train.epochs=[1", "data.train.first=x"])
def test_an_override_that_cannot_be_applied_is_quoted(run_file: Path, override: str) -> None:
    assert repr(override) in refusal(run_file, override)


def test_the_dump_of_a_run_file_reads_back_to_the_same_run(run_file: Path) -> None:
    run = load_run_file(run_file, ["name='1e5'", "train.optimizer.lr=3e-7", "sft.train=[a]", "cluster.env.A='1e3'"])
    run_file.write_text(dump_run_file(run))
    assert load_run_file(run_file) == run


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "GOOGLE_CREDENTIALS", "api_key"])
def test_the_value_of_a_secret_variable_is_never_shown(run_file: Path, name: str) -> None:
    dumped = dump_run_file(load_run_file(run_file, [f"cluster.env.{name}=hunter2", "cluster.env.PLAIN=visible"]))
    assert "hunter2" not in dumped
    assert "visible" in dumped
    assert "hunter2" not in refusal(run_file, f"cluster.env.{name}=[hunter2]")


def test_a_secret_given_twice_is_not_shown(run_file: Path) -> None:
    run_file.write_text(MINIMAL + "cluster:\n  env:\n    HF_TOKEN: hunter2\n    HF_TOKEN: hunter3\n")
    message = refusal(run_file)
    assert "line 8, column 5: key 'HF_TOKEN' is given twice" in message
    assert "hunter" not in message


@pytest.mark.parametrize(
    "uri", ["s3://user:hunter2@bucket/x", "https://hunter2@host/x", "abfs://host/x?client_secret=hunter2&n=1"]
)
def test_credentials_inside_an_address_are_never_shown(run_file: Path, uri: str) -> None:
    overrides = [f"model.path='{uri}'", f"data.train=['{uri}']", f"cluster.env.STORE='{uri}'"]
    dumped = dump_run_file(load_run_file(run_file, overrides))
    assert "hunter2" not in dumped
    assert dumped.count("REDACTED") == 3
    assert "hunter2" not in refusal(run_file, *overrides, f"seed='{uri}'")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@example({"long": "\x1f" + "0" * 100 + "ĀĀĀĀĀĀĀĀ0 0"})  # the library folds it at 120 letters and loses the space
def test_what_is_written_as_yaml_reads_back_the_same(value: Any) -> None:
    assert read_yaml(write_yaml(value)) == value


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.workers.min_count=3"], "workers.min_count=3 is more than workers.count=2"),
        (["train.workers.count=5", "train.global_batch_size=4"], "global_batch_size=4 is less than workers.count=5"),
        (["evaluate.prompts=[prompts.jsonl]"], "train.workers.min_count goes with neither evaluate nor sample"),
        (["train.reference=overlap"], "train.reference=overlap"),
    ],
)
def test_an_elastic_group_that_cannot_work_is_refused(run_file: Path, overrides: list[str], said: str) -> None:
    assert said in refusal(run_file, "train.workers.count=2", "train.workers.min_count=1", *overrides)


def test_an_elastic_group_need_not_divide_the_batch(run_file: Path) -> None:
    run = load_run_file(run_file, ["train.workers.count=5", "train.workers.min_count=3", "train.global_batch_size=8"])
    assert run.train.workers.least == 3


EVALUATED = [
    "evaluate.prompts=[own.jsonl]",
    "evaluate.sets={news: {prompts: [news.jsonl]}}",
    "evaluate.temperatures=[0.25, 1.0]",
    "judge.judges.a.reward=length",
]


def test_all_sets_and_temperatures_begin_with_the_sections_own_and_none_comes_twice(run_file: Path) -> None:
    evaluate = load_run_file(run_file, EVALUATED).evaluate
    assert evaluate
    assert list(evaluate.all_sets) == ["", "news"]
    assert evaluate.all_temperatures == [1.0, 0.25]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("judge.sets=[nwes]", "judge.sets names nwes, which evaluate.sets does not have; known are news"),
        ("judge.temperatures=[0.5]", "judge.temperatures has 0.5, at which nothing is sampled"),
    ],
)
def test_a_judge_is_asked_about_what_is_sampled(run_file: Path, override: str, said: str) -> None:
    assert said in refusal(run_file, *EVALUATED, override)
