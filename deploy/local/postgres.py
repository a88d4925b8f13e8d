"""A private PostgreSQL: its own data directory, one free port on 127.0.0.1, UTF8 and the C locale.

Anyone on this machine may connect as superuser without a password (trust): for throw-away data only.
"""

import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from deploy.local import programs
from deploy.local.ports import free_port
from deploy.local.process import Process, privileges, spawn
from deploy.local.server import (
    PrivateServer,
    ServerDidNotStart,
    earlier_settings,
    read_state,
    remove_tree,
    require_free,
)

#: The account the server runs under when we are root, which it refuses to run as.
SERVER_USER = "postgres"
_CLIENT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class PostgresSettings:
    """What one private PostgreSQL was started with."""

    data: str
    port: int
    #: False: commits may be lost when the *machine* dies. A killed server loses none: they are in the system's
    #: cache, which is why synchronous_commit stays on.
    fsync: bool
    max_connections: int
    die_with_parent: bool
    #: Further `postgres -c name=value`.
    options: Mapping[str, str]


class PrivatePostgres(PrivateServer):
    """One PostgreSQL server. Start it with `start`, find it again with `attach`."""

    #: "Fast": SIGTERM would wait for the clients to leave.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(self, folder: Path, settings: PostgresSettings, process: Process | None = None) -> None:
        super().__init__(folder, process)
        self.settings = settings
        self._programs = programs.postgres()

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        port: int | None = None,
        fsync: bool = True,
        max_connections: int = 100,
        die_with_parent: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a server that keeps its state and log in `folder`; returns when it accepts connections.

        A folder that has been used before keeps its data. Without `port` the folder's earlier one, or a free one,
        is chosen. `options` are
        further settings of postgresql.conf. As root the data lies in a folder of its own under the system's
        temporary folder, since the server's account may not reach `folder`.
        Raises ServerDidNotStart, programs.ProgramMissing.
        """
        require_free(port)
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        earlier = earlier_settings(folder)
        data = earlier.get("data")
        if data is None or not Path(data).exists():
            data = str(_new_data_directory(folder, lasting=not die_with_parent))

        def settings() -> PostgresSettings:
            return PostgresSettings(
                data=data,
                port=port or free_port(earlier.pop("port", None)),
                fsync=fsync,
                max_connections=max_connections,
                die_with_parent=die_with_parent,
                options=dict(options or {}),
            )

        return cls._begin(lambda: cls(folder, settings()))

    @classmethod
    def attach(cls, folder: Path) -> Self:
        """The server that was started in `folder`, by whichever process; it may have ended since.

        Raises NothingStarted.
        """
        process, settings = read_state(folder.absolute())
        return cls(folder.absolute(), PostgresSettings(**settings), process)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self.settings.port

    @property
    def dsn(self) -> str:
        """The address of the database `postgres`, which always exists."""
        return self.url("postgres")

    def url(self, database: str) -> str:
        """The address of `database`, for asyncpg or psql."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Create an empty database; return its address. Raises RuntimeError when it exists."""
        self._client("createdb", "--template=template0", name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected to it; do nothing when it does not exist."""
        self._client("dropdb", "--if-exists", "--force", name)

    def _client(self, program: str, *words: str) -> None:
        where = ["--host=127.0.0.1", f"--port={self.port}", "--username=postgres"]
        command = [str(self._programs.bin / program), *where, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CLIENT_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(words)} failed: {done.stderr.strip()}")

    def _init_data(self) -> None:
        if (Path(self.settings.data) / "PG_VERSION").exists():
            return
        command = [
            *privileges(_server_user()),
            str(self._programs.bin / "initdb"),
            f"--pgdata={self.settings.data}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            *([] if self.settings.fsync else ["--no-sync"]),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", timeout=_CLIENT_SECONDS * 2, check=False
        )
        if done.returncode:
            raise ServerDidNotStart(f"initdb failed in {self.settings.data}: {done.stdout}{done.stderr}")

    def _launch(self) -> Process:
        self._init_data()
        switch = "on" if self.settings.fsync else "off"
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(self.settings.max_connections),
            "fsync": switch,
            "full_page_writes": switch,
            **self.settings.options,
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return spawn(
            [self._programs.bin / "postgres", "-D", self.settings.data, *words],
            log=self.log,
            environ={name: value for name, value in os.environ.items() if not name.startswith("PG")},
            user=_server_user(),
            die_with_parent=self.settings.die_with_parent,
        )

    def _ready(self) -> bool:
        """Whether the server itself has noted in its lock file that it accepts connections."""
        try:
            lines = (Path(self.settings.data) / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # Line 1 is the pid, line 8 the status: what `pg_ctl start` waits for, too.
        ours = self.process is not None and lines[:1] == [str(self.process.pid)]
        return ours and lines[7:8] != [] and lines[7].strip() == "ready"

    def _settings(self) -> Mapping[str, Any]:
        return asdict(self.settings)

    def _remove_data(self) -> None:
        remove_tree(Path(self.settings.data))


def _server_user() -> str | None:
    """The account to change to; None when we are not root and run the server ourselves."""
    return SERVER_USER if os.geteuid() == 0 else None


def _new_data_directory(folder: Path, *, lasting: bool) -> Path:
    user = _server_user()
    if user is None:
        data = folder / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        return data
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise ServerDidNotStart(
            f"PostgreSQL does not run as root, and there is no account {user!r} to run it under: "
            f"`useradd --system {user}`, or start it as another user than root"
        ) from None
    # What outlives its starter shall outlive a restart of the machine, too.
    data = Path(tempfile.mkdtemp(prefix="private-postgres-", dir="/var/tmp" if lasting else None))
    os.chown(data, account.pw_uid, account.pw_gid)
    return data
