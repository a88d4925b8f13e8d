"""Processes for end-to-end tests, ended after the test whatever became of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import stack
from tests.e2e.processes import Child, Embedded, Receiver, Trio

Serve = Callable[..., Embedded]
Receive = Callable[[str], Receiver]


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """What is put in here is ended after the test."""
    started: list[Child] = []
    yield started
    for child in reversed(started):
        child.discard()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """An `imprimatur serve` for all tests of a module that leave it running."""
    server = Embedded(tmp_path_factory.mktemp("embedded") / "data")
    yield server
    server.discard()


@pytest.fixture
def serve(children: list[Child], tmp_path: Path) -> Serve:
    """Starts `imprimatur serve`, always on the same folder."""

    def start(*words: str) -> Embedded:
        server = Embedded(tmp_path / "data", *words)
        children.append(server)
        return server

    return start


@pytest.fixture
def receive(children: list[Child], tmp_path: Path) -> Receive:
    """Starts a webhook receiver that knows this secret."""

    def start(secret: str) -> Receiver:
        receiver = Receiver(tmp_path, secret)
        children.append(receiver)
        return receiver

    return start


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Gateway, reviewer and notifier as processes, with RabbitMQ and PostgreSQL of their own."""
    folder = tmp_path_factory.mktemp("stack")
    try:
        trio = Trio(stack.start(folder, die_with_parent=True))
        yield trio
        trio.stop()
    finally:
        stack.stop(folder)
