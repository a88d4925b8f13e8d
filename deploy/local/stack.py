"""`make up` and `make down`: the three services as processes on this machine, with RabbitMQ, PostgreSQL and Prometheus
of their own, everything in one folder (.local; as root the database lies in /var/tmp). For trying and developing.
What is started there again has its earlier address, unless somebody else has taken it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from deploy.local import process as processes
from deploy.local.ports import free_port, is_free
from deploy.local.postgres import PrivatePostgres
from deploy.local.postgres_exporter import PrivatePostgresExporter
from deploy.local.process import Process
from deploy.local.programs import ProgramMissing
from deploy.local.prometheus import PrivatePrometheus, Target
from deploy.local.rabbitmq import PROMETHEUS, PrivateRabbitMQ
from deploy.local.server import (
    NothingStarted,
    PortTaken,
    ServerDidNotStart,
    names_a_taken_port,
    read_state,
    write_state,
)

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".local"
#: Where services listen when nobody says otherwise; what guides show.
_USUAL_PORTS = {"grpc": 7443, "gateway": 9101, "reviewer": 9102, "notifier": 9103}
#: Service and the variable that names its HTTP port.
SERVICES = {
    "gateway": "IMPRIMATUR_GATEWAY_HTTP_PORT",
    "reviewer": "IMPRIMATUR_REVIEWER_HTTP_PORT",
    "notifier": "IMPRIMATUR_NOTIFIER_HTTP_PORT",
}
#: What else runs, in the order in which it is stopped.
_SERVERS: Mapping[str, type[PrivatePrometheus | PrivatePostgresExporter | PrivateRabbitMQ | PrivatePostgres]] = {
    "prometheus": PrivatePrometheus,
    "postgresql-exporter": PrivatePostgresExporter,
    "rabbitmq": PrivateRabbitMQ,
    "postgresql": PrivatePostgres,
}
#: Without them everything works, unobserved.
_OBSERVERS = frozenset({"prometheus", "postgresql-exporter"})
_QUEUE_METRICS = {"family": ["queue_coarse_metrics", "queue_consumer_count"]}
_READY_SECONDS = 60.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What runs: how to reach it, and the environment that its services were given."""

    folder: Path
    environ: dict[str, str]
    target: str
    api_key: str
    webhook_secret: str
    ports: dict[str, int]
    rabbitmq_metrics: str  #: host:port


def start(folder: Path, *, die_with_parent: bool = False, usual_ports: bool = False) -> Stack:
    """Start everything in `folder`; returns when every service is ready.

    Args:
        usual_ports: take those of the guides where they are free, and not free ones everywhere.

    Raises ServerDidNotStart with the log's end, programs.ProgramMissing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    postgres = PrivatePostgres.start(folder / "postgresql", die_with_parent=die_with_parent)
    rabbitmq = PrivateRabbitMQ.start(folder / "rabbitmq", plugins=[PROMETHEUS], die_with_parent=die_with_parent)
    database_url = _database(postgres)
    for last_try in (False, True):
        ports = _ports(folder, usual_ports=usual_ports)
        environ = _environment(folder, database_url, rabbitmq.url, ports)
        _imprimatur("migrate", environ=environ)
        access = _access(folder, environ)
        try:
            _start_services(folder, environ, ports, die_with_parent=die_with_parent)
            break
        except PortTaken:
            if last_try:
                raise
    return _stack(folder, environ, ports, access, rabbitmq)


def attach(folder: Path) -> Stack:
    """What was started in `folder`, by whichever process. Raises NothingStarted, ServerDidNotStart."""
    rabbitmq = PrivateRabbitMQ.attach(folder / "rabbitmq")
    database_url = PrivatePostgres.attach(folder / "postgresql").url("imprimatur")
    ports = {name: port for one in SERVICES for name, port in read_state(folder / one)[1].get("ports", {}).items()}
    if ports.keys() != _USUAL_PORTS.keys():
        raise ServerDidNotStart(f"another version was started in {folder}: `make down` first")
    access = json.loads((folder / "client.json").read_text())
    return _stack(folder, _environment(folder, database_url, rabbitmq.url, ports), ports, access, rabbitmq)


def _stack(
    folder: Path, environ: dict[str, str], ports: dict[str, int], access: dict[str, str], rabbitmq: PrivateRabbitMQ
) -> Stack:
    return Stack(
        folder=folder,
        environ=environ,
        target=access["target"],
        api_key=access["api_key"],
        webhook_secret=access["webhook_secret"],
        ports={name: ports[name] for name in SERVICES},
        rabbitmq_metrics=urlsplit(rabbitmq.metrics_url).netloc,
    )


def export(stack: Stack, *, die_with_parent: bool = False) -> PrivatePostgresExporter:
    """Start an exporter of its PostgreSQL. Raises ServerDidNotStart, programs.ProgramMissing."""
    database_url = stack.environ["IMPRIMATUR_DATABASE_URL"]
    return PrivatePostgresExporter.start(
        stack.folder / "postgresql-exporter", database_url, die_with_parent=die_with_parent
    )


def observe(
    stack: Stack,
    exporter: PrivatePostgresExporter | None,
    *,
    interval_seconds: int = 5,
    die_with_parent: bool = False,
) -> PrivatePrometheus:
    """Start a Prometheus that scrapes all of it, under the names of deploy/prometheus/prometheus.yml.

    Raises ServerDidNotStart, programs.ProgramMissing.
    """
    node = [stack.rabbitmq_metrics]
    targets = [
        *(Target(job=f"imprimatur-{name}", addresses=[f"127.0.0.1:{port}"]) for name, port in stack.ports.items()),
        Target(job="rabbitmq", addresses=node),
        Target(job="rabbitmq-queues", addresses=node, path="/metrics/detailed", parameters=_QUEUE_METRICS),
        *([Target(job="postgresql", addresses=[exporter.address])] if exporter else []),
    ]
    return PrivatePrometheus.start(
        stack.folder / "prometheus", targets, interval_seconds=interval_seconds, die_with_parent=die_with_parent
    )


def running(folder: Path) -> list[str]:
    """The names of what runs in `folder`."""
    alive = []
    for name in (*SERVICES, *_SERVERS):
        try:
            process, _ = read_state(folder / name)
        except NothingStarted:
            continue
        if process is not None and process.alive():
            alive.append(name)
    return alive


def stop(folder: Path) -> list[str]:
    """Stop what runs in `folder`, services first, so that they drain; returns the names of what was stopped."""
    stopped = running(folder)
    for name in stopped:
        if name in _SERVERS:
            _SERVERS[name].attach(folder / name).stop()
        else:
            process, _ = read_state(folder / name)
            if process is not None:
                _stop_service(process)
    return stopped


def _database(postgres: PrivatePostgres) -> str:
    try:
        return postgres.create_database("imprimatur")
    except RuntimeError:  # from an earlier start
        return postgres.url("imprimatur")


def _environment(folder: Path, database_url: str, broker_url: str, ports: dict[str, int]) -> dict[str, str]:
    vault = folder / "vault.key"
    if not vault.exists():
        vault.touch(mode=0o600)
        vault.write_text(_imprimatur("keys", "vault", environ=dict(os.environ)).strip() + "\n")
    environ = {
        **os.environ,
        "IMPRIMATUR_DATABASE_URL": database_url,
        "IMPRIMATUR_BROKER_URL": broker_url,
        "IMPRIMATUR_VAULT_KEY_FILE": str(vault),
        "IMPRIMATUR_GRPC_HOST": "127.0.0.1",
        "IMPRIMATUR_GRPC_PORT": str(ports["grpc"]),
        "IMPRIMATUR_HTTP_HOST": "127.0.0.1",
        "IMPRIMATUR_ALLOW_PRIVATE_ADDRESSES": "true",
        "IMPRIMATUR_ALLOW_HTTP": "true",
        "IMPRIMATUR_GRPC_REFLECTION": "true",
        **{variable: str(ports[name]) for name, variable in SERVICES.items()},
    }
    environ.pop("IMPRIMATUR_VAULT_KEY", None)
    return environ


def _access(folder: Path, environ: dict[str, str]) -> dict[str, str]:
    """The first tenant's key, kept in client.json as `imprimatur serve` keeps it."""
    path = folder / "client.json"
    tenants = json.loads(_imprimatur("tenants", "list", "--json", environ=environ))["items"]
    if path.exists() and tenants:
        access: dict[str, str] = json.loads(path.read_text())
    else:
        try:
            made = json.loads(_imprimatur("tenants", "create", "default", "--json", environ=environ))
        except ServerDidNotStart:  # the tenant is there from a start that went no further
            key = ("keys", "create", "default", "--role", "admin", "--name", "up", "--json")
            made = json.loads(_imprimatur(*key, environ=environ))
        secret = json.loads(_imprimatur("tenants", "webhook-secret", "default", "--json", environ=environ))
        access = {"api_key": made["api_key"], "webhook_secret": secret["webhook_secret"]}
    access["target"] = f"127.0.0.1:{environ['IMPRIMATUR_GRPC_PORT']}"
    path.touch(mode=0o600)
    path.write_text(json.dumps(access, indent=2) + "\n")
    return access


def _imprimatur(*words: str, environ: dict[str, str]) -> str:
    command = [sys.executable, "-m", "cli", *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServerDidNotStart(f"`imprimatur {' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout


def _ports(folder: Path, *, usual_ports: bool) -> dict[str, int]:
    """Of each: the earlier one, else the usual one, else any; the first that is free."""
    chosen = {}
    for name, usual in _USUAL_PORTS.items():
        _, settings = _state(folder / _service_of(name))
        port = settings.get("ports", {}).get(name)
        if (port is None or not is_free(port)) and usual_ports and is_free(usual):
            port = usual
        chosen[name] = free_port(port)
    return chosen


def _service_of(port_name: str) -> str:
    return "gateway" if port_name == "grpc" else port_name


def _state(home: Path) -> tuple[Process | None, dict[str, Any]]:
    try:
        return read_state(home)
    except NothingStarted:
        return None, {}


def _start_services(folder: Path, environ: dict[str, str], ports: dict[str, int], *, die_with_parent: bool) -> None:
    """Raises PortTaken, with none of them running, where somebody else was faster."""
    for name in SERVICES:
        own = {one: port for one, port in ports.items() if _service_of(one) == name}
        _start_service(folder, name, environ, own, die_with_parent=die_with_parent)
    try:
        for name in SERVICES:
            _wait_ready(folder, name, ports[name])
    except PortTaken:
        for name in SERVICES:
            process, _ = read_state(folder / name)
            if process is not None:
                _stop_service(process)
        raise


def _start_service(
    folder: Path, name: str, environ: dict[str, str], ports: dict[str, int], *, die_with_parent: bool
) -> None:
    home = folder / name
    home.mkdir(exist_ok=True)
    process, _ = _state(home)
    if process is not None and process.alive():
        raise ServerDidNotStart(f"{name} runs in {home} already: `make down` first")
    process = processes.spawn(
        [sys.executable, "-m", "cli", name], log=home / "log", environ=environ, die_with_parent=die_with_parent
    )
    write_state(home, process=process, settings={"ports": ports})


def _stop_service(process: Process) -> None:
    family = processes.family(process)
    process.send(signal.SIGTERM)
    processes.wait_gone([process], _STOP_SECONDS)
    processes.end(family)


def _wait_ready(folder: Path, name: str, port: int) -> None:
    process, _ = read_state(folder / name)

    def ready() -> bool:
        if process is None or not process.alive():
            end = _tail(folder / name / "log")
            kind = PortTaken if names_a_taken_port(end) else ServerDidNotStart
            raise kind(f"{name} ended; the end of its log:\n{end}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                return True
        except OSError:
            return False

    if not processes.wait_until(ready, _READY_SECONDS):
        raise ServerDidNotStart(f"{name} is not ready; the end of its log:\n{_tail(folder / name / 'log')}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


_Observer = TypeVar("_Observer", PrivatePrometheus, PrivatePostgresExporter)


def observed(stack: Stack) -> tuple[str, str]:
    """Where Prometheus and the exporter of PostgreSQL are, or why they are not: that stops nobody from working. What
    runs stays, but a Prometheus that does not know the exporter."""
    alive = running(stack.folder)
    exporter, told = _attempted(
        lambda: (
            PrivatePostgresExporter.attach(stack.folder / "postgresql-exporter")
            if "postgresql-exporter" in alive
            else export(stack)
        )
    )

    def prometheus() -> PrivatePrometheus:
        if "prometheus" in alive:
            runs = PrivatePrometheus.attach(stack.folder / "prometheus")
            if exporter is None or exporter.address in runs.settings.config:
                return runs
            runs.stop()
        return observe(stack, exporter)

    return _attempted(prometheus)[1], told


def _attempted(start: Callable[[], _Observer]) -> tuple[_Observer | None, str]:
    try:
        server = start()
    except ProgramMissing as fault:
        return None, f"not there: {' '.join(str(fault).split())}"
    except ServerDidNotStart as fault:
        return None, f"not there: {str(fault).splitlines()[0]}"
    return server, server.url


def _tell(stack: Stack, prometheus: str, exporter: str) -> None:
    command = Path(sys.executable).parent / "imprimatur"
    print(f"Imprimatur is up, everything in {stack.folder}:")
    print(f"  gRPC      {stack.target}   (key and webhook secret: {stack.folder / 'client.json'})")
    for name, port in stack.ports.items():
        print(f"  {name:9} http://127.0.0.1:{port}/metrics   log: {stack.folder / name / 'log'}")
    data = PrivatePostgres.attach(stack.folder / "postgresql").settings.data
    print(f"  database  {stack.environ['IMPRIMATUR_DATABASE_URL']}   metrics: {exporter}   files: {data}")
    print(f"  broker    {stack.environ['IMPRIMATUR_BROKER_URL']}   metrics: http://{stack.rabbitmq_metrics}/metrics")
    print(f"  metrics   {prometheus}   (Prometheus, with the rules of deploy/prometheus)")
    print("Try:")
    print(f"  export IMPRIMATUR_DATA={stack.folder}")
    print(f"  {command} submit examples/creatives --watch")
    print("Operators' commands (tenants, keys) speak to the database itself:")
    for name in ("IMPRIMATUR_DATABASE_URL", "IMPRIMATUR_VAULT_KEY_FILE"):
        print(f"  export {name}={stack.environ[name]}")
    print("`make down` stops it; the data stays.")


def _up_again(folder: Path, alive: list[str]) -> int:
    """Start the observers that are missing. The rest depends on one another, and is started as a whole."""
    print(f"Running already in {folder}: {', '.join(alive)}.")
    if missing := [name for name in (*SERVICES, *_SERVERS) if name not in alive and name not in _OBSERVERS]:
        print(f"error: not running: {', '.join(missing)}. `make down`, then `make up`.", file=sys.stderr)
        return 1
    try:
        stack = attach(folder)
    except ServerDidNotStart as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    _tell(stack, *observed(stack))
    return 0


def main() -> int:
    """`python -m deploy.local.stack up|down [--folder FOLDER]`."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.stack", description=__doc__)
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    folder = given.folder.resolve()
    if given.action == "down":
        stopped = stop(folder)
        print(f"Stopped: {', '.join(stopped) or 'nothing was running'}.")
        return 0
    if alive := running(folder):
        return _up_again(folder, alive)
    try:
        stack = start(folder, usual_ports=True)
        _tell(stack, *observed(stack))
    except RuntimeError as fault:
        stop(folder)
        print(f"error: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
