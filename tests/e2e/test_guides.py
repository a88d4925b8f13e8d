"""Every command that a guide shows is run as it stands there, on three services that work.

A fence says what it needs: `sh` runs anywhere, `sh server` stays until it is stopped, `sh cluster` needs a cluster or
a container engine and is not run here. What a reader replaces (JOB_ID, my-team, the usual ports) is replaced.
"""

import asyncio
import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import free_port
from deploy.local.stack import REPOSITORY, observe
from imprimatur.identity import new_id
from tests.e2e import jobs
from tests.e2e.processes import Child, Trio, command
from tests.patience import PATIENCE_SECONDS

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_KINDS = ("sh", "sh server", "sh cluster")
_STARTS_EVERYTHING = re.compile(r"^make (up|panels)\b", re.MULTILINE)
_SHELLS = ("sh", "bash", "shell", "console", "zsh")
_SECONDS = 2 * PATIENCE_SECONDS
#: The example that a person decides.
_WINE = 17
#: What `rabbitmqctl` on the node is to an operator.
_RABBITMQCTL = """#!{python}
import sys
from pathlib import Path
from deploy.local.rabbitmq import PrivateRabbitMQ
print(PrivateRabbitMQ.attach(Path({folder!r})).ctl(*sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """What stands between two fences of a page."""

    page: Path
    number: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}#{self.number}"


def guides() -> list[Path]:
    """The pages that tell an operator what to type."""
    pages = [REPOSITORY / "docs" / f"{name}.md" for name in ("operations", "monitoring", "tracing")]
    return sorted([*pages, *REPOSITORY.glob("docs/deployment/*.md"), *REPOSITORY.glob("docs/runbooks/*.md")])


def blocks() -> list[Block]:
    """Every fence of every guide that holds commands."""
    return [
        Block(page=page, number=number, kind=fence["info"].strip(), text=fence["text"])
        for page in guides()
        for number, fence in enumerate(_FENCE.finditer(page.read_text(encoding="utf-8")), 1)
        if fence["info"].split(" ")[0] in _SHELLS
    ]


def test_every_fence_of_commands_says_what_it_needs() -> None:
    assert len(blocks()) > 20
    assert not [str(block) for block in blocks() if block.kind not in _KINDS]


@pytest.fixture(scope="module")
def replaced(trio: Trio) -> dict[str, str]:
    """What stands in the guides, and what it is here: the stack's own jobs, keys, ports and folders."""
    stack = trio.stack
    prometheus = observe(stack, None, die_with_parent=True)
    job_id = asyncio.run(_a_job_that_waits(trio))
    _imprimatur(stack.environ, "tenants", "create", "my-team")
    [key] = _imprimatur(stack.environ, "keys", "list", "my-team")["items"]
    return {
        "JOB_ID": job_id,
        "KEY_ID": key["id"],
        "imp_KEY": stack.api_key,
        "tenants create my-team": "tenants create another-team",
        ".local": str(stack.folder),
        "localhost:7443": stack.target,
        "localhost:9090": f"127.0.0.1:{prometheus.port}",
        "localhost:9101": f"127.0.0.1:{stack.ports['gateway']}",
        "localhost:9102": f"127.0.0.1:{stack.ports['reviewer']}",
        "localhost:9103": f"127.0.0.1:{stack.ports['notifier']}",
    }


def commands() -> list[Any]:
    """Those that run anywhere. What starts servers and services anew takes a minute or two."""
    slow = {True: [pytest.mark.soak], False: []}
    return [
        pytest.param(block, id=str(block), marks=slow[bool(_STARTS_EVERYTHING.search(block.text))])
        for block in blocks()
        if block.kind == "sh"
    ]


@pytest.mark.parametrize("block", commands())
def test_a_command_of_a_guide_works(
    block: Block, trio: Trio, replaced: dict[str, str], children: list[Child], tmp_path: Path
) -> None:
    script = "set -euo pipefail\n" + _filled_in(block.text, replaced)
    shell = Child(["bash", "-c", script], tmp_path / "log", _as_a_reader(trio, tmp_path))
    children.append(shell)
    assert shell.wait(_SECONDS) == 0, f"{script}\n{shell.output}"


@pytest.mark.parametrize("block", [block for block in blocks() if block.kind == "sh server"], ids=str)
def test_a_server_of_a_guide_starts_and_stops(block: Block, children: list[Child], tmp_path: Path) -> None:
    port = free_port()
    text = block.text.replace("7443", str(port)).replace("9100", "0").replace("imprimatur-data", str(tmp_path / "data"))
    server = Child(["bash", "-c", f"exec {text}"], tmp_path / "log", {**os.environ, "PATH": _path()})
    children.append(server)
    server.until(lambda: "Imprimatur is ready" in server.output, text)
    server.send(signal.SIGINT)
    assert server.wait(_SECONDS) == 0


async def _a_job_that_waits(trio: Trio) -> str:
    async with trio.client() as client:
        creative = jobs.examples()[_WINE]
        creative.creative_id += f"-{new_id()}"  # the guides submit the examples themselves
        job = await client.submit(creative=creative)
        await client.wait(job.id, _SECONDS, until_terminal=False)
        return job.id


def _imprimatur(environ: dict[str, str], *words: str) -> Any:
    done = command(*words, "--json", environ=environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _as_a_reader(trio: Trio, own: Path) -> dict[str, str]:
    """The environment of somebody who has followed the guide so far, with a folder of their own for `make up`."""
    names = ("IMPRIMATUR_DATABASE_URL", "IMPRIMATUR_VAULT_KEY_FILE")
    kept = {name: trio.stack.environ[name] for name in names}
    programs = own / "bin"
    programs.mkdir()
    control = programs / "rabbitmqctl"
    control.write_text(_RABBITMQCTL.format(python=sys.executable, folder=str(trio.stack.folder / "rabbitmq")))
    control.chmod(0o755)
    reader = {
        "PATH": f"{programs}{os.pathsep}{_path()}",
        "PYTHONPATH": str(REPOSITORY),
        "IMPRIMATUR_DATA": str(trio.stack.folder),
        "LOCAL": str(own / "local"),
    }
    return {**os.environ, **kept, **reader}


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _filled_in(text: str, replaced: dict[str, str]) -> str:
    for shown, here in replaced.items():
        text = text.replace(shown, here)
    return text
