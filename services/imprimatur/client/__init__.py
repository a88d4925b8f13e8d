"""The public Python client: an asyncio `Client` for everything that the gateway serves.

It takes and returns the protobuf messages of `imprimatur.v1`: they are the public contract, and there is no
second set of classes to learn. What lives here is only what a caller would otherwise write again: deadlines,
safe repetition, watches that outlive a lost connection, pages as iterators, and one class of errors.

    async with Client("localhost:7443", api_key=key) as client:
        job = await client.submit(creative=Creative(creative_id="cr-1", headline="Fresh figs, daily"))
        job = await client.wait(job.id, until_terminal=False)

Nothing here imports a service, a store or the broker.
"""

from imprimatur.client.client import Client
from imprimatur.client.errors import ClientError
from imprimatur.client.submissions import submission
from imprimatur.client.watches import TERMINAL_STATES, is_settled, is_terminal

__all__ = ["TERMINAL_STATES", "Client", "ClientError", "is_settled", "is_terminal", "submission"]
