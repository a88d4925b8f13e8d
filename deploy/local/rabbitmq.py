"""A private RabbitMQ node: its own epmd, cookie, data and ports on 127.0.0.1, all of its files in one folder.

Works with RabbitMQ 3.10 (Debian 12) and 4.x. A cluster of such nodes is in `rabbitmq_cluster`.
"""

import os
import secrets
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from deploy.local import process as processes
from deploy.local import programs
from deploy.local.epmd import start_epmd
from deploy.local.ports import free_port
from deploy.local.process import Process, spawn
from deploy.local.server import PrivateServer, earlier_settings, read_state, remove_tree, require_free

MANAGEMENT = "rabbitmq_management"
PROMETHEUS = "rabbitmq_prometheus"
_CTL_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A node's place in a cluster, given by `PrivateRabbitMQCluster`."""

    #: The node to join, when there is one, and, last, this node; each `name@localhost`.
    names: tuple[str, ...]
    cookie: str
    epmd_port: int


@dataclass(frozen=True, kw_only=True)
class RabbitMQSettings:
    """What one private node was started with."""

    name: str
    cookie: str
    port: int
    distribution_port: int
    management_port: int
    prometheus_port: int
    epmd_port: int
    #: False in a cluster, whose nodes share the cluster's.
    own_epmd: bool
    plugins: Sequence[str]
    #: Further lines of rabbitmq.conf.
    config: str
    die_with_parent: bool


class PrivateRabbitMQ(PrivateServer):
    """One RabbitMQ node. Start it with `start`, find it again with `attach`."""

    def __init__(
        self,
        folder: Path,
        settings: RabbitMQSettings,
        process: Process | None = None,
        epmd: Process | None = None,
    ) -> None:
        super().__init__(folder, process)
        self.settings = settings
        self._epmd = epmd
        self._programs = programs.rabbitmq()

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        port: int | None = None,
        plugins: Sequence[str] = (),
        config: str = "",
        die_with_parent: bool = True,
        cluster: Seat | None = None,
    ) -> Self:
        """Start a node with all its files in `folder`; returns when it accepts AMQP connections.

        A folder that has been used before keeps its data. Without `port` the folder's earlier one, or a free one, is
        chosen; all other ports are free ones. `plugins` may be MANAGEMENT and PROMETHEUS, `config` is added to
        rabbitmq.conf, `cluster` is for `PrivateRabbitMQCluster`. Raises ServerDidNotStart, programs.ProgramMissing.
        """
        require_free(port)
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        before = earlier_settings(folder)
        cookie = before.get("cookie") or secrets.token_hex(16)
        if before.get("epmd"):
            # It outlived a node that was killed and not started again.
            processes.end([Process(**before["epmd"])])

        def settings() -> RabbitMQSettings:
            return RabbitMQSettings(
                name=cluster.names[-1] if cluster else "private@localhost",
                cookie=cluster.cookie if cluster else cookie,
                port=port or free_port(before.pop("port", None)),
                distribution_port=free_port(),
                management_port=free_port(),
                prometheus_port=free_port(before.pop("prometheus_port", None)),
                epmd_port=cluster.epmd_port if cluster else free_port(),
                own_epmd=cluster is None,
                plugins=list(plugins),
                config=config + (_peers(cluster.names) if cluster else ""),
                die_with_parent=die_with_parent,
            )

        return cls._begin(lambda: cls(folder, settings()))

    @classmethod
    def attach(cls, folder: Path) -> Self:
        """The node that was started in `folder`, by whichever process; it may have ended since.

        Raises NothingStarted.
        """
        folder = folder.absolute()
        process, settings = read_state(folder)
        epmd = settings.pop("epmd")
        return cls(folder, RabbitMQSettings(**settings), process, Process(**epmd) if epmd else None)

    @property
    def name(self) -> str:
        """The Erlang name of the node."""
        return self.settings.name

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1."""
        return self.settings.port

    @property
    def url(self) -> str:
        """The AMQP address, for aio-pika."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def management_url(self) -> str:
        """The address of the management API and page (guest, guest), with the plugin MANAGEMENT."""
        return f"http://127.0.0.1:{self.settings.management_port}"

    @property
    def metrics_url(self) -> str:
        """The address Prometheus reads, with the plugin PROMETHEUS."""
        return f"http://127.0.0.1:{self.settings.prometheus_port}/metrics"

    def pids(self) -> list[int]:
        """The pids of the node's processes now, its epmd included."""
        epmd = [self._epmd.pid] if self._epmd is not None and self._epmd.alive() else []
        return super().pids() + epmd

    def ctl(self, *words: str, timeout_seconds: float = _CTL_SECONDS) -> str:
        """Run `rabbitmqctl` on this node; return what it prints.

        Raises RuntimeError when it fails, subprocess.TimeoutExpired when it takes too long.
        """
        done = subprocess.run(
            [self._programs.bin / "rabbitmqctl", "--quiet", "--node", self.name, *words],
            env=self._environ(),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(words)} failed: {done.stdout.strip()} {done.stderr.strip()}")
        return done.stdout

    def discard(self) -> None:
        """Kill it, since its data is not wanted any more, and remove that; the log stays."""
        self.kill()
        super().discard()

    def _launch(self) -> Process:
        if self.settings.own_epmd and not (self._epmd and self._epmd.alive()):
            self._epmd = start_epmd(
                self.folder, port=self.settings.epmd_port, die_with_parent=self.settings.die_with_parent
            )
        self._write_files()
        return spawn(
            [self._programs.bin / "rabbitmq-server"],
            log=self.log,
            environ=self._environ(),
            die_with_parent=self.settings.die_with_parent,
        )

    def _ready(self) -> bool:
        """Whether it answers the AMQP greeting with Connection.Start, a method frame (type 1)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def _end_helpers(self) -> None:
        if self._epmd is not None:
            processes.end([self._epmd])
        self._epmd = None

    def _settings(self) -> Mapping[str, Any]:
        return {**asdict(self.settings), "epmd": asdict(self._epmd) if self._epmd else None}

    def _remove_data(self) -> None:
        for part in ("data", "home", "config"):
            remove_tree(self.folder / part)

    def _write_files(self) -> None:
        for part in ("data", "home", "config"):
            (self.folder / part).mkdir(mode=0o700, exist_ok=True)
        cookie = self.folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self.settings.cookie)
            cookie.chmod(0o400)
        config = self.folder / "config"
        (config / "enabled_plugins").write_text(f"[{','.join(self.settings.plugins)}].\n")
        (config / "rabbitmq-env.conf").write_text("")
        # Without a configuration file a node starts sooner: it need not read every plugin's schema.
        (config / "rabbitmq.conf").unlink(missing_ok=True)
        if lines := [*self._config_lines(), *self.settings.config.splitlines()]:
            (config / "rabbitmq.conf").write_text("\n".join([*lines, ""]))

    def _config_lines(self) -> list[str]:
        lines: list[str] = []
        if MANAGEMENT in self.settings.plugins:
            lines += [
                "management.tcp.ip = 127.0.0.1",
                f"management.tcp.port = {self.settings.management_port}",
            ]
        if PROMETHEUS in self.settings.plugins:
            lines += [
                "prometheus.tcp.ip = 127.0.0.1",
                f"prometheus.tcp.port = {self.settings.prometheus_port}",
            ]
        return lines

    def _environ(self) -> dict[str, str]:
        """For the server and for rabbitmqctl: nothing of it comes from a system-wide RabbitMQ."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))
        }
        config, data = self.folder / "config", self.folder / "data"
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return inherited | {
            "PATH": os.pathsep.join([str(self._programs.erl.parent), os.environ.get("PATH", os.defpath)]),
            "HOME": str(self.folder / "home"),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.settings.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Else a node that lost its epmd would start another, which nobody ends.
            "ERL_FLAGS": "-start_epmd false",
            "ERL_CRASH_DUMP": str(self.folder / "erl_crash.dump"),
            # Makes the start script become the Erlang machine, not wait for it: one process to signal.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_SERVER_START_ARGS": "+B i",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.settings.distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            # Any free port for rabbitmqctl's own side; its default is a handful shared by the whole machine.
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            "RABBITMQ_MNESIA_BASE": str(data),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG": "info",
            "RABBITMQ_PID_FILE": str(data / "rabbitmq.pid"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(data / "feature_flags"),
            "RABBITMQ_CONFIG_FILE": str(config / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(config / "conf.d" / "*.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(config / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(config / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(config / "generated"),
            "RABBITMQ_CONF_ENV_FILE": str(config / "rabbitmq-env.conf"),
        }


def _peers(names: Sequence[str]) -> str:
    """Lines of rabbitmq.conf that make a new node join the cluster of the first of `names` that runs."""
    nodes = [f"cluster_formation.classic_config.nodes.{index} = {name}" for index, name in enumerate(names, 1)]
    return "\n".join(["", "cluster_formation.peer_discovery_backend = classic_config", *nodes])
