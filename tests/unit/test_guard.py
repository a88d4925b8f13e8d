"""Where a service may post to when a tenant names the URL."""

import asyncio
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from imprimatur.errors import InvalidRequest
from imprimatur.guard import AddressForbidden, Guard, as_forbidden

STRICT = Guard(allow_private=False, allow_http=False)
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
