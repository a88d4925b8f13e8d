"""Receive Imprimatur's webhooks: verify each with the public `standardwebhooks` package, keep what is genuine.

    IMPRIMATUR_WEBHOOK_SECRET=whsec_… python examples/webhook_receiver.py --out webhooks.jsonl

The secret is in the `client.json` that `imprimatur serve` leaves in its data folder, or in the answer that made
the endpoint. Each genuine message becomes one line of JSON: {"id", "headers", "body"}. A receiver of your own
should do the same four things, in this order: verify the bytes as they came, store, answer 2xx, then act.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

PATH = "/webhooks"
SECRET_VARIABLE = "IMPRIMATUR_WEBHOOK_SECRET"  # noqa: S105  # the variable's name
_SIGNED_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
_LARGEST_BYTES = 1024 * 1024


class Inbox:
    """Genuine messages, each kept once, in a file of JSON lines.

    Args:
        secret: "whsec_…".
        path: the file; what an earlier run kept there counts as received.
    """

    def __init__(self, secret: str, path: Path) -> None:
        self._webhook = Webhook(secret)
        self._file = path.open("a+", encoding="utf-8")
        self._file.seek(0)
        self._known = {json.loads(line)["id"] for line in self._file}

    async def receive(self, request: web.Request) -> web.Response:
        """204 once it is kept, also when it was before: a webhook is delivered at least once. 401 if not genuine."""
        body = await request.read()
        headers = {name: request.headers.get(name, "") for name in _SIGNED_HEADERS}
        try:
            message = self._webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError) as fault:
            print(f"refused a message that is not genuine: {fault}", file=sys.stderr, flush=True)
            return web.Response(status=401)
        if headers["webhook-id"] not in self._known:
            self._keep({"id": headers["webhook-id"], "headers": headers, "body": message})
        return web.Response(status=204)

    def _keep(self, message: dict[str, Any]) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()
        self._known.add(message["id"])


async def main(secret: str, out: Path, host: str, port: int) -> None:
    """Receive until SIGTERM or SIGINT; the first line printed ends with the address."""
    app = web.Application(client_max_size=_LARGEST_BYTES)
    app.add_routes([web.post(PATH, Inbox(secret, out).receive)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        print(f"Webhooks are received at http://{host}:{runner.addresses[0][1]}{PATH}", flush=True)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("webhooks.jsonl"), help="default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one; default: %(default)s")
    options = parser.parse_args()
    if not os.environ.get(SECRET_VARIABLE):
        raise SystemExit(f"error: set {SECRET_VARIABLE} to the secret, whsec_…")
    asyncio.run(main(os.environ[SECRET_VARIABLE], options.out, options.host, options.port))
