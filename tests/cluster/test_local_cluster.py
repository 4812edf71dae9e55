"""The debugging cluster of cluster/local, run from a copy so that a cluster of the user's is left alone."""

from __future__ import annotations

import getpass
import json
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.local import copy_of_scripts, first_port, local_cluster, run

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent
DRIVER = """
import os, ray
ray.init(log_to_driver=False)
print("nodes", len(ray.nodes()), "cpus", ray.cluster_resources()["CPU"], "directory", os.path.basename(os.getcwd()))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell that has evaluated `up`: a head and one more raylet, 2 CPUs each."""
    with local_cluster(
        tmp_path_factory.mktemp("cluster"), "--raylets", "1", "--cpus", "2", port=first_port(20)
    ) as environment:
        yield environment


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    path = tmp_path / "driver.py"
    path.write_text(DRIVER)
    return path


def test_a_driver_attaches_and_sees_every_node(cluster: dict[str, str], driver: Path) -> None:
    answer = run(sys.executable, driver, env=cluster)
    assert "nodes 2 cpus 4.0" in answer.stdout, answer.stderr


def test_a_submitted_job_runs_in_a_copy_of_the_working_directory(cluster: dict[str, str], driver: Path) -> None:
    answer = run(BIN / "ray", "job", "submit", "--working-dir", driver.parent, "--", "python", "driver.py", env=cluster)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "nodes 2 cpus 4.0 directory _ray_pkg_" in answer.stdout


def test_without_the_token_nobody_gets_in(cluster: dict[str, str], driver: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    answer = run(sys.executable, driver, env=cluster | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    assert answer.returncode != 0
    assert "nodes" not in answer.stdout
    assert "AuthenticationError" in answer.stderr


def test_the_token_is_readable_by_its_owner_alone(cluster: dict[str, str]) -> None:
    assert Path(cluster["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600


def test_down_stops_what_up_and_add_started_and_nothing_else(
    cluster: dict[str, str], driver: Path, tmp_path: Path
) -> None:
    scripts, port = copy_of_scripts(tmp_path), first_port(40)
    assert run(scripts / "up", "--cpus", "1", "--port", str(port)).returncode == 0
    assert run(scripts / "add", "--cpus", "1").returncode == 0
    nodes = [
        psutil.Process(pid) for pid, _ in json.loads((scripts / ".state" / "cluster.json").read_text())["processes"]
    ]
    family = nodes + [child for node in nodes for child in node.children(recursive=True)]
    assert [process.name() for process in family].count("raylet") == 2

    assert run(scripts / "down").returncode == 0

    assert not [process for process in family if process.is_running()]
    assert not (scripts / ".state").exists()
    assert not (Path(tempfile.gettempdir()) / f"raydpo-{getpass.getuser()}-{port}").exists()
    # The other cluster, which `ray stop` would have stopped too, still answers.
    assert run(sys.executable, driver, env=cluster).returncode == 0


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    scripts = copy_of_scripts(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = run(scripts / "up", "--port", str(port))
    assert answer.returncode != 0
    assert f"port {port} cannot be used" in answer.stderr
    assert answer.stdout == ""
    assert not (scripts / ".state").exists()


@pytest.mark.parametrize("command", ["add", "down"])
def test_add_and_down_without_a_cluster_say_so(tmp_path: Path, command: str) -> None:
    answer = run(copy_of_scripts(tmp_path) / command)
    assert answer.returncode != 0
    assert "no cluster of this checkout is up" in answer.stderr
