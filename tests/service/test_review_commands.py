"""`imprimatur review …` and `imprimatur appeal` as scripts run them, against a real gateway."""

import asyncio
from typing import Any

import pytest

from cli.pictures import dimensions_of
from tests.patience import PATIENCE_SECONDS
from tests.service import engines
from tests.service.systems import Caller, System, on_sqlite
from tests.service.test_cli import Ran, run, start
from tests.service.test_people import waiting

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\x2c\0\0\0\xfa"


@on_sqlite
async def test_a_script_takes_decides_and_looks_back(system: System, me: Caller) -> None:
    first, second = await waiting(me, system, engines.HUMAN, engines.HUMAN)
    access: dict[str, Any] = {"IMPRIMATUR_TARGET": f"127.0.0.1:{system.port}", "IMPRIMATUR_API_KEY": str(me.key)}

    async def done(*arguments: str) -> Ran:
        return await run(*arguments, **access)

    watch = await start("review", "watch", "--json", **access)
    assert watch.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        snapshot = [await watch.stdout.readline() for _ in range(3)]
    assert b"snapshotComplete" in snapshot[-1]
    taken = (await done("review", "next", "--subject", "cr-1", "--reviewer", "ada", "--json")).json
    assert (taken["job"]["id"], taken["claimedBy"]) == (second.id, "ada")
    listed = (await done("review", "list", "--held-by", "ada", "--json")).json
    assert [one["job"]["id"] for one in listed["reviews"]] == [second.id]
    nothing = await done("review", "next", "--subject", "cr-1")
    assert (nothing.code, nothing.err) == (1, "error: nothing that matches is free\n")
    stale = await done(
        *("review", "decide", second.id, "reject", "--reason", "No.", "--reviewer", "ada", "--token", first.id)
    )
    assert (stale.code, "the token is not that of the present claim" in stale.err) == (1, True)
    assert (await done("review", "release", second.id, "--reviewer", "ada")).code == 0
    decided = await done("review", "decide", second.id, "reject", "--reason", "No.", "--reviewer", "ada", "--json")
    assert decided.json["creativeReview"]["humanReview"]["agreement"] == "AGREEMENT_NO_ADVICE"
    audit = (await done("review", "audit", "--person", "ada", "--json")).json
    words = [one["action"].removeprefix("AUDIT_ACTION_").lower() for one in audit["entries"]]
    assert words == ["decided", "released", "claimed"]
    stats = await done("review", "stats")
    assert "ada" in stats.out
    assert "everybody" in stats.out
    appeal = (await done("appeal", second.id, "--reason", "It is a parody.", "--json")).json
    assert appeal["appealOf"] == second.id
    watch.terminate()
    await watch.wait()


@on_sqlite
async def test_the_desk_wants_a_terminal_and_options_behind_the_command(system: System, me: Caller) -> None:
    access: dict[str, Any] = {"IMPRIMATUR_TARGET": f"127.0.0.1:{system.port}", "IMPRIMATUR_API_KEY": str(me.key)}
    alone = await run("review", **access)
    assert (alone.code, alone.err.startswith("error: this needs a terminal;")) == (1, True)
    before = await run("review", "--reviewer", "ada", "list", **access)
    assert (before.code, "put options behind 'list'" in before.err) == (2, True)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (PNG, (300, 250)),
        (b"GIF89a\x2c\x01\xfa\x00", (300, 250)),
        (b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0\x2b\x01\0\xf9\0\0", (300, 250)),
        (b"\xff\xd8\xff\xe0\0\4ab\xff\xc0\0\x0b\x08\0\xfa\1\x2c", (300, 250)),
        (PNG[:18], None),
        (b"\xff\xd8\xff", None),
        (b"not an image", None),
        (b"", None),
    ],
)
def test_the_size_of_an_image_is_read_from_its_first_bytes(data: bytes, size: tuple[int, int] | None) -> None:
    assert dimensions_of(data) == size
