"""`imprimatur limits`: what a tenant may take and spend, by way of a gateway; at the database it is `tenants`."""

from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli import tables
from cli.commands import Session, client_command
from cli.limit_options import (
    AssetBytes,
    DailyDollars,
    DailyTokens,
    LimitWord,
    OpenJobs,
    RunningJobs,
    Streams,
    SubmitsPerSecond,
    in_dollars,
    limit_shown,
)
from cli.output import plain
from imprimatur.budgets import MICROS
from imprimatur.v1.admin_service_pb2 import (
    GetTenantLimitsResponse,
    SetTenantLimitsResponse,
    TenantBudget,
    TenantLimits,
)

app = typer.Typer()

_LIMITS = ("submits_per_second", "open_jobs", "running_jobs", "streams", "asset_bytes")


@client_command(app, "limits")
async def limits(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    *,
    submits_per_second: SubmitsPerSecond = None,
    open_jobs: OpenJobs = None,
    running_jobs: RunningJobs = None,
    streams: Streams = None,
    asset_bytes: AssetBytes = None,
    daily_tokens: DailyTokens = None,
    daily_cost_dollars: DailyDollars = None,
) -> None:
    """Show what a tenant may take and spend and what it has spent today, or change parts of it.

    Needs a key of the role operator. 'default' is what the settings of gateways and reviewers say.
    """
    taken = {
        "submits_per_second": submits_per_second,
        "open_jobs": open_jobs,
        "running_jobs": running_jobs,
        "streams": streams,
        "asset_bytes": asset_bytes,
    }
    spent = {"daily_tokens": daily_tokens, "daily_cost_micros": daily_cost_dollars}
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
