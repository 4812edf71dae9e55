"""`raydpo reference`: list, verify and clear up a reference store, and exchange values with other programs. No cluster.

A store is a directory or an address such as s3://bucket/prefix, as reference.store names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from raydpo.reference.maintenance import KeySummary, export_key, find_waste, list_keys, remove_waste, verify_store

_CONVERT = "`raydpo reference convert` with a run file takes over those of its data, then `gc` removes them"
_ROW = "{:<24}  {:>11}  {:>13}  {:<22}  {:>17}  {}"


def ls(store: str) -> int:
    """Print a line for every key, by the markers of its shards; `verify` reads the shards themselves."""
    print(_ROW.format("key", "completions", "size", "verified", "age", "made of"))
    for directory in list_keys(store):
        key = KeySummary.of(directory)
        verified = f"no: {key.unverified:,} imported" if key.unverified else "yes"
        made_of = " ".join(f"{name}={value}" for name, value in key.made_of.items()) or "?: see verify"
        age = str(timedelta(seconds=round(key.age_s)))
        print(_ROW.format(key.key, f"{key.completions:,}", f"{key.bytes / 2**20:,.1f} MiB", verified, age, made_of))
        if key.old_pairs:
            print(f"  and {key.old_pairs:,} pairs in the layout of an earlier raydpo: {_CONVERT}")
    return 0


def verify(store: str) -> int:
    """Print every file that does not count, with the cause; 1 when there is any."""
    counts, problems = verify_store(store)
    for problem in problems:
        print(problem)
    print(f"whole: {counts['completions']:,} completions in {counts['shards']:,} shards of {counts['keys']} keys")
    if counts["old_pairs"]:
        print(f"whole, in the layout of an earlier raydpo: {counts['old_pairs']:,} pairs; {_CONVERT}")
    if problems:
        print("precompute scores what its run file lacks again; `raydpo reference gc` removes what does not count")
    return int(bool(problems))


def gc(store: str, *, keys: Sequence[str], unverified: bool, older_than: float, yes: bool) -> int:
    """Print what may go and, with `yes`, remove it. older_than is in minutes."""
    waste = find_waste(store, keys=keys, unverified=unverified, older_than_s=60 * older_than)
    for found in waste:
        for file in found.files:
            print(f"{found.place.address_of(file)}: {found.why}")
    total = sum(found.bytes for found in waste) / 2**20
    if yes:
        remove_waste(waste)
    said = "removed" if yes else "may go; --yes removes them"
    print(f"{sum(len(found.files) for found in waste)} files, {total:,.1f} MiB: {said}")
    return 0


def export(store: str, key: str, file: str) -> int:
    """Write the completions of a key to a parquet file."""
    completions = export_key(store, key, Path(file))
    print(f"{completions:,} completions exported to {file}")
    return 0


def import_file(run_file: str, file: str, *, overrides: Sequence[str]) -> int:
    """Take the values of a run's rows from a file into the run's store, unverified."""
    from raydpo.config.load import load_run_file
    from raydpo.data.paths import expand_paths
    from raydpo.stages.importing import import_values
    from raydpo.stages.values import RunValues

    values = RunValues(load_run_file(run_file, overrides))
    [found] = expand_paths([file])  # before the weights are read, which takes its time
    counts = import_values(values.rows(), values.store(), found)
    print(
        f"{counts.imported:,} completions imported into {counts.store}, unverified until training has compared them; "
        f"{counts.known:,} were there already, {counts.unmatched:,} are not among the run's, {counts.lacking:,} of the "
        "run still lack values"
    )
    return 0


def convert(run_file: str, *, overrides: Sequence[str]) -> int:
    """Take over the values of a run's rows from the layout of an earlier raydpo."""
    from raydpo.config.load import load_run_file
    from raydpo.stages.converting import convert_values
    from raydpo.stages.values import RunValues

    values = RunValues(load_run_file(run_file, overrides))
    counts = convert_values(values.rows(), values.store())
    print(
        f"{counts.pairs:,} pairs of the run converted in {counts.store}: {counts.completions:,} completions, none "
        f"scored again; {counts.others:,} pairs are of other runs and wait for their run files. The old files stay "
        "until `raydpo reference gc`."
    )
    if counts.damaged:
        print(f"{counts.damaged} old shards do not count: `raydpo reference verify` says why")
    return 0
