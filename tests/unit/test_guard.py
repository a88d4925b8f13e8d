"""Where a service may post to, or fetch from, when a tenant names the URL."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from imprimatur import networks
from imprimatur.errors import InvalidRequest
from imprimatur.guard import STRICT, AddressForbidden, Guard, GuardedClient, UrlForbidden, as_forbidden
from imprimatur.settings import AddressSettings
from tests.service.listening import listening

LOCAL = Guard(allow_private=True, allow_http=True)

PUBLIC = [
    "93.184.215.14",
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::6810:84e5",
    "2a00:1450:4001::1",
]
OWN = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "fd00::1",
    "fc00::1",
]
NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "169.254.0.1",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2606:4700::5efe:7f00:1",
    "2606:4700::200:5efe:a9fe:a9fe",
    "64:ff9b::a9fe:a9fe",
    "::a9fe:a9fe",
    "169.254.170.2",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fe80::a9fe:a9fe",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "fd00:ec2::254",
    "4000::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    STRICT.check_address(address)


@pytest.mark.parametrize("address", OWN)
def test_addresses_of_ones_own_network_are_allowed_only_when_asked_for(address: str) -> None:
    with pytest.raises(AddressForbidden):
        STRICT.check_address(address)
    LOCAL.check_address(address)


@pytest.mark.parametrize("address", NEVER)
def test_addresses_that_are_never_a_receiver_are_always_refused(address: str) -> None:
    for guard in (STRICT, LOCAL):
        with pytest.raises(AddressForbidden):
            guard.check_address(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hook?token=a%20b",
        "https://EXAMPLE.com:8443/",
        "https://bücher.example/hook",
        "https://xn--bcher-kva.example/",
        "https://example.com./",
        "https://under_score.example.com/a@b",
        "https://8.8.8.8/",
        "https://[2606:4700::6810:84e5]/",
        "https://[2606:4700::6810:84e5]:8443/a:b?c:d",
        "https://example.com?next=https://other.example:x/",
    ],
)
def test_proper_urls_are_taken(url: str) -> None:
    STRICT.check_url(url, "url")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://@example.com/",
        "https://example.com#fragment",
        "https://example.com/#",
        "https://example.com:0/",
        "https://example.com:70000/",
        "https://example.com:port/",
        "https://example.com:+443/",
        "https://example.com:４４３/",
        "https://[2606:4700::6810:84e5]:+443/",
        "https://example.com/\u202efdp.exe",
        "https://example.com/?q=\u2028",
        "https://example.com/café",
        "https://exa mple.com/",
        "https://example.com/\nHost: other",
        "https://example.com\\@other.example/",
        "https://example.com/" + "a" * 2000,
        "https://" + "a" * 64 + ".example/",
        "https://" + "a." * 130 + "example/",
        "https://a..b/",
        "https://-a.example/",
        "https://ex%61mple.com/",
        "https://localhost/",
        "https://some.localhost/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://0x7f.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://１２７.0.0.1/",
        "https://127.0.0.1./",
        "https://10.0.0.1:8443/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[::1/",
    ],
)
def test_other_urls_are_refused_and_the_field_is_named(url: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        STRICT.check_url(url, "items[2].callback_url")

    assert raised.value.field == "items[2].callback_url"


def test_a_local_guard_takes_http_and_private_addresses_but_no_metadata() -> None:
    for url in ("http://localhost:8080/hook", "http://127.0.0.1:9/", "https://10.1.2.3/", "http://[::1]:80/"):
        LOCAL.check_url(url, "url")
    for url in ("http://169.254.169.254/", "http://127.1/", "http://0.0.0.0/", "ftp://localhost/"):
        with pytest.raises(InvalidRequest):
            LOCAL.check_url(url, "url")


@pytest.mark.parametrize(
    ("host", "environment", "private", "http"),
    [
        ("127.0.0.1", {}, True, True),
        ("localhost", {}, True, True),
        ("::1", {"ALLOW_HTTP": "false"}, True, False),
        ("127.0.0.1", {"ALLOW_HTTP": "false", "ALLOW_PRIVATE_ADDRESSES": "false"}, False, False),
        ("0.0.0.0", {}, False, False),
        ("::", {"ALLOW_HTTP": "true"}, False, True),
        ("192.168.1.7", {"ALLOW_PRIVATE_ADDRESSES": "true"}, True, False),
        ("gateway.example", {}, False, False),
    ],
)
def test_an_embedded_server_is_lenient_on_a_loopback_address_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, host: str, environment: dict[str, str], private: bool, http: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"IMPRIMATUR_{name}", value)
    assert AddressSettings().guard_at(host) == Guard(allow_private=private, allow_http=http)


# --- at the connection -----------------------------------------------------------------------------------


class Answers(AbstractResolver):
    """A name service that gives the addresses it was made with, unguarded."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        return None


class Receiver:
    """A listening socket that counts the connections made to it."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def accept(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """On 127.0.0.1."""
    made = Receiver()
    server = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


async def post(connector: aiohttp.TCPConnector, url: str) -> int:
    async with (
        aiohttp.ClientSession(connector=connector, trust_env=False) as session,
        session.post(url, data=b"{}", allow_redirects=False) as response,
    ):
        return response.status


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_connection_to_a_private_address_is_not_even_begun(receiver: Receiver, host: str) -> None:
    guard = Guard(allow_private=False, allow_http=True)

    with pytest.raises(aiohttp.ClientError) as raised:
        await post(guard.connector(), f"http://{host}:{receiver.port}/")

    forbidden = as_forbidden(raised.value)
    assert forbidden is not None
    assert forbidden.kind == "loopback"
    assert receiver.connections == 0


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("127.0.0.1", "127.0.0.2"), ("::1", "127.0.0.1")])
async def test_a_name_service_that_is_not_to_be_trusted_does_not_get_past_the_socket(
    receiver: Receiver, addresses: tuple[str, ...]
) -> None:
    guard = Guard(allow_private=False, allow_http=True)
    connector = aiohttp.TCPConnector(resolver=Answers(*addresses), socket_factory=guard.socket_factory())

    with pytest.raises(aiohttp.ClientError) as raised:
        await post(connector, f"http://rebinding.example:{receiver.port}/")

    assert as_forbidden(raised.value) is not None
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_local_guard_lets_the_connection_through(receiver: Receiver, host: str) -> None:
    assert await post(LOCAL.connector(), f"http://{host}:{receiver.port}/") == 204
    assert receiver.connections == 1


async def test_the_message_names_the_host_and_not_its_address(receiver: Receiver) -> None:
    guard = Guard(allow_private=False, allow_http=True)

    with pytest.raises(aiohttp.ClientError) as raised:
        await post(guard.connector(), f"http://localhost:{receiver.port}/")

    assert str(as_forbidden(raised.value)) == "localhost leads to a forbidden address (loopback)"


async def test_redirects_are_the_clients_to_refuse_and_the_guards_to_survive(receiver: Receiver) -> None:
    """Even a client that follows redirects reaches nothing forbidden: the literal address is checked, too."""
    guard = Guard(allow_private=True, allow_http=True)

    async def away(_request: web.Request) -> web.Response:
        raise web.HTTPFound("http://169.254.169.254/latest/meta-data/")

    app = web.Application()
    app.router.add_get("/", away)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(connector=guard.connector()) as session:
            with pytest.raises(aiohttp.ClientError) as raised:
                await session.get(f"http://127.0.0.1:{port}/")
    finally:
        await runner.cleanup()

    forbidden = as_forbidden(raised.value)
    assert forbidden is not None
    assert forbidden.kind == "link-local"


# --- every way to write this machine -----------------------------------------------------------------------

#: Hosts that some parser or resolver takes for 127.0.0.1 or ::1.
THIS_MACHINE = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "0177.0.0.1",
    "0177.1",
    "017700000001",
    "0x7f.0.0.1",
    "0x7f.1",
    "0X7F000001",
    "0x7f000001",
    "2130706433",
    "127.0.0.1.",
    "１２７.0.0.1",
    "127。0。0。1",
    "①②⑦.0.0.1",
    "%31%32%37.0.0.1",
    "0",
    "0.0.0.0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "ⓛocalhost",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[::]",
    "[::1%25lo]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
]


@pytest.fixture
async def everywhere() -> AsyncIterator[Receiver]:
    """On 127.0.0.1 and ::1, at the same port."""
    made = Receiver()
    first = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    made.port = first.sockets[0].getsockname()[1]
    async with first:
        try:
            second = await asyncio.start_server(made.accept, "::1", made.port)
        except OSError:  # no IPv6 here
            yield made
            return
        async with second:
            yield made


@pytest.fixture
async def client() -> AsyncIterator[GuardedClient]:
    """Strict, but for http, so that a test needs no certificate."""
    made = GuardedClient(Guard(allow_private=False, allow_http=True), timeout_seconds=5.0, headers={})
    yield made
    await made.close()


async def get(client: GuardedClient, url: str) -> tuple[int, bytes]:
    async with client.request("GET", url) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("host", THIS_MACHINE)
async def test_however_this_machine_is_written_no_connection_is_made(
    everywhere: Receiver, client: GuardedClient, host: str
) -> None:
    url = f"http://{host}:{everywhere.port}/"
    with pytest.raises(UrlForbidden):
        await get(client, url)
    # And by the connector alone, for a client that forgot to look at the text.
    guard = Guard(allow_private=False, allow_http=True)
    with pytest.raises((aiohttp.ClientError, ValueError)):
        await post(guard.connector(), url)
    assert everywhere.connections == 0


# --- names whose addresses change ----------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Iterator[list[str]]]:
    """The name service: for each name, what it answers one time after the other. All else is asked as usual."""
    known: dict[str, Iterator[list[str]]] = {}
    usual = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host not in known:
            return usual(host, port, *rest, **more)
        return [found for address in next(known[host]) for found in usual(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "::1"],
        ["2606:4700::6810:84e5", "10.0.0.1"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::a9fe:a9fe"],
    ],
)
async def test_one_forbidden_address_among_the_answers_blocks_the_host(
    everywhere: Receiver, client: GuardedClient, names: dict[str, Iterator[list[str]]], answer: list[str]
) -> None:
    names["mixed.example"] = iter([answer])
    with pytest.raises(aiohttp.ClientError) as raised:
        await get(client, f"http://mixed.example:{everywhere.port}/")
    forbidden = as_forbidden(raised.value)
    assert forbidden is not None
    assert forbidden.host == "mixed.example"
    assert everywhere.connections == 0


async def test_a_name_that_leads_elsewhere_at_its_second_look_up_is_blocked_then(
    everywhere: Receiver, names: dict[str, Iterator[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked at submit, and at the first use, it was a good one; no answer is remembered."""
    monkeypatch.setattr("imprimatur.guard._NAMES_CACHED_SECONDS", 0)
    monkeypatch.setattr("imprimatur.networks._OWN_NETWORKS", _without_loopback())
    client = GuardedClient(Guard(allow_private=False, allow_http=True), timeout_seconds=5.0, headers={})
    names["rebinding.example"] = iter([["127.0.0.1"], ["10.0.0.1", "127.0.0.1"]])
    url = f"http://rebinding.example:{everywhere.port}/"
    try:
        assert (await get(client, url))[0] == 204  # here, this machine stands for a public one
        assert everywhere.connections == 1
        with pytest.raises(aiohttp.ClientError) as raised:
            await get(client, url)
    finally:
        await client.close()
    assert as_forbidden(raised.value) is not None
    assert everywhere.connections == 1


def _without_loopback() -> Any:
    return tuple((network, kind) for network, kind in networks._OWN_NETWORKS if kind != "loopback")


async def test_the_answer_that_was_checked_is_the_one_that_is_connected_to(
    everywhere: Receiver, names: dict[str, Iterator[list[str]]]
) -> None:
    """Each connection looks a name up once: there is no second answer between the check and the socket."""
    guard = Guard(allow_private=False, allow_http=True)
    names["twice.example"] = iter([["192.0.2.1"], ["127.0.0.1"]])
    with pytest.raises(aiohttp.ClientError):
        await post(guard.connector(), f"http://twice.example:{everywhere.port}/")
    assert next(names["twice.example"]) == ["127.0.0.1"]
    assert everywhere.connections == 0


# --- what a client of ours does not do ------------------------------------------------------------------------


async def test_the_client_follows_no_redirect_keeps_no_cookie_and_unpacks_nothing() -> None:
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        headers = {"Location": "/elsewhere", "Set-Cookie": "who=you; Path=/", "Content-Encoding": "gzip"}
        return web.Response(status=302, body=b"not gzip at all", headers=headers)

    client = GuardedClient(LOCAL, timeout_seconds=5.0, headers={"User-Agent": "test"})
    async with listening(answer) as port:
        try:
            found = [await get(client, f"http://localhost:{port}/{number}") for number in range(2)]
        finally:
            await client.close()
    assert found == [(302, b"not gzip at all")] * 2
    assert [request.path for request in seen] == ["/0", "/1"]
    assert all("Cookie" not in request.headers for request in seen)
    assert {request.headers["Accept-Encoding"] for request in seen} == {"identity"}


async def test_no_proxy_and_no_password_of_the_environment_is_heeded(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{receiver.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response()

    client = GuardedClient(LOCAL, timeout_seconds=5.0, headers={})
    async with listening(answer) as port:
        try:
            assert (await get(client, f"http://localhost:{port}/"))[0] == 200
        finally:
            await client.close()
    assert "Authorization" not in seen[0].headers
    assert receiver.connections == 0


async def test_a_server_that_is_silent_is_left_after_the_time_allowed() -> None:
    gate = asyncio.Event()

    async def silent(_request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response()

    client = GuardedClient(LOCAL, timeout_seconds=0.05, headers={})
    async with listening(silent) as port:
        try:
            with pytest.raises(TimeoutError):
                await get(client, f"http://127.0.0.1:{port}/")
        finally:
            gate.set()
            await client.close()
