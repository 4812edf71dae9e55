"""Patterns → files, on any filesystem that pyarrow reaches.

`*` stands for any letters of one name, `?` for one letter, `**` as a whole part for folders to any depth, none
included. Every other letter stands for itself, brackets too. A path that exists is taken as it stands. Names that
begin with a dot are found only by patterns that begin with one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from raydpo.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
ANY_DEPTH = "**"
TASK_BYTES = 1 << 20
TASK_FILES = 64  # opening one takes a while where it is far away


@dataclass(frozen=True)
class Found:
    """A file and its size in bytes."""

    path: str  # absolute, or an address
    size: int


def expand_paths(patterns: Sequence[str]) -> list[str]:
    """Absolute paths (or addresses) of the files that the patterns name, sorted, each once.

    Raises UserError for a pattern without a match, an unknown suffix or a directory.
    """
    return [file.path for file in find_files(patterns)]


def find_files(patterns: Sequence[str]) -> list[Found]:
    """The files that the patterns name, with their sizes. Raises UserError as expand_paths does.

    A file that has several names, as by a link, is read once, under the first of them.
    """
    found = {file.path: file for pattern in patterns for file in _expand(pattern)}
    once: dict[object, Found] = {}
    for path in sorted(found):
        once.setdefault(_identity(path), found[path])
    return list(once.values())


def share_out(files: Sequence[Found]) -> list[list[tuple[int, str]]]:
    """Reading tasks: each has consecutive files with their numbers, one file of TASK_BYTES or several smaller ones.

    A task costs a tenth of a second whatever it reads.
    """
    tasks: list[list[tuple[int, str]]] = []
    room = 0
    for number, file in enumerate(files):
        if not tasks or file.size > room or len(tasks[-1]) == TASK_FILES:
            tasks.append([])
            room = TASK_BYTES
        tasks[-1].append((number, file.path))
        room -= file.size
    return tasks


def filesystem_of(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or address, and the path in it. UserError where there is none."""
    if "://" not in path:
        local = os.path.expanduser(path)
        if local.startswith("~"):
            raise UserError(f"{path}: there is no user {local.split('/')[0][1:]!r}; write the directory out.")
        return pafs.LocalFileSystem(), os.path.abspath(local)
    if path.startswith("hf://"):
        raise UserError(
            f"{path} is on a hub, where a name's content may change; fetch the files (`hf download NAME --repo-type "
            "dataset --local-dir DIR`) and give their paths."
        )
    scheme, _, rest = path.partition("://")
    try:
        filesystem, inner = pafs.FileSystem.from_uri(f"{scheme}://{quote(rest, safe=_SAFE_IN_ADDRESSES)}")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be reached ({error}); check the address and the credentials.") from error
    return filesystem, inner


# What an address may hold as it stands: its own marks, and what is escaped already.
_SAFE_IN_ADDRESSES = "/:@?&=%+,;!$'()*~#"


def _expand(pattern: str) -> list[Found]:
    filesystem, path = filesystem_of(pattern)
    try:
        itself = filesystem.get_file_info(path)
        if itself.type == pafs.FileType.NotFound and ("*" in path or "?" in path):
            parts = path.split("/")
            fixed = next(i for i, part in enumerate(parts) if "*" in part or "?" in part)
            found = _walk(filesystem, "/".join(parts[:fixed]) or "/", parts[fixed:], frozenset())
            files = {info.path: info for info in found}
        else:
            files = {itself.path: itself} if itself.is_file else {}
    except OSError as error:
        raise UserError(f"{pattern} cannot be read ({error}); check the path and its permissions.") from error
    if not files:
        is_folder = itself.type == pafs.FileType.Directory
        remedy = f"it is a folder: give {pattern}/*.jsonl" if is_folder else "check the path in the run file"
        raise UserError(f"{pattern} matches no file; {remedy}.")
    for info in files.values():
        if not info.path.endswith(SUFFIXES):
            raise UserError(f"{info.path} is none of {', '.join(SUFFIXES)}; convert it, or narrow the pattern.")
    return [Found(_address(pattern, path, info.path), info.size) for info in files.values()]


def _walk(
    filesystem: pafs.FileSystem, folder: str, parts: Sequence[str], above: frozenset[str]
) -> Iterator[pafs.FileInfo]:
    """Files below a folder that the parts lead to.

    above: the folders on the way here as they really are, so that a link to one of them does not lead round for ever.
    """
    first = parts[0]
    rest = parts[1:]
    if first == ANY_DEPTH and rest:
        yield from _walk(filesystem, folder, rest, above)
    real = os.path.realpath(folder) if isinstance(filesystem, pafs.LocalFileSystem) else folder
    if first == ANY_DEPTH and real in above:
        return
    for info in filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
        name = info.path.rpartition("/")[2]
        if not _fits(name, first):
            continue
        if info.type == pafs.FileType.Directory:
            if first == ANY_DEPTH:
                yield from _walk(filesystem, info.path, parts, above | {real})
            elif rest:
                yield from _walk(filesystem, info.path, rest, above)
        elif info.is_file and not rest:
            yield info


def _fits(name: str, pattern: str) -> bool:
    letters = {"*": "[^/]*", "?": "[^/]"}
    # As in a shell: `*` finds no hidden names.
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return (
        re.fullmatch("".join(letters.get(letter, re.escape(letter)) for letter in pattern), name, re.DOTALL) is not None
    )


def _address(pattern: str, path: str, file: str) -> str:
    """A file's own address, from that of the pattern which has led to it."""
    if "://" not in pattern:
        return file
    scheme, _, rest = pattern.partition("://")
    query = rest[rest.index("?") :] if "?" in rest else ""
    host = "/" if file.startswith("/") else ""
    return (
        f"{scheme}://{host}{quote(file.lstrip('/'), safe=_SAFE_IN_ADDRESSES.replace('%', '').replace('?', ''))}{query}"
    )


def _identity(path: str) -> object:
    """What all names of one file have in common: the address, or device and inode."""
    if "://" in path:
        return path
    status = os.stat(path)
    return status.st_dev, status.st_ino
