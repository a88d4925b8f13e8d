"""`imprimatur serve`, `gateway`, `reviewer` and `notifier`: the commands that run servers.

What they run is imported when they run: client commands start fast.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.administration import Data, Json, show_fields
from cli.connection import DEFAULT_DATA

if TYPE_CHECKING:
    from cli.embedded import Access
    from imprimatur.evidence import EngineIdentity

app = typer.Typer()
_PANEL = "Servers"


@app.command(rich_help_panel=_PANEL)
def serve(
    data: Data = DEFAULT_DATA,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 7443,
    metrics_port: Annotated[int, typer.Option(help="Port of /metrics and /readyz; 0 takes a free one.")] = 9100,
    slots: Annotated[int, typer.Option(min=1, max=1000, help="Reviews at once.")] = 8,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
    json: Json = False,
) -> None:
    """Run everything in one process: no server to install, everything kept in one folder.

    The engine is chosen by the environment, as for a reviewer (docs/engines.md); the default is the builtin one. So are
    the days for which finished work is kept (IMPRIMATUR_RETENTION_…, docs/settings.md), and whether the addresses of
    webhooks and images may be private, or http (IMPRIMATUR_ALLOW_…): unless set, if it listens on a loopback address.
    """
    from functools import partial

    from cli.embedded import serving
    from imprimatur.process import read_settings, traced
    from imprimatur.runtime import StopSignal, configure_logging, run_until_signalled
    from imprimatur.settings import AddressSettings, RetentionSettings, TracingSettings
    from reviewer.engines.apart import EngineApart
    from reviewer.engines.registry import open_engine
    from reviewer.settings import EngineSettings

    configure_logging(level=log_level)
    settings, where = read_settings(EngineSettings), read_settings(TracingSettings)
    retention = read_settings(RetentionSettings).retention()
    guard = read_settings(AddressSettings).guard_at(host)

    async def run(stop: StopSignal) -> None:
        engine = open_engine(settings)
        apart = EngineApart(partial(open_engine, settings.of_child()), identity=engine.identity)
        async with (
            traced(where, name="serve"),
            serving(
                data,
                engine,
                apart.opened,
                host=host,
                port=port,
                metrics_port=metrics_port,
                slots=slots,
                terms=settings.terms(),
                reuse_seconds=settings.evidence_reuse_seconds,
                retention=retention,
                guard=guard,
            ) as access,
        ):
            _announce(access, data, engine.identity, json=json)
            await stop.wait()

    run_until_signalled(run)


@app.command(rich_help_panel=_PANEL)
def gateway() -> None:
    """Run a gateway alone, with settings from the environment (docs/settings.md)."""
    from gateway.__main__ import run
    from gateway.settings import GatewaySettings
    from imprimatur.process import run_service

    run_service(GatewaySettings, run)


@app.command(rich_help_panel=_PANEL)
def reviewer() -> None:
    """Run a reviewer alone, with settings from the environment (docs/settings.md)."""
    from imprimatur.process import run_service
    from reviewer.__main__ import run
    from reviewer.settings import ReviewerSettings

    run_service(ReviewerSettings, run)


@app.command(rich_help_panel=_PANEL)
def notifier() -> None:
    """Run a notifier alone, with settings from the environment (docs/settings.md)."""
    from imprimatur.process import run_service
    from notifier.__main__ import run
    from notifier.settings import NotifierSettings

    run_service(NotifierSettings, run)


def _announce(access: "Access", data: Path, engine: "EngineIdentity", *, json: bool) -> None:
    shown = {
        "target": access.target,
        "api_key": access.api_key,
        "webhook_secret": access.webhook_secret,
        "metrics": access.metrics,
        "data": str(data),
        "engine": " ".join(filter(None, (engine.name, engine.model))),
    }
    where = "" if data == DEFAULT_DATA else f" --data {data}"
    show_fields(
        shown,
        json=json,
        remark=f"Imprimatur is ready; Ctrl-C stops it. In another terminal: imprimatur submit FILE.json --watch{where}",
    )
