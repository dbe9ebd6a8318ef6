"""Namespaces and plays on the API server of the session (`tests/conftest.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.kube.play import Play
from tests.kube.server import ApiServer

Start = Callable[..., Play]


_numbers = itertools.count(1)


@pytest.fixture
def namespace(server: ApiServer) -> str:
    """A namespace of the test's own."""
    return server.namespace(f"test-{next(_numbers)}")


@pytest.fixture
def start(server: ApiServer, namespace: str) -> Iterator[Start]:
    plays: list[Play] = []

    def make(**settings: object) -> Play:
        plays.append(Play(server, namespace, **settings))  # type: ignore[arg-type]
        return plays[-1]

    yield make
    for play in plays:
        play.close()
