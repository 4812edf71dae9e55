"""`raydpo reference`: list, verify and clear up a reference store, and exchange values with other programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

COMMANDS = {
    "ls": ("list the keys of a reference store: completions, size, whether verified, age", ("STORE",)),
    "verify": ("read every shard and name what does not count, and why; exit code 1 when there is any", ("STORE",)),
    "gc": ("list what nobody would miss: leftovers of killed writers, duplicates; --yes removes it", ("STORE",)),
    "export": ("write all completions of a key to one parquet file", ("STORE", "KEY", "FILE")),
    "convert": ("take over what an earlier raydpo has scored of a run's pairs; nothing is scored again", ("RUNFILE",)),
    "import": ("take reference log-probs of a run's rows from a file, as TRL names the columns", ("RUNFILE", "FILE")),
}
OPTIONS = {"gc": ("keys", "unverified", "older_than", "yes"), "import": ("overrides",), "convert": ("overrides",)}


def add_to(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group's parsers."""
    group = parsers.add_parser("reference", help="look after a reference store: list, verify, clear up, exchange")
    commands = group.add_subparsers(dest="command", metavar="COMMAND", required=True)
    by_name = {}
    for name, (summary, paths) in COMMANDS.items():
        by_name[name] = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        for path in paths:
            by_name[name].add_argument("paths", metavar=path, action="append")
    gc = by_name["gc"]
    gc.add_argument("--key", dest="keys", metavar="KEY", action="append", default=[], help="all of this key, too")
    gc.add_argument("--unverified", action="store_true", help="imported values that no training has verified, too")
    gc.add_argument(
        "--older-than", metavar="MINUTES", type=float, default=60, help="younger files are a writer's at work (60)"
    )
    gc.add_argument("--yes", action="store_true", help="remove it")
    for name in ("import", "convert"):
        by_name[name].add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides of the run file")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code. Raises UserError."""
    from raydpo.runtime import references

    functions: dict[str, Callable[..., int]] = {
        "ls": references.ls,
        "verify": references.verify,
        "gc": references.gc,
        "export": references.export,
        "import": references.import_file,
        "convert": references.convert,
    }
    given = {name: getattr(arguments, name) for name in OPTIONS.get(arguments.command, ())}
    return functions[arguments.command](*arguments.paths, **given)
