"""Submit one creative and watch its review, against `imprimatur serve`.

    imprimatur serve &
    python examples/submit_and_watch.py

It takes the address and the key from the file that `serve` leaves in its data folder; elsewhere they come from
wherever you keep secrets.
"""

import asyncio
import json
import os
from contextlib import aclosing
from pathlib import Path

from imprimatur.client import Client, ClientError, is_settled
from imprimatur.v1.creative_pb2 import Creative, Decision
from imprimatur.v1.job_pb2 import PRIORITY_HIGH, JobState

CREATIVE = Creative(
    creative_id="example-1",
    name="Orchard open day",
    headline="Pick your own apples this Saturday",
    body="Forty varieties, a cider press for the children to turn, and tea in the barn until five.",
    advertiser="Hollin Bank Orchard",
    language="en-GB",
)


def left_by_serve() -> dict[str, str]:
    """{"target": …, "api_key": …}"""
    folder = Path(os.environ.get("IMPRIMATUR_DATA", "imprimatur-data"))
    left: dict[str, str] = json.loads((folder / "client.json").read_text())
    return left


async def main(left: dict[str, str]) -> None:
    """Submit, watch until it is decided or a person is asked, and show why."""
    async with Client(left["target"], api_key=left["api_key"]) as client:
        job = await client.submit(creative=CREATIVE, priority=PRIORITY_HIGH, labels={"from": "the example"})
        print("accepted", job.id)
        async with aclosing(client.watch(job.id)) as versions:
            async for job in versions:
                print(JobState.Name(job.state), f"{job.progress.percent}%", job.progress.message)
                if is_settled(job):
                    break
        review = job.creative_review
        print(Decision.Name(review.decision), "because:", review.ai_review.reason)


if __name__ == "__main__":
    try:
        asyncio.run(main(left_by_serve()))
    except ClientError as error:
        raise SystemExit(f"{error.code.name} {error.reason}: {error.message}") from error
