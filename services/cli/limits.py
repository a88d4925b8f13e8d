"""`imprimatur limits`: what a tenant may take and spend, by way of a gateway; at the database it is `tenants`."""

from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli import tables
from cli.arguments import LimitWord, in_dollars, in_micros, limit, limit_shown
from cli.commands import Session, client_command
from cli.output import plain
from imprimatur.budgets import MICROS, MOST_DOLLARS, MOST_TOKENS
from imprimatur.tenancy import MOST_A_SECOND, MOST_AT_ONCE, MOST_BYTES
from imprimatur.v1.admin_service_pb2 import (
    GetTenantLimitsResponse,
    SetTenantLimitsResponse,
    TenantBudget,
    TenantLimits,
)

app = typer.Typer()

_LIMITS = ("submits_per_second", "open_jobs", "running_jobs", "streams", "asset_bytes")
_HELP = "a number, 'none' or 'default'."


@client_command(app, "limits")
async def limits(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    *,
    submits_per_second: Annotated[
        str, typer.Option(metavar="LIMIT", help=f"Jobs a second, at each gateway: {_HELP}")
    ] = "",
    open_jobs: Annotated[str, typer.Option(metavar="LIMIT", help=f"Jobs queued or running, everywhere: {_HELP}")] = "",
    running_jobs: Annotated[
        str, typer.Option(metavar="LIMIT", help=f"Jobs under way at once, everywhere: {_HELP}")
    ] = "",
    streams: Annotated[str, typer.Option(metavar="LIMIT", help=f"Watches open at each gateway: {_HELP}")] = "",
    asset_bytes: Annotated[str, typer.Option(metavar="LIMIT", help=f"Bytes of uploaded images kept: {_HELP}")] = "",
    daily_tokens: Annotated[str, typer.Option(metavar="LIMIT", help=f"Tokens in and out, a day: {_HELP}")] = "",
    daily_cost_dollars: Annotated[str, typer.Option(metavar="LIMIT", help=f"US dollars a day: {_HELP}")] = "",
) -> None:
    """Show what a tenant may take and spend and what it has spent today, or change parts of it.

    Needs a key of the role operator. 'default' is what the settings of gateways and reviewers say.
    """
    taken = {
        "submits_per_second": limit(submits_per_second, "--submits-per-second", MOST_A_SECOND, whole=False),
        "open_jobs": limit(open_jobs, "--open-jobs", MOST_AT_ONCE, whole=True),
        "running_jobs": limit(running_jobs, "--running-jobs", MOST_AT_ONCE, whole=True),
        "streams": limit(streams, "--streams", MOST_AT_ONCE, whole=True),
        "asset_bytes": limit(asset_bytes, "--asset-bytes", MOST_BYTES, whole=True),
    }
    tokens = limit(daily_tokens, "--daily-tokens", MOST_TOKENS, whole=True)
    dollars = limit(daily_cost_dollars, "--daily-cost-dollars", MOST_DOLLARS, whole=False)
    spent = {"daily_tokens": tokens, "daily_cost_micros": dollars and LimitWord(number=in_micros(dollars.number))}
    answer: GetTenantLimitsResponse | SetTenantLimitsResponse = await session.client.tenant_limits(tenant)
    if any((*taken.values(), *spent.values())):
        answer = await session.client.set_tenant_limits(
            tenant,
            _changed(answer.own, taken) if any(taken.values()) else None,
            budget=_changed(answer.budget, spent) if any(spent.values()) else None,
        )
    session.output.show(answer, lambda: _shown(answer))


def _changed(own: Any, words: dict[str, LimitWord | None]) -> Any:
    """`own` with what the words say."""
    for name, word in words.items():
        if word is None:
            continue
        own.ClearField(name)
        if word.number is not None:
            getattr(own, name).value = type(getattr(own, name).value)(word.number)
    return own


def _shown(answer: GetTenantLimitsResponse | SetTenantLimitsResponse) -> RenderableType:
    shown = tables.table("LIMIT", "ITS OWN", "IN FORCE", "TODAY")
    for name in _LIMITS:
        shown.add_row(plain(name), *(limit_shown(_number(one, name)) for one in (answer.own, answer.effective)), "")
    budget, spent = answer.budget, answer.spent_today
    dollars = in_dollars(_number(budget, "daily_cost_micros"))
    shown.add_row("daily_tokens", limit_shown(_number(budget, "daily_tokens")), "", str(spent.tokens))
    shown.add_row("daily_cost_dollars", limit_shown(dollars), "", f"{spent.cost_micros / MICROS:.6f}")
    return shown


def _number(of: TenantLimits | TenantBudget, name: Any) -> Any:
    return getattr(of, name).value if of.HasField(name) else None
