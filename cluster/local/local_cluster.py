"""A debugging Ray cluster on loopback with token authentication.

`up` starts it, `add` gives it one more node, `down` stops it and nothing else.

Everything about the running cluster is in `.state/` beside this file: the token and cluster.json.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

STATE_DIR = Path(__file__).resolve().parent / ".state"
STATE_FILE = STATE_DIR / "cluster.json"
TOKEN_FILE = STATE_DIR / "token"
LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by the host's own address; the rest of 127.0.0.0/8 it leaves alone
START_SECONDS = 90  # for one node
STOP_SECONDS = 20  # before a process is killed
# A Unix socket's path has at most 107 bytes, and Ray adds /session_DATE_PID/sockets/plasma_store.N to its directory.
LONGEST_TEMP_DIR = 40


@dataclass(frozen=True)
class Ports:
    """Consecutive ports from one base; the agents' follow, one a node."""

    gcs: int
    raylets: int

    @property
    def client(self) -> int:
        """Ray Client, which raydpo does not use but Ray opens."""
        return self.gcs + 1

    @property
    def dashboard(self) -> int:
        """The dashboard and the jobs API."""
        return self.gcs + 2

    def agent(self, node: int) -> int:
        """The dashboard agent of a node; the head is node 0."""
        return self.gcs + 3 + node

    def all(self) -> range:
        """Every port that has to be free."""
        return range(self.gcs, self.agent(self.raylets) + 1)


@dataclass
class State:
    """What `down` has to know. A process is its pid and its start time, since pids are used again."""

    address: str
    temp_dir: str
    processes: list[tuple[int, float]] = field(default_factory=list)

    def save(self) -> None:
        """Write cluster.json."""
        STATE_FILE.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls) -> State:
        """Read cluster.json; exits where there is none."""
        if not STATE_FILE.exists():
            sys.exit(f"no cluster of this checkout is up: {STATE_FILE} does not exist.")
        return cls(**json.loads(STATE_FILE.read_text()))


def up(raylets: int, cpus: int | None, port: int) -> None:
    """Start the head and the extra raylets, and print the exports that lead to them."""
    if STATE_DIR.exists():
        sys.exit(f"a cluster is up, or was left behind, as {STATE_FILE} says; stop it with cluster/local/down.")
    ports = Ports(port, raylets)
    check_free(ports.all())
    temp_dir = Path(tempfile.gettempdir()) / f"raydpo-{getpass.getuser()}-{port}"
    make_directories(temp_dir)
    state = State(f"{LOOPBACK}:{port}", str(temp_dir))
    try:
        state.save()
        for node in range(raylets + 1):
            start_node(node, ports, cpus, state)
    except BaseException:
        down()
        raise
    print(f"dashboard: http://{LOOPBACK}:{ports.dashboard} (it asks for the token in {TOKEN_FILE})", file=sys.stderr)
    print(f"export RAY_ADDRESS={state.address} RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH='{TOKEN_FILE}'")


def add(cpus: int | None) -> None:
    """Start one more raylet, as when a node comes back."""
    state = State.load()
    node = len(state.processes)
    ports = Ports(int(state.address.rpartition(":")[2]), node)
    check_free([ports.agent(node)])
    start_node(node, ports, cpus, state)


def down() -> None:
    """Stop what was started here, with everything that it started in turn, and remove its directories."""
    state = State.load()
    nodes = [process for pid, created in state.processes if (process := alive(pid, created))]
    family = nodes + [child for node in nodes for child in node.children(recursive=True)]
    for node in reversed(nodes):  # the head last: raylets that outlive it wait for its return
        node.terminate()
    _, stubborn = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for process in stubborn:
        process.kill()
    shutil.rmtree(state.temp_dir, ignore_errors=True)
    shutil.rmtree(STATE_DIR)
    print(f"stopped {len(nodes)} of {len(state.processes)} nodes", file=sys.stderr)


def alive(pid: int, created: float) -> psutil.Process | None:
    """The process, unless it is gone or its pid belongs to another by now."""
    try:
        process = psutil.Process(pid)
        return process if process.create_time() == created else None
    except psutil.NoSuchProcess:
        return None


def check_free(ports: Iterable[int]) -> None:
    """Exit with a message that names the first port in use."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                sys.exit(f"port {port} cannot be used ({error.strerror}); set another first port with --port.")


def make_directories(temp_dir: Path) -> None:
    """Create both directories and the token, readable by this user alone."""
    if len(str(temp_dir / "0")) > LONGEST_TEMP_DIR:
        sys.exit(f"{temp_dir} is too long for Ray's sockets; set TMPDIR to a path such as /tmp.")
    try:
        temp_dir.mkdir(mode=0o700)
    except FileExistsError:
        sys.exit(f"{temp_dir} is left from another cluster; if none is running, remove it.")
    STATE_DIR.mkdir(mode=0o700)
    descriptor = os.open(TOKEN_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def start_node(node: int, ports: Ports, cpus: int | None, state: State) -> None:
    """Start one `ray start --block`, which takes its processes along when it ends, and wait until it is ready."""
    print(f"starting {'raylet ' + str(node) if node else 'the head'} ...", file=sys.stderr)
    temp_dir = Path(state.temp_dir) / str(node)  # nodes that share one delete each other's working directories
    temp_dir.mkdir()
    log = temp_dir / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ray_command(node, ports, cpus, str(temp_dir)),
            env=node_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in this terminal is not for the cluster
        )
    state.processes.append((process.pid, psutil.Process(process.pid).create_time()))
    state.save()
    deadline = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in (text := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"node {node} did not start:\n{text}")
        time.sleep(0.2)


def ray_command(node: int, ports: Ports, cpus: int | None, temp_dir: str) -> list[str]:
    """`ray start` of the head (node 0) or of a further raylet."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={LOOPBACK}", f"--dashboard-agent-listen-port={ports.agent(node)}"]
    command += [f"--temp-dir={temp_dir}"]
    if cpus is not None:
        command += [f"--num-cpus={cpus}"]
    if node:
        return [*command, f"--address={LOOPBACK}:{ports.gcs}"]
    command += ["--head", f"--port={ports.gcs}", f"--ray-client-server-port={ports.client}"]
    return [*command, f"--dashboard-host={LOOPBACK}", f"--dashboard-port={ports.dashboard}"]


def node_environment() -> dict[str, str]:
    """This environment with the token, without another cluster's address, and with our python first for jobs."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    return environment | {
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(TOKEN_FILE),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # there are no requests to drain, and `down` would wait for them
    }


def main(argv: Sequence[str]) -> None:
    """Parse `up [--raylets N] [--cpus N] [--port P]`, `add [--cpus N]` or `down`."""
    parser = argparse.ArgumentParser(prog="cluster/local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start a cluster and print the exports that lead to it")
    start.add_argument("--raylets", type=int, default=0, help="nodes beside the head, on this host too")
    start.add_argument("--port", type=int, default=6379, help="first of a few consecutive ports (default: 6379)")
    more = commands.add_parser("add", help="start one more node of the cluster that up started")
    for command in (start, more):
        command.add_argument("--cpus", type=int, help="CPUs that each node offers (default: this host's)")
    commands.add_parser("down", help="stop the cluster that up started")
    arguments = parser.parse_args(argv)
    if arguments.command == "up":
        up(arguments.raylets, arguments.cpus, arguments.port)
    elif arguments.command == "add":
        add(arguments.cpus)
    else:
        down()


if __name__ == "__main__":
    main(sys.argv[1:])
