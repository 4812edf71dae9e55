"""Tokenizers that cannot be used are refused by their files alone, or when they are loaded: never with a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raydpo.data.tokens import TokenSettings, tokenize_pair
from raydpo.errors import UserError
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.model.tokenizer_files import check_tokenizer_files, stop_ids

pytestmark = pytest.mark.unit

ROW = {"prompt": "ACGT", "chosen": "ACC", "rejected": "GGG"}
SETTINGS = TokenSettings(100, "error", append_eos=True)


def edit(path: Path, **changes: Any) -> None:
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def replace_tokenizer(model: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], **special: str) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(model)


def _without_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_tokenizer, "has no tokenizer .*; copy the tokenizer's files beside its config.json"),
        (lambda m: (m / "tokenizer.json").write_text('{"model": '), r"tokenizer.json is not JSON .*; copy it again"),
        (lambda m: (m / "tokenizer.json").write_text("{}"), "tokenizer.json describes no tokenizer; save it again"),
        (lambda m: (m / "tokenizer.json").write_text("[1]"), "tokenizer.json is not a JSON object"),
        (lambda m: (m / "tokenizer_config.json").write_bytes(b"\xff\xfe"), "tokenizer_config.json is not JSON"),
        (lambda m: (m / "special_tokens_map.json").write_text("{"), "special_tokens_map.json is not JSON"),
        (lambda m: edit(m / "tokenizer_config.json", eos_token=None), "no eos_token, .*; set eos_token in"),
    ],
)
def test_what_the_files_show_is_refused_without_transformers(
    model: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(model)
    with pytest.raises(UserError, match=message):
        check_tokenizer_files(str(model), needs_eos=True)


def test_the_files_are_checked_before_anything_heavy_is_imported(model: Path, tmp_path: Path) -> None:
    _without_tokenizer(model)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(ROW) + "\n")
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        f"name: a\noutput_dir: {tmp_path}/out\nmodel: {{path: {model}}}\ndata: {{train: [{tmp_path}/pairs.jsonl]}}\n"
    )
    script = f"import sys; from raydpo.cli import main; print(main(['run', {str(run_file)!r}])); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "has no tokenizer" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not set(answer.stdout.split()) & {"torch", "ray", "transformers"}


def test_eos_may_be_missing_where_nothing_asks_for_it(model: Path) -> None:
    edit(model / "tokenizer_config.json", eos_token=None)
    check_tokenizer_files(str(model), needs_eos=False)
    tokenizer = load_row_tokenizer(str(model))
    assert tokenize_pair({**ROW, "prompt": "The film"}, tokenizer, TokenSettings(100, "error", False)).row


def test_a_tokenizer_without_eos_is_an_error_of_the_completion_that_lacks_its_end(model: Path) -> None:
    edit(model / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match=r"has no eos_token, .*; set eos_token .*, or data.append_eos: false"):
        tokenize_pair(ROW, load_row_tokenizer(str(model)), SETTINGS)


@pytest.mark.parametrize("damage", ["normalizer", "class"])
def test_a_tokenizer_that_cannot_be_loaded_is_named_with_the_reason(model: Path, damage: str) -> None:
    if damage == "class":
        edit(model / "tokenizer_config.json", tokenizer_class="NoSuchTokenizer")
        (model / "tokenizer.json").rename(model / "vocab.json")
    else:
        edit(model / "tokenizer.json", normalizer={"type": "NoSuchThing"})
    with pytest.raises(UserError, match=rf"{model}.*: its tokenizer cannot be loaded \(.+\); save it again"):
        load_row_tokenizer(str(model))


def test_a_vocabulary_without_the_letter_a_is_as_good_as_any(model: Path) -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "A": 2, "C": 3, "G": 4, "T": 5, "AC": 6}
    replace_tokenizer(model, vocabulary, [("A", "C")], bos_token="<s>", eos_token="</s>")
    row = tokenize_pair(ROW, load_row_tokenizer(str(model)), SETTINGS).row
    assert row is not None
    assert (row.prompt_ids, row.completions) == ([6, 4, 5], ([6, 3, 1], [4, 4, 4, 1]))


@pytest.mark.parametrize("unknown", [{}, {"unk_token": "<unk>"}])
def test_a_text_of_unknown_letters_alone_is_refused(model: Path, unknown: dict[str, str]) -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "A": 2, "C": 3, "G": 4, "T": 5, "<unk>": 6}
    replace_tokenizer(model, vocabulary, [], bos_token="<s>", eos_token="</s>", **unknown)
    tokenizer = load_row_tokenizer(str(model))
    with pytest.raises(UserError, match="does not know the letters of 'acgt'; is it the right model"):
        tokenize_pair({**ROW, "prompt": "acgt"}, tokenizer, SETTINGS)
    with pytest.raises(UserError, match="rejected: the tokenizer does not know the letters of 'ggg'"):
        tokenize_pair({**ROW, "rejected": "ggg"}, tokenizer, SETTINGS)


def test_a_text_of_which_a_tokenizer_would_drop_letters_is_refused(model: Path) -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "A": 2, "C": 3, "G": 4, "T": 5}
    replace_tokenizer(model, vocabulary, [], bos_token="<s>", eos_token="</s>")
    tokenizer = load_row_tokenizer(str(model))
    with pytest.raises(UserError, match="does not know the letters of 'ACGTN'"):
        tokenize_pair({**ROW, "prompt": "ACGTN"}, tokenizer, SETTINGS)
    with pytest.raises(UserError, match="chosen: the tokenizer does not know the letters of 'ANC'"):
        tokenize_pair({**ROW, "chosen": "ANC"}, tokenizer, SETTINGS)


def test_a_word_that_a_tokenizer_fails_on_is_an_error_of_the_row(model: Path) -> None:
    words = Tokenizer(models.WordLevel({"yes": 0, "</s>": 1, "no": 2, "film": 3}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for file in model.glob("tokenizer*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(model)
    tokenizer = load_row_tokenizer(str(model))
    row = tokenize_pair({"prompt": "film", "chosen": " yes", "rejected": " no"}, tokenizer, SETTINGS).row
    assert row is not None
    assert (row.prompt_ids, row.completions) == ([3], ([0, 1], [2, 1]))
    with pytest.raises(UserError, match=r"chosen: the tokenizer cannot read the text 'film maybe' \(.*UNK"):
        tokenize_pair({"prompt": "film", "chosen": " maybe", "rejected": " no"}, tokenizer, SETTINGS)


def test_a_tokenizer_that_makes_no_token_of_any_text_is_refused(model: Path) -> None:
    replace_tokenizer(model, {"<s>": 0, "</s>": 1}, [], bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match=rf"{model}.*: the tokenizer makes no tokens of any text"):
        load_row_tokenizer(str(model))


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 1]}, {"eos_token_id": 3}, [1, 7]),
        ({"eos_token_id": 7}, {}, [7]),
        ({}, {"eos_token_id": 3}, [3]),
        (None, {"eos_token_id": [3, -1]}, [3]),
        (None, {"text_config": {"eos_token_id": 4}}, [4]),
        (None, {}, []),
    ],
)
def test_stop_tokens_are_those_of_the_generation_config(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: list[int]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert stop_ids(str(tmp_path)) == expected


def test_stop_tokens_that_are_no_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(UserError, match=r"config.json: eos_token_id is '</s>'; it must be a token id"):
        stop_ids(str(tmp_path))


@given(data=st.data())
def test_a_tokenizer_damaged_anywhere_loads_or_is_refused_with_a_remedy(
    data: st.DataObject, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = Path(shutil.copytree(good, tmp_path_factory.mktemp("damaged") / "model"))
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    content = bytearray((model / name).read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (model / name).write_bytes(bytes(content))
    try:
        check_tokenizer_files(str(model), needs_eos=True)
        row = tokenize_pair({**ROW, "prompt": "The film"}, load_row_tokenizer(str(model)), SETTINGS).row
        assert row is not None
    except UserError as error:
        assert any(word in str(error) for word in ("copy", "save", "set", "give", "data?"))  # noqa: PT017
