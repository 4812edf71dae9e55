"""Names that Ray Train keeps to itself and that we cannot do without, in one place: they move between versions."""

from __future__ import annotations

import ray.train.v2._internal.util
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution import callback_manager
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState, RestartingState

__all__ = [
    "LOGGER_OF_CALLBACKS",
    "LOGGER_OF_WORKERS",
    "WAITING",
    "ControllerCallback",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "get_train_context",
]

WAITING = (InitializingState, RestartingState, ReschedulingState)
"""States of the controller in which no worker is there."""

LOGGER_OF_WORKERS = ray.train.v2._internal.util.__name__
"""Logs the traceback of an error that ends a worker."""

LOGGER_OF_CALLBACKS = callback_manager.__name__
"""Logs the traceback of an error that a callback raises in the controller."""
