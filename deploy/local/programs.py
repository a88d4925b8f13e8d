"""The programs of PostgreSQL, RabbitMQ, Prometheus and its exporter for PostgreSQL: where they are and, on Debian as
root, how they get there.

`python -m deploy.local.programs` finds or installs them and prints where they are. Nothing is started here.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

_HOMEBREW = ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")
_POSTGRES_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    *(f"{brew}/opt/postgresql*/bin" for brew in _HOMEBREW),
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
_RABBITMQ_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/rabbitmq/sbin",
    *(f"{brew}/opt/rabbitmq/sbin" for brew in _HOMEBREW),
)
#: Debian's scripts of the same names there change to its own user and folders.
_WRAPPERS = (Path("/usr/sbin"),)
_ERLANG_FOLDERS = (
    "/usr/lib/erlang/bin",
    "/usr/lib/erlang/erts-*/bin",
    *(f"{brew}/opt/erlang/{bin}" for brew in _HOMEBREW for bin in ("bin", "lib/erlang/bin", "lib/erlang/erts-*/bin")),
    "/usr/local/lib/erlang/erts-*/bin",
    "/opt/erlang/lib/erlang/erts-*/bin",
)
_PROMETHEUS_FOLDERS = (
    "/usr/bin",
    "/usr/local/bin",
    "/opt/prometheus*",
    *(f"{brew}/opt/prometheus/bin" for brew in _HOMEBREW),
)
#: Its own name, and Debian's.
_POSTGRES_EXPORTER = ("postgres_exporter", "prometheus-postgres-exporter")
_POSTGRES_EXPORTER_FOLDERS = (
    "/usr/bin",
    "/usr/local/bin",
    "/opt/postgres_exporter*",
    *(f"{brew}/opt/postgres_exporter/bin" for brew in _HOMEBREW),
)
_POSTGRES_PROGRAMS = ("postgres", "initdb", "createdb", "dropdb")
_RABBITMQ_PROGRAMS = ("rabbitmq-server", "rabbitmqctl")
_PROMETHEUS_PROGRAMS = ("prometheus", "promtool")
_APT_SECONDS = 600.0


class ProgramMissing(RuntimeError):
    """A server program is not on this machine; the message says how to install it."""


@dataclass(frozen=True, kw_only=True)
class PostgresPrograms:
    """A folder with `postgres`, `initdb`, `createdb` and `dropdb`."""

    bin: Path


@dataclass(frozen=True, kw_only=True)
class RabbitMQPrograms:
    """`rabbitmq-server` and `rabbitmqctl` in one folder, and the Erlang programs they need."""

    bin: Path
    erl: Path
    epmd: Path


@dataclass(frozen=True, kw_only=True)
class PrometheusPrograms:
    """A folder with `prometheus` and `promtool`."""

    bin: Path


@cache
def postgres() -> PostgresPrograms:
    """Find PostgreSQL's programs; install them when they are missing. Raises ProgramMissing."""
    advice = _advice("PostgreSQL", debian="postgresql", brew="postgresql@17")
    return _found_or_installed(find_postgres, install_postgres, advice)


@cache
def rabbitmq() -> RabbitMQPrograms:
    """Find RabbitMQ's and Erlang's programs; install them when they are missing. Raises ProgramMissing."""
    advice = _advice("RabbitMQ", debian="rabbitmq-server", brew="rabbitmq")
    return _found_or_installed(find_rabbitmq, install_rabbitmq, advice)


@cache
def prometheus() -> PrometheusPrograms:
    """Find Prometheus' programs; install them when they are missing. Raises ProgramMissing."""
    advice = _advice("Prometheus", debian="prometheus", brew="prometheus")
    return _found_or_installed(find_prometheus, install_prometheus, advice)


@cache
def postgres_exporter() -> Path:
    """Find postgres_exporter; install it when it is missing. Raises ProgramMissing."""
    advice = _advice("postgres_exporter", debian="prometheus-postgres-exporter", brew="postgres_exporter")
    return _found_or_installed(find_postgres_exporter, install_postgres_exporter, advice)


_Found = TypeVar("_Found")


def _found_or_installed(find: Callable[[], _Found | None], install: Callable[[], None], advice: str) -> _Found:
    found = find()
    if found is None and _may_install():
        install()
        found = find()
    if found is None:
        raise ProgramMissing(advice)
    return found


def find_postgres() -> PostgresPrograms | None:
    """PostgreSQL's programs: those on PATH, else the newest in the usual places; None when there are none."""
    for folder in [*_on_path("postgres"), *_matching(_POSTGRES_FOLDERS)]:
        if _all_in(folder, _POSTGRES_PROGRAMS):
            return PostgresPrograms(bin=folder)
    return None


def find_rabbitmq() -> RabbitMQPrograms | None:
    """RabbitMQ's programs on PATH, else in the usual places, with Erlang's; None when any is missing."""
    erl, epmd = _erlang("erl"), _erlang("epmd")
    if erl is None or epmd is None:
        return None
    for folder in [*_on_path("rabbitmq-server"), *_matching(_RABBITMQ_FOLDERS)]:
        if _all_in(folder, _RABBITMQ_PROGRAMS) and folder not in _WRAPPERS:
            return RabbitMQPrograms(bin=folder, erl=erl, epmd=epmd)
    return None


def find_prometheus() -> PrometheusPrograms | None:
    """Prometheus' programs on PATH, else in the usual places; None when either is missing."""
    for folder in [*_on_path("prometheus"), *_matching(_PROMETHEUS_FOLDERS)]:
        if _all_in(folder, _PROMETHEUS_PROGRAMS):
            return PrometheusPrograms(bin=folder)
    return None


def find_postgres_exporter() -> Path | None:
    """postgres_exporter on PATH, else in the usual places; None when it is missing."""
    for name in _POSTGRES_EXPORTER:
        for folder in [*_on_path(name, resolve=False), *_matching(_POSTGRES_EXPORTER_FOLDERS)]:
            if _all_in(folder, (name,)):
                return folder / name
    return None


def install_postgres() -> None:
    """apt-get install PostgreSQL, without the system-wide server Debian would make of it."""
    _apt_install("postgresql-common")
    settings = Path("/etc/postgresql-common/createcluster.conf")
    text = settings.read_text() if settings.exists() else ""
    switch = re.compile(r"^#?\s*create_main_cluster\s*=.*$", re.MULTILINE)
    line = "create_main_cluster = false"
    settings.write_text(switch.sub(line, text) if switch.search(text) else f"{text}\n{line}\n")
    _apt_install("postgresql")


def install_rabbitmq() -> None:
    """apt-get install RabbitMQ, without starting its system-wide server."""
    _apt_install("rabbitmq-server")


def install_prometheus() -> None:
    """apt-get install Prometheus, without starting its system-wide server."""
    _apt_install("prometheus")


def install_postgres_exporter() -> None:
    """apt-get install postgres_exporter, without starting it for the whole system."""
    _apt_install("prometheus-postgres-exporter")


def _apt_install(package: str) -> None:
    print(f"installing {package} …", file=sys.stderr)
    _apt_update()
    with _no_service_starts():
        _apt("install", "-y", "--no-install-recommends", package)


@cache
def _apt_update() -> None:
    _apt("update")


def _apt(*words: str) -> None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-q", *words]
    done = subprocess.run(
        command,
        env=environ,
        capture_output=True,
        text=True,
        timeout=_APT_SECONDS,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise ProgramMissing(f"`{' '.join(command)}` failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Have Debian's packages start no service while they install; a policy the machine has stays as it is."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def _may_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _advice(name: str, *, debian: str, brew: str) -> str:
    return (
        f"{name} is not installed on this machine, and installing it from here takes root and apt-get. "
        f"Debian or Ubuntu: `sudo apt-get install --no-install-recommends {debian}`. "
        f"macOS: `brew install {brew}`. "
        f"Elsewhere: install {name} so that its server programs are on PATH."
    )


def _erlang(program: str) -> Path | None:
    for folder in [*_on_path(program, resolve=False), *_matching(_ERLANG_FOLDERS)]:
        if _all_in(folder, (program,)):
            return folder / program
    return None


def _matching(patterns: tuple[str, ...]) -> list[Path]:
    """Folders that exist, pattern by pattern, of each the highest version first."""
    return [Path(found) for pattern in patterns for found in sorted(glob.glob(pattern), key=_version, reverse=True)]


def _version(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


def _on_path(program: str, *, resolve: bool = True) -> list[Path]:
    found = shutil.which(program)
    if found is None:
        return []
    return [Path(found).resolve().parent if resolve else Path(found).parent]


def _all_in(folder: Path, names: tuple[str, ...]) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in names)


def main() -> int:
    """Find or install all; print where they are. 1 when one is missing that nothing runs without."""
    missing = False
    for name, find in (("PostgreSQL", postgres), ("RabbitMQ", rabbitmq)):
        try:
            print(f"{name}: {find().bin}")
        except ProgramMissing as error:
            missing = True
            print(error, file=sys.stderr)
    try:
        print(f"Prometheus: {prometheus().bin}")
    except ProgramMissing as error:
        print(f"without Prometheus there are no metrics to look at, and `make test` fails: {error}", file=sys.stderr)
    try:
        print(f"postgres_exporter: {postgres_exporter()}")
    except ProgramMissing as error:
        print(f"without it there are no metrics of PostgreSQL, and `make test` fails: {error}", file=sys.stderr)
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
