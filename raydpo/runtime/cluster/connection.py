"""Reaching Ray: attach to a cluster where there is one, else start one that lives as long as the job."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc  # a part of ray[default]
import ray
import ray.data
from ray.exceptions import AuthenticationError, RpcError

from raydpo.config.schema import Cluster
from raydpo.errors import UserError
from raydpo.runtime.cluster.ray_private import LOGGERS_OF_ERRORS, GcsClient, init_grpc_channel, read_ray_address
from raydpo.storage.files import storage_refusal
from raydpo.track.say import MARKED, say
from raydpo.workspace.temporary import files_of_a_cluster

CONNECT_S = 5.0

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Seconds from SIGTERM to SIGKILL when a submitted job is stopped. Ray reads it where the job runs; else they are 3."""

_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray gives it to the process of a submitted job

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a notice may leave seconds; Ray would look every five
    "RAY_COLOR_PREFIX": "0",  # of the lines that Ray forwards, which go to a file
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would show every printed line twice
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@contextmanager
def connect(cluster: Cluster) -> Iterator[None]:
    """Be connected inside the block. A connection that stands already is used and left as it is.

    Attaches to RAY_ADDRESS, which `ray job submit` sets, or to the cluster that `ray start` runs on this machine.
    Otherwise starts a local one with its own temporary directory, and removes both at the end.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    env = {name: os.environ[name] for name in (*_ENVIRONMENT, MARKED) if name in os.environ} | cluster.env
    temporary = None
    try:
        with _sigterm_unchanged():
            if not _attach(env):
                temporary = files_of_a_cluster()
                _start(cluster, env, temporary)
        quieten_ray_data()
        yield
    finally:
        ray.shutdown()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _sigterm_unchanged() -> Iterator[None]:
    """ray.init puts a handler of its own in place of the job's, which knows how to report a SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def quieten_ray_data() -> None:
    """Our own progress lines say what Ray Data's bars and reports would say again."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for name in LOGGERS_OF_ERRORS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _attach(env: dict[str, str]) -> bool:
    # Not "auto": that takes any cluster on this machine, such as the private one of another job, which ends with it.
    named = os.environ.get("RAY_ADDRESS")
    address = named or read_ray_address()
    if named:
        check_address(named)
    elif not address or _nobody_at(address):
        return False
    # Ray Train's helpers ask the state API, which would fail where a machine has more than one cluster.
    runtime_env = {"env_vars": env | {"RAY_ADDRESS": address}}
    if is_killed_at_once(os.environ):
        say(
            "stopping this job kills it after 3 seconds, before it can commit the step that it is in. Submit it with "
            f"`raydpo submit`, or set {STOP_WAIT} in the env_vars of its runtime environment."
        )
    ray.init(address=address, runtime_env=runtime_env, logging_level="WARNING")
    return True


def is_killed_at_once(environment: Mapping[str, str]) -> bool:
    """Whether these are the variables of a submitted job that has next to no time to end when it is stopped."""
    return _SUBMITTED in environment and STOP_WAIT not in environment


def check_address(address: str) -> None:
    """Raise UserError where no head of a Ray cluster answers at host:port, or not to this token.

    Ray itself would try for minutes in one case, and in the other for 20 seconds without a word of the token.
    """
    if why := _nobody_at(address) or _no_head_at(address):
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {why}. Start one and give its head as host:port (the "
            "port of `ray start --head`, 6379 where none was asked for, and not that of its dashboard), or unset "
            "RAY_ADDRESS to run on a local cluster of this job's own."
        )


def _no_head_at(address: str) -> str | None:
    """Why what answers there is no head; None where it is one. Raises UserError where it does not take the token."""
    try:
        GcsClient(address=address)
    except AuthenticationError:
        raise wrong_token(address) from None
    except RpcError as error:
        return f"what listens there does not answer as Ray does ({error})"
    return None


def wrong_token(address: str) -> UserError:
    """What to say where a cluster answers but does not take the token, or misses one."""
    return UserError(
        f"the cluster at {address} does not take this token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the "
        "file that holds its token."
    )


def _nobody_at(address: str) -> str | None:
    """Why there is no Ray at host:port; None where there is. A head speaks gRPC, which few other servers do."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        return str(error)
    with init_grpc_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_S)
        except grpc.FutureTimeoutError:
            return "what listens there is no Ray"
    return None


def _start(cluster: Cluster, env: dict[str, str], temporary: str) -> None:
    os.environ.update(env)  # inherited by all of Ray's processes; for a runtime_env they would be started twice
    ray.init(
        address="local",
        num_cpus=cluster.num_cpus,
        object_store_memory=None if cluster.object_store_gib is None else int(cluster.object_store_gib * 2**30),
        include_dashboard=True,  # Ray Train asks it whether its controller lives
        logging_level="WARNING",
        _temp_dir=temporary,
    )


@contextmanager
def user_errors() -> Iterator[None]:
    """What some worker tells the user leaves the block as a UserError, not as the parcel Ray wraps it in."""
    try:
        yield
    except Exception as error:
        if found := _user_error(error):
            raise found from None
        raise


def _user_error(error: BaseException | None) -> UserError | None:
    while error is not None:
        if found := error if type(error) is UserError else storage_refusal(error):
            return found
        error = getattr(error, "cause", None) or error.__cause__  # RayTaskError keeps the original in `cause`
    return None
