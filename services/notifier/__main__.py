"""`python -m notifier`: settings from the environment, everything put together, until SIGTERM."""

from imprimatur.process import run_service, surroundings
from imprimatur.runtime import StopSignal, http_port
from imprimatur.webhooks import require_vault_opens
from notifier.announcer import Sweep
from notifier.deliverer import Pace
from notifier.room import Limits
from notifier.service import notifier
from notifier.settings import NotifierSettings


async def run(settings: NotifierSettings, stop: StopSignal) -> None:
    """Run a notifier as these settings say, until SIGTERM or SIGINT."""
    vault = settings.open_vault()
    limits = Limits(
        total=settings.webhook_concurrency,
        per_host=settings.webhook_concurrency_per_host,
        per_tenant=settings.webhook_concurrency_per_tenant,
    )
    pace = Pace(
        lease_seconds=settings.webhook_lease_seconds,
        pauses_seconds=settings.webhook_retry_seconds,
        poll_seconds=settings.webhook_poll_seconds,
    )
    sweep = Sweep(
        every_seconds=settings.webhook_sweep_seconds,
        older_than_seconds=settings.webhook_sweep_older_than_seconds,
    )
    async with (
        http_port(settings.http_host, settings.notifier_http_port) as http,
        surroundings(settings, http, name="notifier") as around,
    ):
        await require_vault_opens(around.database, vault)
        async with (
            notifier(
                around.database,
                around.broker,
                vault,
                settings.guard(),
                limits=limits,
                pace=pace,
                sweep=sweep,
                timeout_seconds=settings.webhook_timeout_seconds,
                drain_seconds=settings.drain_seconds,
            ) as running,
            http.ready({**around.checks(), "consumer": running.consuming}),
        ):
            await stop.wait()


if __name__ == "__main__":
    run_service(NotifierSettings, run)
