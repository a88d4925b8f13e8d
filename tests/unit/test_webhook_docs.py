"""What docs/webhooks.md tells receivers to do works with what is sent."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from imprimatur.webhooks import new_secret
from notifier import signing

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_receiver_on_the_page_verifies_and_reads_the_message_on_the_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page: dict[str, Any] = {}
    exec(block("python"), page)
    secret, body = new_secret(), json.dumps(json.loads(block("json"))).encode()
    headers = signing.headers([secret], message_id="1", timestamp=int(time.time()), body=body)

    assert page["receive"](headers, body, secret) == 204
    assert capsys.readouterr().out == "crea-1 rejected\n"
    assert page["receive"](headers, body + b" ", secret) == 401
