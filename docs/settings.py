"""Writes docs/settings.md and .env.example from the settings classes; with --check, only compares.

The classes are the one source: names, defaults and descriptions stand there and nowhere else.
"""

from collections.abc import Mapping

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from docs.generated import REPOSITORY, write_or_compare
from gateway.settings import GatewaySettings
from imprimatur.settings import AddressSettings, RetentionSettings, TracingSettings
from notifier.settings import NotifierSettings
from reviewer.settings import EngineSettings, ReviewerSettings


class ServeSettings(EngineSettings, TracingSettings, RetentionSettings, AddressSettings):
    """What `cli/servers.py` reads for `imprimatur serve`."""


SERVICES: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "reviewer": ReviewerSettings,
    "notifier": NotifierSettings,
}
#: `serve` comes last: what it reads are settings of the others.
_READERS: dict[str, type[BaseSettings]] = {**SERVICES, "serve": ServeSettings}


def main() -> int:
    """Write both files, or say which is not current."""
    return write_or_compare({REPOSITORY / "docs" / "settings.md": table(), REPOSITORY / ".env.example": example()})


def settings() -> dict[str, tuple[FieldInfo, list[str]]]:
    """Every variable with its field and the services that read it, in the order of the classes."""
    return _read_by(SERVICES)


def _read_by(kinds: Mapping[str, type[BaseSettings]]) -> dict[str, tuple[FieldInfo, list[str]]]:
    found: dict[str, tuple[FieldInfo, list[str]]] = {}
    for service, kind in kinds.items():
        for name, field in kind.model_fields.items():
            variable = f"IMPRIMATUR_{name.upper()}"
            found.setdefault(variable, (field, []))[1].append(service)
    return found


def table() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Read from the environment when a service starts. Generated from the settings classes by `make docs`.",
        "What says neither `all` nor `serve` is fixed in `imprimatur serve`, or an option of it.",
        "",
        "| variable | read by | default | meaning |",
        "|---|---|---|---|",
    ]
    for variable, (field, readers) in _read_by(_READERS).items():
        named = "all" if len(readers) == len(_READERS) else ", ".join(readers)
        lines.append(f"| `{variable}` | {named} | {_default(field)} | {field.description} |")
    return "\n".join(lines) + "\n"


def example() -> str:
    """.env.example."""
    lines = ["# Every setting with its default. Generated from the settings classes by `make docs`."]
    for variable, (field, readers) in _read_by(_READERS).items():
        lines += ["", f"# {field.description} ({', '.join(readers)})"]
        value = "" if field.is_required() or field.default is None else _plain(field.default)
        lines.append(f"{'' if field.is_required() else '# '}{variable}={value}")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if field.default is None else f"`{_plain(field.default)}`"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{item:g}" for item in value) + "]"
    return str(value)


if __name__ == "__main__":
    raise SystemExit(main())
