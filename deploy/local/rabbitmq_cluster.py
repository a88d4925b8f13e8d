"""A private RabbitMQ cluster on this machine: nodes of `rabbitmq` that share one epmd and one cookie."""

import json
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local import process as processes
from deploy.local.epmd import start_epmd
from deploy.local.ports import free_port
from deploy.local.process import Process
from deploy.local.rabbitmq import PrivateRabbitMQ, Seat
from deploy.local.server import (
    STATE_FILE,
    PortTaken,
    ServerDidNotStart,
    earlier_settings,
    read_state,
    write_state,
)


class PrivateRabbitMQCluster:
    """Nodes that replicate quorum queues. Kill, suspend and restart them one by one through `nodes`.

    As a context manager: leaving the block stops it *and removes its data*.
    """

    def __init__(self, folder: Path, nodes: list[PrivateRabbitMQ], epmd: Process | None) -> None:
        self.folder = folder
        self.nodes = nodes
        self._epmd = epmd

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        size: int = 3,
        plugins: Sequence[str] = (),
        config: str = "",
        die_with_parent: bool = True,
    ) -> Self:
        """Start a new cluster of `size` nodes in an unused `folder`; returns when all have joined.

        `plugins` and `config` are for each node, as in `PrivateRabbitMQ.start`. Raises ServerDidNotStart.
        """
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if earlier_settings(folder):
            raise ServerDidNotStart(f"{folder} holds a cluster already: attach and restart it, or discard it")
        epmd, port = _epmd_on_a_free_port(folder, die_with_parent=die_with_parent)
        cluster = cls(folder, [], epmd)
        names = [f"node{number}@localhost" for number in range(1, size + 1)]
        cookie = secrets.token_hex(16)

        def start_node(name: str) -> PrivateRabbitMQ:
            seat = Seat(names=tuple(dict.fromkeys([names[0], name])), cookie=cookie, epmd_port=port)
            return PrivateRabbitMQ.start(
                folder / name.partition("@")[0],
                plugins=plugins,
                config=config,
                die_with_parent=die_with_parent,
                cluster=seat,
            )

        cluster._bring_up(start_node, names)
        return cluster

    @classmethod
    def attach(cls, folder: Path) -> Self:
        """The cluster that was started in `folder`, by whichever process. Raises NothingStarted."""
        folder = folder.absolute()
        epmd, settings = read_state(folder)
        nodes = [PrivateRabbitMQ.attach(folder / name.partition("@")[0]) for name in settings["names"]]
        return cls(folder, nodes, epmd)

    @property
    def urls(self) -> list[str]:
        """The AMQP addresses of the nodes."""
        return [node.url for node in self.nodes]

    def pids(self) -> list[int]:
        """The pids of all the cluster's processes now, its epmd included."""
        epmd = [self._epmd.pid] if self._epmd is not None and self._epmd.alive() else []
        return [pid for node in self.nodes for pid in node.pids()] + epmd

    def stop(self) -> None:
        """Stop all nodes in good order, the first one last, and their epmd; keeps the data."""
        for node in reversed(self.nodes):
            node.stop()
        self._end_epmd()
        self._save()

    def restart(self) -> None:
        """Stop all and start them on the same data and ports: at once, since each may wait for the others."""
        self.stop()
        settings = self.nodes[0].settings
        self._epmd = start_epmd(self.folder, port=settings.epmd_port, die_with_parent=settings.die_with_parent)
        self._save()
        with ThreadPoolExecutor(len(self.nodes)) as together:
            list(together.map(PrivateRabbitMQ.restart, self.nodes))

    def discard(self) -> None:
        """Kill it, since its data is not wanted any more, and remove that; the logs stay."""
        for node in self.nodes:
            node.discard()
        self._end_epmd()
        (self.folder / STATE_FILE).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _bring_up(self, start_node: Callable[[str], PrivateRabbitMQ], names: Sequence[str]) -> None:
        """The first node alone, then the others together, which join it."""
        whole = False
        try:
            self.nodes.append(start_node(names[0]))
            self._save()
            with ThreadPoolExecutor(len(names)) as together:
                for started in [together.submit(start_node, name) for name in names[1:]]:
                    self.nodes.append(started.result())
                    self._save()
            running = json.loads(self.nodes[0].ctl("cluster_status", "--formatter=json"))["running_nodes"]
            whole = sorted(running) == sorted(names)
            if not whole:
                raise ServerDidNotStart(f"of {', '.join(names)} only {', '.join(running)} have joined")
        finally:
            if not whole:
                self.discard()

    def _end_epmd(self) -> None:
        if self._epmd is not None:
            processes.end([self._epmd])
        self._epmd = None

    def _save(self) -> None:
        write_state(self.folder, process=self._epmd, settings={"names": [node.name for node in self.nodes]})


def _epmd_on_a_free_port(folder: Path, *, die_with_parent: bool) -> tuple[Process, int]:
    try:
        port = free_port()
        return start_epmd(folder, port=port, die_with_parent=die_with_parent), port
    except PortTaken:
        port = free_port()
        return start_epmd(folder, port=port, die_with_parent=die_with_parent), port
