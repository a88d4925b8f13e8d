"""`make up` and `make down`: the three services as processes on this machine, with RabbitMQ and PostgreSQL of
their own, everything in one folder (.local; as root the database lies in /var/tmp). For trying and developing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from deploy.local import process as processes
from deploy.local.ports import free_port, is_free
from deploy.local.postgres import PrivatePostgres
from deploy.local.process import Process
from deploy.local.rabbitmq import PrivateRabbitMQ
from deploy.local.server import NothingStarted, ServerDidNotStart, read_state, write_state

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".local"
#: Service and the variable that names its HTTP port.
SERVICES = {
    "gateway": "IMPRIMATUR_GATEWAY_HTTP_PORT",
    "reviewer": "IMPRIMATUR_REVIEWER_HTTP_PORT",
    "notifier": "IMPRIMATUR_NOTIFIER_HTTP_PORT",
}
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


def start(folder: Path, *, die_with_parent: bool = False, grpc_port: int | None = None) -> Stack:
    """Start everything in `folder`; returns when every service is ready.

    Raises ServerDidNotStart with the log's end, programs.ProgramMissing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    postgres = PrivatePostgres.start(folder / "postgresql", die_with_parent=die_with_parent)
    rabbitmq = PrivateRabbitMQ.start(folder / "rabbitmq", die_with_parent=die_with_parent)
    environ, ports = _environment(folder, _database(postgres), rabbitmq.url, grpc_port or free_port())
    _imprimatur("migrate", environ=environ)
    access = _access(folder, environ)
    for name in SERVICES:
        _start_service(folder, name, environ, die_with_parent=die_with_parent)
    for name in SERVICES:
        _wait_ready(folder, name, ports[name])
    return Stack(
        folder=folder,
        environ=environ,
        target=access["target"],
        api_key=access["api_key"],
        webhook_secret=access["webhook_secret"],
        ports=ports,
    )


def running(folder: Path) -> list[str]:
    """The names of what runs in `folder`."""
    alive = []
    for name in (*SERVICES, "rabbitmq", "postgresql"):
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
        if name == "rabbitmq":
            PrivateRabbitMQ.attach(folder / name).stop()
        elif name == "postgresql":
            PrivatePostgres.attach(folder / name).stop()
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


def _environment(
    folder: Path, database_url: str, broker_url: str, grpc_port: int
) -> tuple[dict[str, str], dict[str, int]]:
    ports = {name: free_port() for name in SERVICES}
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
        "IMPRIMATUR_GRPC_PORT": str(grpc_port),
        "IMPRIMATUR_HTTP_HOST": "127.0.0.1",
        "IMPRIMATUR_ALLOW_PRIVATE_ADDRESSES": "true",
        "IMPRIMATUR_ALLOW_HTTP": "true",
        "IMPRIMATUR_GRPC_REFLECTION": "true",
        **{SERVICES[name]: str(port) for name, port in ports.items()},
    }
    environ.pop("IMPRIMATUR_VAULT_KEY", None)
    return environ, ports


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


def _start_service(folder: Path, name: str, environ: dict[str, str], *, die_with_parent: bool) -> None:
    home = folder / name
    home.mkdir(exist_ok=True)
    try:
        process, _ = read_state(home)
    except NothingStarted:
        process = None
    if process is not None and process.alive():
        raise ServerDidNotStart(f"{name} runs in {home} already: `make down` first")
    process = processes.spawn(
        [sys.executable, "-m", "cli", name], log=home / "log", environ=environ, die_with_parent=die_with_parent
    )
    write_state(home, process=process, settings={})


def _stop_service(process: Process) -> None:
    family = processes.family(process)
    process.send(signal.SIGTERM)
    processes.wait_gone([process], _STOP_SECONDS)
    processes.end(family)


def _wait_ready(folder: Path, name: str, port: int) -> None:
    process, _ = read_state(folder / name)

    def ready() -> bool:
        if process is None or not process.alive():
            raise ServerDidNotStart(f"{name} ended; the end of its log:\n{_tail(folder / name / 'log')}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                return True
        except OSError:
            return False

    if not processes.wait_until(ready, _READY_SECONDS):
        raise ServerDidNotStart(f"{name} is not ready; the end of its log:\n{_tail(folder / name / 'log')}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def _tell(stack: Stack) -> None:
    command = Path(sys.executable).parent / "imprimatur"
    print(f"Imprimatur is up, everything in {stack.folder}:")
    print(f"  gRPC      {stack.target}   (key and webhook secret: {stack.folder / 'client.json'})")
    for name, port in stack.ports.items():
        print(f"  {name:9} http://127.0.0.1:{port}/metrics   log: {stack.folder / name / 'log'}")
    print(f"  database  {stack.environ['IMPRIMATUR_DATABASE_URL']}")
    print(f"  broker    {stack.environ['IMPRIMATUR_BROKER_URL']}")
    print("Try:")
    print(f"  export IMPRIMATUR_DATA={stack.folder}")
    print(f"  {command} submit examples/creatives --watch")
    print("Operators' commands (tenants, keys) speak to the database itself:")
    print(f"  export IMPRIMATUR_DATABASE_URL={stack.environ['IMPRIMATUR_DATABASE_URL']}")
    print("`make down` stops it; the data stays.")


def main() -> int:
    """`python -m deploy.local.stack up|down`."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.stack", description=__doc__)
    parser.add_argument("action", choices=("up", "down"))
    action = parser.parse_args().action
    if action == "down":
        stopped = stop(FOLDER)
        print(f"Stopped: {', '.join(stopped) or 'nothing was running'}.")
        return 0
    if alive := running(FOLDER):
        print(f"Running already in {FOLDER}: {', '.join(alive)}. `make down` stops it.")
        return 0 if len(alive) == len(SERVICES) + 2 else 1
    try:
        _tell(start(FOLDER, grpc_port=7443 if is_free(7443) else None))
    except RuntimeError as fault:
        stop(FOLDER)
        print(f"error: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
