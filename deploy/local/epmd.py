"""Erlang's port mapper, by which RabbitMQ nodes and rabbitmqctl find each other: a private one."""

import socket
from pathlib import Path

from deploy.local import process as processes
from deploy.local import programs
from deploy.local.process import Process, spawn
from deploy.local.server import PortTaken

_SECONDS = 10.0


def start_epmd(folder: Path, *, port: int, die_with_parent: bool) -> Process:
    """Start epmd on 127.0.0.1:`port`; returns when it answers. Raises PortTaken."""
    process = spawn(
        [programs.rabbitmq().epmd, "-port", str(port), "-address", "127.0.0.1"],
        log=folder / "epmd.log",
        environ={"HOME": str(folder)},
        die_with_parent=die_with_parent,
    )
    processes.wait_until(lambda: _answers(port) or not process.alive(), _SECONDS)
    if not (process.alive() and _answers(port)):
        processes.end([process])
        raise PortTaken(f"epmd did not start on port {port}; see {folder / 'epmd.log'}")
    return process


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
