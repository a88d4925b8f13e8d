"""`imprimatur evidence`: what engines found, kept for equal creatives."""

from typing import Annotated

import typer
from rich.console import RenderableType

from cli import tables
from cli.commands import Session, client_command
from cli.output import note, plain
from imprimatur.budgets import MICROS
from imprimatur.v1.admin_service_pb2 import EvidenceUse, ForgetEvidenceRequest, ForgetEvidenceResponse
from imprimatur.v1.admin_service_pb2 import GetEvidenceStatsResponse as Stats
from imprimatur.v1.creative_pb2 import EngineIdentity

app = typer.Typer(help="What engines found, kept for equal creatives. Needs a key of the role admin.")


@client_command(app, "stats")
async def stats(session: Session) -> None:
    """Show how much evidence is kept, how often it was reused, and what that saved."""
    answer = await session.client.evidence_stats()
    session.output.show(answer, lambda: _stats(answer))


@client_command(app, "forget")
async def forget(
    session: Session,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All of the tenant.")] = False,
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="What this engine made.")] = "",
    engine_version: Annotated[str, typer.Option("--engine-version", help="Only in this version.")] = "",
    model: Annotated[str, typer.Option("--model", help="Only with this model.")] = "",
    policy_version: Annotated[
        int, typer.Option("--policy-version", min=0, help="What was made under this version of the policy.")
    ] = 0,
    job: Annotated[str, typer.Option("--job", metavar="JOB_ID", help="What this job's review made.")] = "",
) -> None:
    """Forget evidence, so that equal creatives are examined anew. Results that rest on it stay as they are."""
    named = [name for name, given in (("everything", everything), ("engine", engine), ("job", job)) if given]
    if len(named) + bool(policy_version) != 1:
        raise typer.BadParameter("give one of --all, --engine, --policy-version and --job")
    if (engine_version or model) and not engine:
        raise typer.BadParameter("--engine-version and --model go with --engine")
    request = ForgetEvidenceRequest()
    if everything:
        request.everything = True
    elif engine:
        request.engine.CopyFrom(EngineIdentity(name=engine, version=engine_version, model=model))
    elif job:
        request.job_id = job
    else:
        request.policy_version = policy_version
    forgotten = await session.client.forget_evidence(request)
    session.output.show(ForgetEvidenceResponse(forgotten=forgotten), lambda: plain(f"{forgotten} forgotten"))
    note("equal creatives are examined anew" if forgotten else "nothing of that is kept")


def _stats(answer: Stats) -> RenderableType:
    shown = tables.table("ENGINE", "VERSION", "MODEL", "KEPT", "REUSED", "HIT RATE", "TOKENS SAVED", "COST SAVED")
    for one in answer.engines:
        shown.add_row(*(plain(part) for part in (one.engine.name, one.engine.version, one.engine.model)), *_use(one))
    shown.add_row("all", "", "", *_use(answer.total))
    return shown


def _use(use: EvidenceUse) -> tuple[str, ...]:
    cost = f"${use.cost_micros_saved / MICROS:.2f}"
    return str(use.entries), str(use.hits), f"{use.hit_rate:.1%}", f"{use.tokens_saved:,}", cost
