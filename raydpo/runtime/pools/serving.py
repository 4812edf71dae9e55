"""A model that the run serves itself for a judge: vLLM's server on a node of the cluster, while a block runs."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from raydpo.config.schema import AskedJudge
from raydpo.errors import UserError
from raydpo.reward.address import Address
from raydpo.rollout.server import NAME, STOP_S, Served, Server
from raydpo.runtime.pools.rewards import POLL_S, SAY_EVERY_S, last_line
from raydpo.track.say import say


class _ServerActor:
    """Holds the place of the server in the cluster, and the server."""

    def __init__(self, served: Served, api_key: str, log: str) -> None:
        self._server = Server(served, ray.util.get_node_ip_address(), api_key, Path(log))

    def base_url(self) -> str:
        """Where the server is reached, once it answers."""
        self._server.wait_until_up()
        return self._server.base_url

    def stop(self) -> None:
        """End the server."""
        self._server.stop()


@contextmanager
def served_judge(asked: AskedJudge, identity: str, log: Path) -> Iterator[Address]:
    """Serve a judge's model for the length of the block. UserError with the server's own words where it does not start.

    identity: what its replies are kept under, as its address is another one each time.
    """
    assert asked.serve
    served = Served(
        model=asked.serve,
        max_model_len=asked.max_model_len,
        gpus=asked.gpus,
        threads=max(1, int(asked.cpus)),
        start_timeout=asked.start_timeout,
    )
    api_key = secrets.token_hex(16)  # for others on the network the server is no use
    actor = ray.remote(num_cpus=asked.cpus, num_gpus=asked.gpus)(_ServerActor).remote(served, api_key, str(log))
    try:
        yield Address(NAME, _waited_for(actor.base_url.remote(), served), api_key, identity)
    finally:
        try:
            ray.get(actor.stop.remote(), timeout=2 * STOP_S)
        except (GetTimeoutError, RayActorError):
            say(f"the server of {served.model} did not end when it was told to; it is killed", sys.stderr)
        ray.kill(actor)


def not_served(identity: str) -> Address:
    """The address of a judge that nobody has asked to start."""
    return Address(NAME, "", "", identity)


def _waited_for(pending: ray.ObjectRef, served: Served) -> str:
    began = said = time.monotonic()
    while not ray.wait([pending], timeout=POLL_S)[0]:
        now = time.monotonic()
        if now - said >= SAY_EVERY_S:
            said = now
            say(f"the server of {served.model} has been starting for {now - began:.0f} s; waiting for it", sys.stderr)
    try:
        base_url: str = ray.get(pending)
    except RayActorError as error:
        raise UserError(f"the server of {served.model} was lost while it started: {last_line(error)}.") from error
    return base_url
