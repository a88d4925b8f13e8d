"""Free TCP ports on 127.0.0.1.

They are drawn from below the range the system takes client ports from. A port out of that range can be taken
by any outgoing connection while its server is down; and a client that keeps trying to reach a dead local
server there can even connect to itself, and so keep the server from coming back.
"""

import random
import socket

FIRST_PORT = 15_000
#: Linux draws client ports from 32768 up, macOS from 49152 up.
LAST_PORT = 32_000

_given: set[int] = set()
_dice = random.SystemRandom()


def free_port(preferred: int | None = None) -> int:
    """A port nobody listens on now: the preferred one, or one that no other caller in this process was given.

    Another process may still take it before its server does: whoever starts a server tries once more.
    """
    if preferred is not None and is_free(preferred):
        _given.add(preferred)
        return preferred
    for _ in range(1000):
        port = _dice.randint(FIRST_PORT, LAST_PORT)
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    raise OSError(f"no free port on 127.0.0.1 between {FIRST_PORT} and {LAST_PORT}")


def is_free(port: int) -> bool:
    """Whether a server can bind 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier server that linger (TIME_WAIT) do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
