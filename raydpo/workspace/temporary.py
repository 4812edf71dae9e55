"""Where processes of a job keep sockets and other files for as long as they live. No Ray: checked before it loads."""

from __future__ import annotations

import os
import tempfile

from raydpo.errors import UserError

RAY_FILES = "/tmp"  # of a local cluster: its sockets' names leave some 25 bytes for the directory above them
SOCKET_BYTES = 107  # that the path of a Unix socket may have
SOCKET_NAME_BYTES = 40  # for what is below TMPDIR: Python's forkserver, and so Ray's dashboard, takes 32, vLLM 37


def check_temporary() -> None:
    """Raise UserError where a process could not make its sockets. Some libraries would wait for them for ever."""
    try:
        directory = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            f"no directory for temporary files can be written ({error.strerror}); make /tmp writable, or set TMPDIR to "
            "a directory that is."
        ) from error
    size = len(os.fsencode(directory))
    room = SOCKET_BYTES - SOCKET_NAME_BYTES
    if size > room:
        raise UserError(
            f"TMPDIR={directory} has {size} bytes, and sockets are made below it whose paths may have {SOCKET_BYTES} "
            f"in all; set TMPDIR to a directory of at most {room} bytes, such as /tmp."
        )


def files_of_a_cluster() -> str:
    """A new directory for the sockets and logs of a local cluster; UserError where none can be made."""
    try:
        return tempfile.mkdtemp(prefix="raydpo-", dir=RAY_FILES)
    except OSError as error:
        raise UserError(
            f"{RAY_FILES} cannot be written ({error.strerror}), and Ray keeps its sockets there; make it a directory "
            "that is writable and has room, or attach to a running cluster with RAY_ADDRESS."
        ) from error
