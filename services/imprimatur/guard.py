"""Which addresses a service may post to, or fetch from, when a tenant names the URL. One guard for all of them.

A URL is checked three times: as text when it is given (`check_url`) and again when it is used, as the answer of the
name service, and as the concrete address of each connection about to be made. The last is the sure one: names can
change their addresses between two look-ups, and literal addresses bypass the name service. Whoever connects does so
by a `GuardedClient`.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohappyeyeballs import AddrInfoType, SocketFactoryType
from aiohttp import (
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from imprimatur.errors import ImprimaturError, InvalidRequest
from imprimatur.networks import kind_of

MAX_URL_CHARACTERS = 2000
_MAX_HOST_CHARACTERS = 253
_MAX_LABEL_CHARACTERS = 63
#: Look-ups at once. A slow name service holds a thread until it answers, so there are more than sockets need.
_LOOKUP_THREADS = 64
_NAMES_CACHED_SECONDS = 10
_CONNECT_SECONDS = 5.0

_NEVER_IN_A_URL = (
    (
        re.compile(r'[\x00-\x20\x7f\\<>"^`{|}]'),
        'must have no white space, control characters, \\, <, >, ", ^, `, {, | or }',
    ),
    (re.compile("#"), "must have no fragment"),
    (re.compile("^[^/?]*//[^/?]*@"), "must have no user name or password"),
    (
        re.compile(r"^[^/?]*//(?:\[[^/?]*\]|[^/?:\[]*):(?![0-9]*(?:[/?]|$))"),
        "must have a port in digits, or none",
    ),
    (re.compile(r"^[^/?]*//[^/?]*[/?].*[^\x00-\x7f]"), "must have other than ASCII characters in its host alone"),
)


class AddressForbidden(ImprimaturError, OSError):
    """The host leads to an address that this service must not connect to.

    An OSError too, so that a connect loop takes it as an address that does not work. The message names the host
    and the kind of address, not the address: it may reach the tenant, who is not to explore our network with it.
    """

    def __init__(self, host: str, kind: str) -> None:
        super().__init__(f"{host} leads to a forbidden address ({kind})")
        self.host = host
        self.kind = kind


class UrlForbidden(ImprimaturError):
    """A URL that was never to be used, by its text alone: a rule has changed since it was given."""


def as_forbidden(fault: BaseException) -> AddressForbidden | None:
    """The AddressForbidden behind what an HTTP client raised, if that is what it was."""
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, AddressForbidden):
            return cause
        cause = cause.__cause__
    return None


def in_words(fault: Exception) -> str:
    """Why there was no answer, in words of ours: another server's, or a resolver's, might tell of our network."""
    if isinstance(fault, ClientConnectorDNSError):
        return "the host name cannot be resolved"
    if isinstance(fault, ClientConnectorError) and isinstance(fault.os_error, ConnectionRefusedError):
        return "the connection was refused"
    return f"no answer ({type(fault).__name__})"


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The rules for one process.

    Args:
        allow_private: loopback, private and carrier-grade NAT addresses too. Link-local, metadata, multicast and
            reserved ones stay forbidden.
        allow_http: http besides https.
    """

    allow_private: bool
    allow_http: bool

    def check_url(self, url: str, field: str) -> None:
        """Refuse a URL that could never be posted to. Asks no name service.

        Raises:
            InvalidRequest: naming `field`.
        """
        fault = self.fault_in(url)
        if fault:
            raise InvalidRequest(field, fault, reason="INVALID_URL")

    def check_address(self, address: str, *, host: str = "") -> None:
        """Refuse a concrete IP address.

        Raises:
            AddressForbidden: naming `host`, or the address itself where there is no other name.
        """
        kind = kind_of(address, allow_private=self.allow_private)
        if kind:
            raise AddressForbidden(host or address, kind)

    def connector(self, *, limit: int = 0) -> TCPConnector:
        """A connector that connects to nothing forbidden. Make it inside the event loop that uses it.

        Args:
            limit: connections at once; 0 is no limit.
        """
        return TCPConnector(
            resolver=GuardedResolver(self),
            socket_factory=self.socket_factory(),
            limit=limit,
            ttl_dns_cache=_NAMES_CACHED_SECONDS,
        )

    def socket_factory(self) -> SocketFactoryType:
        """Makes the socket for one concrete address, if that may be connected to. In aiohttp's form."""

        def make(address_info: AddrInfoType) -> socket.socket:
            family, kind, protocol, _, address = address_info
            self.check_address(str(address[0]), host="the host")
            return socket.socket(family, kind, protocol)

        return make

    def fault_in(self, url: str) -> str:
        """What is wrong with a URL, to follow its name; empty when nothing is."""
        if not 0 < len(url) <= MAX_URL_CHARACTERS:
            return f"must have 1 to {MAX_URL_CHARACTERS} characters"
        if fault := next((text for pattern, text in _NEVER_IN_A_URL if pattern.search(url)), ""):
            return fault
        try:
            parsed = URL(url)  # the parser that the posting client uses
        except ValueError:
            return "is not a URL"
        if parsed.scheme not in (("https", "http") if self.allow_http else ("https",)):
            return "must begin with https://" + (" or http://" if self.allow_http else "")
        return self._fault_in_host(parsed.raw_host or "") or _fault_in_port(parsed)

    def _fault_in_host(self, host: str) -> str:
        if not host:
            return "must have a host"
        if ":" in host or _ends_in_number(host):
            return self._fault_in_literal(host)
        labels = host.removesuffix(".").split(".")
        if len(host) > _MAX_HOST_CHARACTERS or not all(_is_label(label) for label in labels):
            return "must have a valid host name"
        if labels[-1] == "localhost" and not self.allow_private:
            return "must not lead to a loopback address"
        return ""

    def _fault_in_literal(self, host: str) -> str:
        try:
            kind = kind_of(host, allow_private=self.allow_private)
        except ValueError:
            return "must have a host name or a plainly written IP address"
        return f"must not lead to a forbidden address ({kind})" if kind else ""


#: Who is not told otherwise connects to public addresses alone, by https.
STRICT = Guard(allow_private=False, allow_http=False)


class GuardedClient:
    """HTTP to URLs that tenants name: nothing forbidden is connected to, no redirect is followed, no cookie kept, no
    proxy or password of the environment heeded, and no compressed answer unpacked. Make it inside the event loop that
    uses it.

    Args:
        timeout_seconds: the longest that one request may take, its answer included.
        headers: of each request.
    """

    def __init__(self, guard: Guard, *, timeout_seconds: float, headers: Mapping[str, str]) -> None:
        self._guard = guard
        self._session = ClientSession(
            connector=guard.connector(),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=timeout_seconds, sock_connect=min(_CONNECT_SECONDS, timeout_seconds)),
            trust_env=False,
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", **headers},
        )

    @asynccontextmanager
    async def request(
        self, method: str, url: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[ClientResponse]:
        """`async with client.request("GET", url) as response: …`. How much of the answer is read is up to the caller.

        Raises:
            UrlForbidden: by its text.
            aiohttp.ClientError: it failed; `as_forbidden` says whether for the address that it leads to.
            TimeoutError: it took too long.
        """
        if wrong := self._guard.fault_in(url):
            raise UrlForbidden(f"the URL {wrong}")
        async with self._session.request(method, url, data=body, headers=headers, allow_redirects=False) as response:
            yield response

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


class GuardedResolver(AbstractResolver):
    """Asks the system's name service; one forbidden address among the answers blocks the host.

    It has threads of its own, so that a name that takes long to look up delays nobody else.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._threads = ThreadPoolExecutor(max_workers=_LOOKUP_THREADS, thread_name_prefix="names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """As AbstractResolver. Raises AddressForbidden."""
        answers = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port, family)
        for _family, _protocol, address in answers:
            self._guard.check_address(address, host=host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, protocol, address in answers
        ]

    async def close(self) -> None:
        """Wait for nothing: a look-up under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: socket.AddressFamily) -> Sequence[tuple[int, int, str]]:
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    return [(int(family), protocol, str(address[0])) for family, _, protocol, _, address in found]


def _fault_in_port(parsed: URL) -> str:
    return "" if parsed.port else "must have a port from 1 to 65535, or none"


def _ends_in_number(host: str) -> bool:
    """Whether the system might take the host for an IPv4 address, such as 127.1 or 0x7f000001 (WHATWG URL, 3.5)."""
    last = host.removesuffix(".").rpartition(".")[2].lower()
    return last.isdigit() or (last.startswith("0x") and all(digit in "0123456789abcdef" for digit in last[2:]))


def _is_label(label: str) -> bool:
    """Letters, digits, hyphens and underscores, as names in use have them."""
    return (
        0 < len(label) <= _MAX_LABEL_CHARACTERS
        and label.isascii()
        and all(character.isalnum() or character in "-_" for character in label)
        and not label.startswith("-")
    )
