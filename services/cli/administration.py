"""`imprimatur migrate`, `tenants` and `keys`: what an operator does at the database itself, without a gateway.

The database is named by --database-url or IMPRIMATUR_DATABASE_URL; without either it is the embedded one in the
data folder. What reaches the database is `cli.operation`, imported when a command needs it.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.connection import DEFAULT_DATA
from cli.limit_options import (
    AssetBytes,
    DailyDollars,
    DailyTokens,
    OpenJobs,
    RunningJobs,
    Streams,
    SubmitsPerSecond,
    in_dollars,
    limit_shown,
)
from cli.output import Output, moment, note, plain
from imprimatur.budgets import MICROS
from imprimatur.policy import Mode
from imprimatur.tenancy import Role

if TYPE_CHECKING:
    from cli.operation import Operation

_PANEL = "At the database"
_ONCE = "The key is not shown again."

app = typer.Typer()
tenants_app = typer.Typer(help="Tenants, at the database.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys, at the database.", no_args_is_help=True)
app.add_typer(tenants_app, name="tenants", rich_help_panel=_PANEL)
app.add_typer(keys_app, name="keys", rich_help_panel=_PANEL)

DatabaseURL = Annotated[
    str,
    typer.Option("--database-url", envvar="IMPRIMATUR_DATABASE_URL", help="postgresql://… Default: the data folder's."),
]
Data = Annotated[Path, typer.Option("--data", envvar="IMPRIMATUR_DATA", help="Data folder of `imprimatur serve`.")]


class Reuse(StrEnum):
    """Whether what was found in an equal creative is used again."""

    ON = "on"
    OFF = "off"


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Row = Mapping[str, str | datetime]
TenantName = Annotated[str, typer.Argument(help="The tenant's name.")]


@app.command(rich_help_panel=_PANEL)
def migrate(database_url: DatabaseURL = "", data: Data = DEFAULT_DATA, json: Json = False) -> None:
    """Bring the database's schema to this version. Safe to run from several places at once."""
    _at(database_url, data).migrate(note)
    show_fields({"schema": "current"}, json=json)


@tenants_app.command("create")
def create_tenant(
    name: TenantName, database_url: DatabaseURL = "", data: Data = DEFAULT_DATA, json: Json = False
) -> None:
    """Create a tenant, with a first API key of the role admin."""
    tenant_id, key = _at(database_url, data).create_tenant(name)
    show_fields({"tenant": name, "id": str(tenant_id), "api_key": key}, json=json, remark=_ONCE)


@tenants_app.command("list")
def list_tenants(database_url: DatabaseURL = "", data: Data = DEFAULT_DATA, json: Json = False) -> None:
    """List all tenants with their review mode, oldest first."""
    found = _at(database_url, data).tenants()
    rows: list[Row] = [
        {"name": one.name, "id": str(one.id), "mode": one.mode, "created": one.created_at} for one in found
    ]
    show_rows(rows, columns=("name", "id", "mode", "created"), json=json)


@tenants_app.command("mode")
def set_mode(
    name: TenantName,
    mode: Annotated[Mode, typer.Argument(help="How far the AI decides.")],
    database_url: DatabaseURL = "",
    data: Data = DEFAULT_DATA,
    json: Json = False,
) -> None:
    """Switch how far the AI decides, at once: queued and running reviews follow the new mode.

    The way back from AI decisions is `require-human`.
    """
    operation = _at(database_url, data)
    version = operation.set_mode(name, mode)
    shown = {"tenant": name, "mode": mode, "policy_version": str(version)}
    show_fields(shown, json=json, remark=f"Switched in the database {operation.place}")


@tenants_app.command("limits")
def limits(
    name: TenantName,
    submits_per_second: SubmitsPerSecond = None,
    open_jobs: OpenJobs = None,
    running_jobs: RunningJobs = None,
    streams: Streams = None,
    asset_bytes: AssetBytes = None,
    database_url: DatabaseURL = "",
    data: Data = DEFAULT_DATA,
    json: Json = False,
) -> None:
    """Show what a tenant may take, or change it. Running gateways keep to it within two seconds.

    'default' is what the gateways' settings say (IMPRIMATUR_SUBMITS_PER_SECOND and so on).
    """
    asked = {
        "submits_per_second": submits_per_second,
        "open_jobs": open_jobs,
        "running_jobs": running_jobs,
        "streams": streams,
        "asset_bytes": asset_bytes,
    }
    changes = {what: word.number for what, word in asked.items() if word is not None}
    operation = _at(database_url, data)
    own = operation.set_limits(name, changes) if changes else operation.limits(name)
    remark = f"Changed in the database {operation.place}" if changes else ""
    show_fields(
        {"tenant": name, **{what: limit_shown(value) for what, value in asdict(own).items()}}, json=json, remark=remark
    )


@tenants_app.command("model")
def set_model(
    name: TenantName,
    model: Annotated[str, typer.Argument(help="A model that the reviewers are set to, or 'default'.")],
    database_url: DatabaseURL = "",
    data: Data = DEFAULT_DATA,
    json: Json = False,
) -> None:
    """Have a tenant's creatives examined by another language model: IMPRIMATUR_LLM_MODELS names those there are."""
    operation = _at(database_url, data)
    version = operation.set_model(name, None if model == "default" else model)
    shown = {"tenant": name, "model": model, "policy_version": str(version)}
    show_fields(shown, json=json, remark=f"Changed in the database {operation.place}")


@tenants_app.command("reuse")
def set_reuse(
    name: TenantName,
    reuse: Annotated[Reuse, typer.Argument(help="Whether equal creatives are examined once.")],
    database_url: DatabaseURL = "",
    data: Data = DEFAULT_DATA,
    json: Json = False,
) -> None:
    """Have a tenant's equal creatives examined once ('on', where the reviewers are set to it), or each for itself."""
    operation = _at(database_url, data)
    version = operation.set_reuse(name, reuse is Reuse.ON)
    shown = {"tenant": name, "reuse_evidence": reuse, "policy_version": str(version)}
    show_fields(shown, json=json, remark=f"Changed in the database {operation.place}")


@tenants_app.command("budget")
def budget(
    name: TenantName,
    daily_tokens: DailyTokens = None,
    daily_cost_dollars: DailyDollars = None,
    database_url: DatabaseURL = "",
    data: Data = DEFAULT_DATA,
    json: Json = False,
) -> None:
    """Show what a tenant may spend at AI providers in a day of UTC and what it has spent today, or change the first.

    Beyond it, creatives go to a person (budget_exhausted). 'default' is what the reviewers' settings say
    (IMPRIMATUR_LLM_DAILY_TOKENS, IMPRIMATUR_LLM_DAILY_COST_DOLLARS).
    """
    asked = {"daily_tokens": daily_tokens, "daily_cost_micros": daily_cost_dollars}
    changes = {
        what: None if word.number is None else int(word.number) for what, word in asked.items() if word is not None
    }
    operation = _at(database_url, data)
    own, used = operation.set_budget(name, changes) if changes else operation.budget(name)
    fields = {
        "tenant": name,
        "daily_tokens": limit_shown(own.daily_tokens),
        "daily_cost_dollars": limit_shown(in_dollars(own.daily_cost_micros)),
        "used_tokens": str(used.tokens),
        "used_cost_dollars": f"{used.cost_micros / MICROS:.6f}",
    }
    show_fields(fields, json=json, remark=f"Changed in the database {operation.place}" if changes else "")


@tenants_app.command("webhook-secret")
def webhook_secret(
    name: TenantName,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one; the present one signs too for another day.")
    ] = False,
    database_url: DatabaseURL = "",
    data: Data = DEFAULT_DATA,
    json: Json = False,
) -> None:
    """Show the secret that signs what goes to callback URLs. Needs the vault's key."""
    secret = _at(database_url, data).webhook_secret(name, rotate=rotate)
    show_fields({"tenant": name, "webhook_secret": secret}, json=json)


@keys_app.command("create")
def create_key(
    tenant: TenantName,
    role: Annotated[Role, typer.Option(help="What the key may do.")] = Role.SUBMITTER,
    name: Annotated[str, typer.Option(help="What the key is for; shown in lists and decisions.")] = "key",
    user: Annotated[str, typer.Option(help="Bind the key to this user.")] = "",
    database_url: DatabaseURL = "",
    data: Data = DEFAULT_DATA,
    json: Json = False,
) -> None:
    """Create an API key."""
    key = _at(database_url, data).create_key(tenant, name=name, role=role, user=user)
    made = {"tenant": tenant, "name": name, "role": str(role), "user": user, "api_key": key}
    show_fields(made, json=json, remark=_ONCE)


@keys_app.command("list")
def list_keys(
    tenant: TenantName, database_url: DatabaseURL = "", data: Data = DEFAULT_DATA, json: Json = False
) -> None:
    """List a tenant's keys, revoked ones included. The keys themselves are not kept."""
    rows: list[Row] = [
        {
            "id": str(key.id),
            "name": key.name,
            "role": str(key.role),
            "user": key.user_id,
            "created": key.created_at,
            "revoked": key.revoked_at or "",
        }
        for key in _at(database_url, data).keys(tenant)
    ]
    show_rows(rows, columns=("id", "name", "role", "user", "created", "revoked"), json=json)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[uuid.UUID, typer.Argument(help="The key's id, from `keys list`.")],
    database_url: DatabaseURL = "",
    data: Data = DEFAULT_DATA,
    json: Json = False,
) -> None:
    """Revoke a key. Running gateways refuse it within two seconds."""
    _at(database_url, data).revoke_key(key_id)
    show_fields({"id": str(key_id), "revoked": "true"}, json=json)


@keys_app.command("vault")
def vault_key(json: Json = False) -> None:
    """Print a new key for the vault (IMPRIMATUR_VAULT_KEY)."""
    from imprimatur.vault import new_key

    key = new_key()
    Output(as_json=json).show({"vault_key": key}, lambda: plain(key))


def _at(database_url: str, data: Path) -> "Operation":
    import structlog

    from cli.operation import Operation

    # Standard output is for what was asked; what goes wrong ends in one line that `main` writes.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return Operation(database_url, data)


def show_fields(fields: dict[str, str], *, json: bool, remark: str = "") -> None:
    """One thing, field by field."""

    def table() -> Table:
        grid = Table.grid(padding=(0, 2))
        for name, value in fields.items():
            grid.add_row(plain(name, "dim"), plain(value))
        return grid

    Output(as_json=json).show(fields, table)
    if remark:
        note(remark)


def show_rows(rows: list[Row], *, columns: tuple[str, ...], json: bool) -> None:
    """Many things, one a row; times as in all other lists, and in JSON as protobuf writes them."""

    def table() -> Table:
        shown = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            shown.add_row(*(plain(_written(row[column], moment)) for column in columns))
        return shown

    items = [{name: _written(value, _in_utc) for name, value in row.items()} for row in rows]
    Output(as_json=json).show({"items": items}, table)


def _written(value: str | datetime, time: Callable[[datetime], str]) -> str:
    return time(value) if isinstance(value, datetime) else value


def _in_utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
