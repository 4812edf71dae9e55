from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.data import shards
from raydpo.data.formats import Chunk
from raydpo.data.shards import (
    COMPLETIONS,
    Counts,
    TokenManifest,
    length_quantiles,
    read_shard,
    schema,
    split_held_out,
    to_rows,
    to_table,
    tokenize_chunk,
    verify_shards,
    write_shard,
)
from raydpo.data.tokens import TokenRow, TokenSettings, row_id
from raydpo.errors import UserError
from raydpo.reference.dataset import open_dataset, windows
from tests.helpers import row_tokenizer

pytestmark = pytest.mark.unit

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)


def rows(kind: str, **sizes) -> st.SearchStrategy[list[TokenRow]]:
    completions = st.tuples(*[IDS] * len(COMPLETIONS[kind]))
    return st.lists(st.builds(lambda p, c: TokenRow(row_id(p, c), p, c), IDS, completions), max_size=20, **sizes)


ANY_KIND = st.sampled_from(["pair", "sft"]).flatmap(lambda kind: st.tuples(st.just(kind), rows(kind)))


def manifest(folder, tables) -> TokenManifest:
    infos = [write_shard(table, folder / f"{i}.arrow") for i, table in enumerate(tables)]
    kept = sum(info.rows for info in infos)
    return TokenManifest("pair", infos, Counts(kept, kept), length_quantiles(folder, infos, "pair"))


def some_tables() -> list:
    made = [TokenRow(row_id([i], ([1], [2, i])), [i] * (i + 1), ([1], [2, i])) for i in range(6)]
    return [to_table(made[:4], "pair"), to_table(made[4:], "pair")]


@given(case=ANY_KIND)
def test_a_shard_is_read_exactly_as_it_was_written(case, tmp_path_factory):
    kind, made = case
    path = tmp_path_factory.mktemp("shard") / "0.arrow"
    info = write_shard(to_table(made, kind), path)
    table = read_shard(path)
    assert to_rows(table) == made
    assert table.schema == schema(kind)
    assert (info.path, info.rows) == ("0.arrow", len(made))
    assert info.tokens == sum(len(row.prompt_ids) + sum(map(len, row.completions)) for row in made)


@given(made=rows("pair"), fraction=st.floats(0, 1))
def test_a_split_never_separates_one_prompt_and_loses_no_row(made, fraction):
    again = [TokenRow(row_id(row.prompt_ids, ([1], [2])), row.prompt_ids, ([1], [2])) for row in made]
    train, held_out = split_held_out(to_table(made + again, "pair"), fraction)
    sides = [{tuple(row.prompt_ids) for row in to_rows(side)} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert train.num_rows + held_out.num_rows == 2 * len(made)
    assert fraction > 0 or held_out.num_rows == 0
    assert fraction < 1 or train.num_rows == 0


def test_a_split_takes_about_the_fraction_and_a_larger_one_takes_the_same_and_more():
    table = to_table([TokenRow(b"0" * 16, [i], ([1], [2])) for i in range(2000)], "pair")
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
    assert table.schema == schema("sft")
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
    assert manifest(tmp_path, [to_table([], "pair")]).quantiles == {}


def test_the_digest_names_content_and_order(tmp_path):
    one, two = some_tables()
    first = manifest(tmp_path, [one, two]).digest
    assert manifest(tmp_path, [one, two]).digest == first
    assert len({first, manifest(tmp_path, [two, one]).digest, manifest(tmp_path, [one]).digest}) == 3


def test_a_missing_manifest_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json is missing: `raydpo prepare` writes it"):
        TokenManifest.read(tmp_path / "manifest.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "pair", "shards": [{}], "counts": {}}'])
def test_a_broken_manifest_is_named(content, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"manifest.json is not a token manifest .*; run `raydpo prepare` again"):
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
    really = shards._sha256
    monkeypatch.setattr(shards, "_sha256", lambda path: hashed.append(path.name) or really(path))
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
    changed = to_table([TokenRow(row_id([i], ([1], [2, i])), [i + 1], ([1], [2, i])) for i in range(4)], "pair")
    write_shard(changed, tmp_path / "0.arrow")  # with the row ids of the former tokens
    for read in (open_dataset, lambda directory: list(windows(directory, 1))):
        with pytest.raises(UserError, match=r"0.arrow differs from what was written"):
            read(tmp_path)
