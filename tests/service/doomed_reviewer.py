"""`python -m tests.service.doomed_reviewer DATABASE_URL BROKER_URL FOLDER`: a reviewer whose engine may kill it.

The engine runs in the reviewer's own process, and so takes it along; wired as `reviewer.__main__` wires it.
"""

import sys
from functools import partial
from pathlib import Path

from imprimatur.broker.rabbitmq import RabbitMQBroker
from imprimatur.runtime import StopSignal, run_until_signalled
from imprimatur.storage.database import Database
from reviewer.engines.apart import EngineApart
from reviewer.service import reviewer
from tests import deadly
from tests.deadly import DeadlyEngine

SLOTS = 16
LEASE_SECONDS = 3.0


async def run(database_url: str, broker_url: str, folder: Path, stop: StopSignal) -> None:
    """Until SIGTERM, or until a creative strikes."""
    database, lease_database = Database(database_url), Database(database_url, pool_size=1)
    broker = RabbitMQBroker(broker_url, name="doomed")
    opener = partial(DeadlyEngine, folder)
    await broker.start()
    try:
        async with reviewer(
            database,
            lease_database,
            broker,
            opener(),
            EngineApart(opener, identity=deadly.IDENTITY).opened,
            slots=SLOTS,
            lease_seconds=LEASE_SECONDS,
            drain_seconds=0.0,
        ):
            await stop.wait()
    finally:
        await broker.close()
        await lease_database.close()
        await database.close()


if __name__ == "__main__":
    run_until_signalled(partial(run, sys.argv[1], sys.argv[2], Path(sys.argv[3])))
