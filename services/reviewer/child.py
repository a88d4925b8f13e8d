"""The inside of a child process: answers the calls that its parent, `reviewer.children`, sends.

Calls and answers are pickled, each behind its length; before it begins with a call, a child says so. This module
imports nothing of the service around it, so that a child starts fast and stays small.
"""

import contextlib
import ctypes
import os
import pickle
import queue
import resource
import signal
import socket
import struct
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from imprimatur.errors import AttemptError

LENGTH = struct.Struct(">Q")
#: What a child sends when it begins with a call: one that dies before has not seen it.
BEGUN = b"\x06"
_PR_SET_PDEATHSIG = 1
#: The highest there is: when memory runs out, the kernel ends a child rather than the service that started it.
_OOM_SCORE_ADJ = "1000"
#: Behind the service that started it, whose leases must be renewed however much children have to compute.
_NICENESS = 5


@dataclass(frozen=True, kw_only=True)
class Done:
    """The function returned."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The function raised an AttemptError. Exceptions with keyword-only arguments do not pickle; their parts do."""

    kind: type[AttemptError]
    arguments: tuple[object, ...]
    attributes: dict[str, object]

    def error(self) -> AttemptError:
        """The same error."""
        error = self.kind.__new__(self.kind, *self.arguments)
        error.__dict__.update(self.attributes)
        return error


@dataclass(frozen=True, kw_only=True)
class Broke:
    """The function raised something else."""

    trace: str


Answer = Done | Refused | Broke


def bound_memory(most_bytes: int) -> None:
    """Allow this process, and each that it starts, so much, or what it is allowed already where that is less."""
    _, allowed = resource.getrlimit(resource.RLIMIT_DATA)
    most = most_bytes if allowed == resource.RLIM_INFINITY else min(most_bytes, allowed)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def serve(line: int, parent: int) -> NoReturn:
    """The life of a child: answer the calls that come over file descriptor `line`, end when the parent ends.

    It leaves SIGINT and SIGTERM, which a terminal or supervisor sends to the whole group, to its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _go_first_when_memory_runs_out()
    if os.getppid() != parent:
        os._exit(1)
    connection = socket.socket(fileno=line)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, requests), daemon=True).start()
    while True:
        request = requests.get()
        connection.sendall(BEGUN)
        answer = _answered(request)
        connection.sendall(LENGTH.pack(len(answer)) + answer)


def _go_first_when_memory_runs_out() -> None:
    with contextlib.suppress(OSError):  # where the surroundings forbid it, the kernel chooses by size alone
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ, encoding="ascii")


def _listen(connection: socket.socket, requests: "queue.SimpleQueue[bytes]") -> None:
    """Pass requests on; a thread of its own, so that the parent's end is seen in the middle of a call too."""
    with connection.makefile("rb") as stream:
        while len(head := stream.read(LENGTH.size)) == LENGTH.size:
            requests.put(stream.read(LENGTH.unpack(head)[0]))
    os._exit(0)


def _answered(request: bytes) -> bytes:
    answer: Answer
    try:
        function, args = pickle.loads(request)  # noqa: S301 (from our own parent)
        return pickle.dumps(Done(value=function(*args)), pickle.HIGHEST_PROTOCOL)
    except AttemptError as error:
        answer = Refused(kind=type(error), arguments=error.args, attributes=dict(vars(error)))
    except Exception:  # noqa: BLE001 (the outermost edge: the parent logs the trace)
        answer = Broke(trace=traceback.format_exc())
    try:
        return pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 (an AttemptError of which something does not pickle)
        return pickle.dumps(Broke(trace=traceback.format_exc()))
