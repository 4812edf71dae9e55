from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.data.completions import completion_ids, pair_ids, rows_of
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.lengths import length_quantiles
from raydpo.data.reading import Chunk
from raydpo.data.rows import Kind
from raydpo.data.shards import (
    Counts,
    TokenManifest,
    read_shard,
    schema,
    split_held_out,
    to_rows,
    to_table,
    verify_shards,
    write_shard,
)
from raydpo.data.tokens import TokenRow, TokenSettings, completion_id, row_id
from raydpo.errors import UserError
from raydpo.reference.dataset import open_dataset, windows
from raydpo.storage import commit
from tests.helpers import row_tokenizer

pytestmark = pytest.mark.unit

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)


ONE, PAIR, GROUP = st.tuples(IDS), st.tuples(IDS, IDS), st.lists(IDS, min_size=2, max_size=5).map(tuple)
VALUES = {"rank": st.integers(0, 9), "label": st.booleans(), "margin": st.floats(-9, 9, width=32)}


def rows(completions: st.SearchStrategy[tuple[list[int], ...]], *columns: str) -> st.SearchStrategy[list[TokenRow]]:
    """Rows with so many completions, and with a value of each column for every one of them."""

    @st.composite
    def row(draw: st.DrawFn) -> TokenRow:
        prompt, answers = draw(IDS), draw(completions)
        values = {name: [draw(VALUES[name]) for _ in answers] for name in columns}
        return TokenRow(row_id(prompt, answers), prompt, answers, values)

    return st.lists(row(), max_size=20)


EVERY_KIND: dict[Kind, st.SearchStrategy[list[TokenRow]]] = {
    "sft": rows(ONE),
    "pair": st.one_of(rows(PAIR), rows(PAIR, "margin")),
    "unpaired": rows(ONE, "label"),
    "ranked": rows(GROUP, "rank"),
}


def manifest(folder, tables) -> TokenManifest:
    infos = [write_shard(table, folder / f"{i}.arrow") for i, table in enumerate(tables)]
    kept = sum(info.rows for info in infos)
    return TokenManifest("pair", infos, Counts(kept, kept), length_quantiles(tables, "pair"))


def some_tables() -> list:
    made = [TokenRow(row_id([i], ([1], [2, i])), [i] * (i + 1), ([1], [2, i])) for i in range(6)]
    return [to_table(made[:4]), to_table(made[4:])]


@given(made=st.one_of(*EVERY_KIND.values()))
def test_a_shard_of_any_kind_of_rows_is_read_exactly_as_it_was_written(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "0.arrow"
    info = write_shard(to_table(made), path)
    table = read_shard(path)
    assert to_rows(table) == made
    assert table.schema == schema(list(made[0].columns) if made else [])
    assert (info.path, info.rows) == ("0.arrow", len(made))
    assert info.tokens == sum(len(row.prompt_ids) + sum(map(len, row.completions)) for row in made)


@given(made=st.one_of(*EVERY_KIND.values()), skipped=st.integers(0, 3))
def test_a_completion_has_the_same_id_in_a_shard_in_a_part_of_it_and_alone(made, skipped):
    expected = [completion_id(row.prompt_ids, ids) for row in made[skipped:] for ids in row.completions]
    assert completion_ids(to_table(made).slice(skipped)).to_pylist() == expected


@given(made=rows(GROUP, "rank"))
def test_any_two_completions_of_a_row_are_named_as_the_pair_that_they_would_be(made):
    every = [ids for row in made for ids in row.completions]
    names, which = pair_ids(to_table(made), np.arange(len(made)))
    expected = [row_id(row.prompt_ids, pair) for row in made for pair in permutations(row.completions, 2)]
    assert names.to_pylist() == expected
    found = [(every[better], every[worse]) for better, worse in which]
    assert found == [pair for row in made for pair in permutations(row.completions, 2)]


@given(made=st.one_of(*EVERY_KIND.values()), data=st.data())
def test_completions_that_are_asked_for_come_with_their_prompt_and_without_the_others(made, data):
    every = [(number, ids) for number, row in enumerate(made) for ids in row.completions]
    wanted = sorted(data.draw(st.sets(st.integers(0, len(every) - 1)))) if every else []
    found = rows_of(to_table(made), np.asarray(wanted, np.int32))
    expected = [(made[number].row_id, made[number].prompt_ids, ids) for number, ids in map(every.__getitem__, wanted)]
    assert [(row.row_id, row.prompt_ids, ids) for row in found for ids in row.completions] == expected
    assert len(found) == len({every[i][0] for i in wanted}), "each row once"


@given(made=rows(PAIR), fraction=st.floats(0, 1))
def test_a_split_never_separates_one_prompt_and_loses_no_row(made, fraction):
    again = [TokenRow(row_id(row.prompt_ids, ([1], [2])), row.prompt_ids, ([1], [2])) for row in made]
    train, held_out = split_held_out(to_table(made + again), fraction)
    sides = [{tuple(row.prompt_ids) for row in to_rows(side)} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert train.num_rows + held_out.num_rows == 2 * len(made)
    assert fraction > 0 or held_out.num_rows == 0
    assert fraction < 1 or train.num_rows == 0


def test_a_split_takes_about_the_fraction_and_a_larger_one_takes_the_same_and_more():
    table = to_table([TokenRow(b"0" * 16, [i], ([1], [2])) for i in range(2000)])
    small, large = ({row.prompt_ids[0] for row in to_rows(split_held_out(table, f)[1])} for f in (0.1, 0.3))
    assert small < large
    assert abs(len(small) / 2000 - 0.1) < 0.03


def test_a_chunk_becomes_the_same_shard_each_time_and_every_row_is_counted():
    values = [
        {"prompt": "The film", "chosen": " is good", "rejected": " is bad"},
        {"prompt": "The film", "chosen": " is good", "rejected": " is good"},
        {"prompt": "The film" * 90, "chosen": " is good", "rejected": " is bad"},
        {"prompt": [7], "chosen": [1] * 60, "rejected": [2]},
    ]
    chunk = Chunk("pairs.jsonl", 1, values)
    settings = TokenSettings(50, "truncate_prompt_left", append_eos=True)
    table, counts = tokenize_chunk(chunk, row_tokenizer(), settings, "pair")
    assert counts == Counts(rows_read=4, kept=2, truncated_prompt=1, dropped_too_long=1, identical=1)
    assert tokenize_chunk(chunk, row_tokenizer(), settings, "pair")[0] == table
    assert [row.row_id for row in to_rows(table)] == [row_id(r.prompt_ids, r.completions) for r in to_rows(table)]
    settings = TokenSettings(50, "truncate_completion", append_eos=True)
    assert tokenize_chunk(chunk, row_tokenizer(), settings, "pair")[1].truncated_completion == 1


def test_an_sft_chunk_has_one_completion():
    settings = TokenSettings(50, "error", append_eos=True)
    table, counts = tokenize_chunk(Chunk("a", 1, [{"prompt": "", "completion": "x"}]), row_tokenizer(), settings, "sft")
    assert table.schema == schema()
    assert [len(row.completions) for row in to_rows(table)] == [1]
    assert counts == Counts(rows_read=1, kept=1)


def test_a_bad_row_of_a_chunk_is_named_by_its_place_in_the_file():
    good = {"prompt": "The film", "chosen": " is good", "rejected": " is bad"}
    chunk = Chunk("pairs.jsonl", 101, [good, {**good, "chosen": [400]}])
    with pytest.raises(UserError, match=r"pairs.jsonl row 102: chosen: token id 400 is outside the vocabulary"):
        tokenize_chunk(chunk, row_tokenizer(), TokenSettings(50, "error", append_eos=True), "pair")


@given(st.lists(st.builds(Counts, *[st.integers(0, 99)] * 7), max_size=5))
def test_counts_add_field_by_field(parts):
    total = sum(parts, Counts())
    assert all(getattr(total, name) == sum(getattr(part, name) for part in parts) for name in vars(Counts()))


def test_a_manifest_is_read_as_it_was_written_and_its_shards_verify(tmp_path):
    made = manifest(tmp_path, some_tables())
    made.write(tmp_path / "manifest.json")
    assert TokenManifest.read(tmp_path / "manifest.json") == made
    verify_shards(tmp_path, made.shards)
    assert (made.rows, made.tokens) == (6, sum(i + 1 + 3 for i in range(6)))
    assert json.loads((tmp_path / "manifest.json").read_text())["counts"]["rows_read"] == 6


def test_quantiles_are_lengths_that_occur(tmp_path):
    quantiles = manifest(tmp_path, some_tables()).quantiles
    assert quantiles["prompt"] == {"min": 1, "p50": 4, "p90": 6, "p99": 6, "max": 6}
    assert set(quantiles["chosen"].values()) == {1}
    assert set(quantiles["rejected"].values()) == {2}
    assert manifest(tmp_path, [to_table([])]).quantiles == {}


def test_the_digest_names_content_and_order(tmp_path):
    one, two = some_tables()
    first = manifest(tmp_path, [one, two]).digest
    assert manifest(tmp_path, [one, two]).digest == first
    assert len({first, manifest(tmp_path, [two, one]).digest, manifest(tmp_path, [one]).digest}) == 3


def test_a_missing_manifest_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json is missing: `raydpo prepare` writes it"):
        TokenManifest.read(tmp_path / "manifest.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "pair", "shards": [{}], "counts": {}, "columns": []}'])
def test_a_broken_manifest_is_named(content, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"manifest.json is not a token manifest .*; run `raydpo prepare` again"):
        TokenManifest.read(path)


@pytest.mark.parametrize(("kind", "command"), [("pair", "prepare"), ("sft", "sft")])
def test_tokens_of_the_earlier_layout_name_the_command_that_makes_them_anew(kind, command, tmp_path):
    path = tmp_path / "manifest.json"
    manifest(tmp_path, some_tables()).write(path)
    content = json.loads(path.read_text())
    del content["columns"]  # which came with the layout of today
    path.write_text(json.dumps(content | {"kind": kind}))
    with pytest.raises(UserError, match=rf"written by an earlier raydpo, .*; run `raydpo {command}` again"):
        TokenManifest.read(path)


def test_a_manifest_that_lost_a_shard_is_refused(tmp_path):
    path = tmp_path / "manifest.json"
    manifest(tmp_path, some_tables()).write(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "shards": content["shards"][:1]}))
    with pytest.raises(UserError, match="was changed after it was written"):
        TokenManifest.read(path)


def test_verify_names_the_shard_that_is_missing_or_changed(tmp_path):
    made = manifest(tmp_path, some_tables())
    shard = tmp_path / "1.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"1.arrow differs from what was written; run `raydpo prepare` again"):
        verify_shards(tmp_path, made.shards)
    shard.unlink()
    with pytest.raises(UserError, match=r"1.arrow is missing"):
        verify_shards(tmp_path, made.shards)


def test_a_shard_is_hashed_once_a_process_and_again_when_it_was_touched(tmp_path, monkeypatch):
    made, hashed = manifest(tmp_path, some_tables()), []
    really = commit.sha256
    monkeypatch.setattr(commit, "sha256", lambda stream: hashed.append(Path(stream.name).name) or really(stream))
    verify_shards(tmp_path, made.shards)
    verify_shards(tmp_path, made.shards)
    assert sorted(hashed) == ["0.arrow", "1.arrow"]
    shard = tmp_path / "0.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"0.arrow differs"):
        verify_shards(tmp_path, made.shards)


@pytest.mark.parametrize("left", [0, 7, 200])
def test_a_shard_that_is_cut_short_is_named(left, tmp_path):
    write_shard(some_tables()[0], tmp_path / "0.arrow")
    content = (tmp_path / "0.arrow").read_bytes()
    (tmp_path / "0.arrow").write_bytes(content[:left])
    with pytest.raises(UserError, match=r"0.arrow cannot be read .*; run `raydpo prepare` again"):
        read_shard(tmp_path / "0.arrow")


def test_a_dataset_whose_tokens_were_changed_is_not_opened(tmp_path):
    manifest(tmp_path, some_tables()).write(tmp_path / "manifest.json")
    assert len(open_dataset(tmp_path)) == 6
    changed = to_table([TokenRow(row_id([i], ([1], [2, i])), [i + 1], ([1], [2, i])) for i in range(4)])
    write_shard(changed, tmp_path / "0.arrow")  # with the row ids of the former tokens
    for read in (open_dataset, lambda directory: list(windows(directory, 1))):
        with pytest.raises(UserError, match=r"0.arrow differs from what was written"):
            read(tmp_path)
