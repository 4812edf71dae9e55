"""What surrounds a job and cannot work: an address where no Ray is, a directory that no socket fits below."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from raydpo.errors import UserError
from raydpo.runtime.cluster.connection import check_address
from raydpo.workspace import temporary
from raydpo.workspace.temporary import check_temporary, files_of_a_cluster

pytestmark = pytest.mark.unit

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """The address of a server that is no Ray: it gives everybody this answer, or none."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                if answer is not None:
                    with connection:
                        connection.sendall(answer)

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [None, BAD_REQUEST], ids=["silent", "the web"])
def test_a_port_where_something_else_listens_is_no_cluster(answer: bytes | None) -> None:
    with server(answer) as address, pytest.raises(UserError) as error:
        check_address(address)
    assert f"no Ray cluster answers at RAY_ADDRESS={address}: what listens there is no Ray. Start one" in str(
        error.value
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "nowhere.invalid:6379", "127.0.0.1:port"])
def test_an_address_where_nobody_listens_is_no_cluster(address: str) -> None:
    with pytest.raises(UserError, match=f"no Ray cluster answers at RAY_ADDRESS={address}: .* or unset RAY_ADDRESS"):
        check_address(address)


def test_a_grpc_server_that_is_no_head_is_told_from_one() -> None:
    head = grpc.server(futures.ThreadPoolExecutor(1))
    port = head.add_insecure_port("127.0.0.1:0")
    head.start()
    with pytest.raises(UserError, match=r"no Ray cluster answers at .* does not answer as Ray does"):
        check_address(f"127.0.0.1:{port}")
    head.stop(None).wait()


def test_a_directory_that_no_socket_fits_below_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)  # where Python keeps what it has found
    check_temporary()
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(UserError, match=r"TMPDIR=.*xxx has \d+ bytes, .* a directory of at most \d+ bytes"):
        check_temporary()


def test_no_directory_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])  # as where all are read-only
    with pytest.raises(UserError, match=r"no directory for temporary files can be written .* make /tmp writable"):
        check_temporary()


def test_a_place_where_ray_could_not_keep_its_sockets_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "RAY_FILES", "/proc")  # read-only, for root too
    with pytest.raises(UserError, match=r"/proc cannot be written .*; make it a directory that is writable"):
        files_of_a_cluster()
