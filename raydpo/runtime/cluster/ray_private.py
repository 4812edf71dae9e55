"""Names that Ray keeps to itself and that we cannot do without, in one place: they move between versions."""

from __future__ import annotations

from ray._private.grpc_utils import init_grpc_channel  # with the cluster's TLS and token, where it has them
from ray._private.utils import read_ray_address  # what `ray start` leaves behind
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled; it says at once that a token is wrong

__all__ = ["LOGGERS_OF_ERRORS", "GcsClient", "init_grpc_channel", "read_ray_address"]

LOGGERS_OF_ERRORS = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
"""Of Ray Data. What they log of an error is raised as well."""
