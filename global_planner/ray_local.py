"""[I/O] A Ray of our own on loopback, for a system that runs on one machine until it is stopped."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from global_planner.ray_ward import Ward
from pool_planner.actor import NAMESPACE


class LocalRay:
    """A Ray of our own on loopback, in `folder`, which `ray_environment.prepare` made before Ray was imported."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ward: Ward | None = None

    def start(self) -> None:
        """Start it and connect. Signals stay with those who handled them before: Ray takes SIGTERM over when it starts, and
        would end this process with its own status and a stack trace."""
        self._ward = Ward(self._folder)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._init()
        except SystemExit:  # Ray's answer to a SIGTERM in between: hand it on to whom it was meant for
            _restore(handlers)
            signal.raise_signal(signal.SIGTERM)
            raise
        _restore(handlers)

    def _init(self) -> None:
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self._folder),
            namespace=NAMESPACE,
            include_dashboard=False,
            num_cpus=2,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def stop(self) -> None:
        """End it and remove its folder; harmless when it never started."""
        ray.shutdown()
        if self._ward is not None:
            self._ward.end()


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, action in handlers.items():
        signal.signal(number, action)
