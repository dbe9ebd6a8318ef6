"""One API server for all tests of this folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.kube.play import Play
from tests.kube.server import ApiServer, binaries

Start = Callable[..., Play]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    apiserver, etcd = binaries()
    running = ApiServer(folder=tmp_path_factory.mktemp("kube"), apiserver=apiserver, etcd=etcd)
    try:
        running.start()
        running.see_nodes("seer")
        yield running
    finally:
        running.stop()


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
