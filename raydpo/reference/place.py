"""A directory on any filesystem that pyarrow reaches: a local disk, or an object store such as S3.

Files in it are whole or absent. A local file is written under another name, flushed and renamed. A put to an object
store is atomic by itself, and directories need no making there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from raydpo.config.secret import REDACTED, redact_text
from raydpo.errors import UserError
from raydpo.storage.files import whole_file


class Place:
    """A directory by its filesystem and path; `address` is what to call it in a message. May be pickled."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, address: str) -> None:
        self.filesystem = filesystem
        self.path = path.rstrip("/")
        self.address = address.rstrip("/")

    @classmethod
    def of(cls, address: str) -> Place:
        """The place of a path or a URI, say s3://bucket/prefix?endpoint_override=host:port&scheme=http.

        Raises UserError for an address that no filesystem answers to. Nothing is read or made yet.
        """
        if "://" not in address:
            path = os.path.abspath(os.path.expanduser(address))
            return cls(pafs.LocalFileSystem(), path, path)
        shown = redact_text(address).replace(f"{REDACTED}@", "")
        try:
            filesystem, path = pafs.FileSystem.from_uri(address)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{shown} cannot be reached ({redact_text(str(error))}); check the address and the credentials."
            ) from error
        if not path.strip("/"):
            raise UserError(f"{shown} names no directory; write it as s3://bucket/prefix.")
        return cls(filesystem, path, shown.partition("?")[0])

    def __truediv__(self, name: str) -> Place:
        return Place(self.filesystem, f"{self.path}/{name}", self.address_of(name))

    def address_of(self, name: str) -> str:
        """What to call a file here in a message."""
        return f"{self.address}/{name}"

    def entries(self) -> list[pafs.FileInfo]:
        """What lies directly here, by name; nothing where there is no such directory. UserError if it is not told."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        try:
            return sorted(self.filesystem.get_file_info(selector), key=lambda info: info.base_name)
        except OSError as error:
            raise UserError(
                f"{self.address} cannot be listed ({redact_text(str(error))}); check the address, the credentials and "
                "that the server runs."
            ) from error

    def info(self, name: str) -> pafs.FileInfo:
        """Size and time of one file; its type says so where there is none."""
        return self.filesystem.get_file_info(f"{self.path}/{name}")

    def open(self, name: str) -> pa.NativeFile:
        """A file to read from any position. FileNotFoundError when it is not there."""
        return self.filesystem.open_input_file(f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        """All of a file. FileNotFoundError when it is not there."""
        with self.open(name) as stream:
            return stream.read()

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Make or replace a file, whole. OSError when the place cannot be written."""
        target = f"{self.path}/{name}"
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            with whole_file(Path(target)) as temporary:
                temporary.write_bytes(content)
        else:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)

    def remove(self, names: Sequence[str]) -> None:
        """Delete files, in this order; one that somebody else has deleted is no error."""
        for name in names:
            try:
                self.filesystem.delete_file(f"{self.path}/{name}")
            except FileNotFoundError:
                continue

    def remove_all(self) -> None:
        """Delete the directory with everything in it."""
        self.filesystem.delete_dir(self.path)
