"""Which addresses a service may post to when a tenant names the URL. One guard for all of them.

A URL is checked three times: as text when it is given (`check_url`), as the answer of the name service, and as
the concrete address of each connection about to be made. The last is the sure one: names can change their
addresses between two look-ups, and literal addresses bypass the name service.
"""

import asyncio
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohappyeyeballs import AddrInfoType, SocketFactoryType
from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from imprimatur.errors import ImprimaturError, InvalidRequest

MAX_URL_CHARACTERS = 2000
_MAX_HOST_CHARACTERS = 253
_MAX_LABEL_CHARACTERS = 63
#: Look-ups at once. A slow name service holds a thread until it answers, so there are more than sockets need.
_LOOKUP_THREADS = 64
_NAMES_CACHED_SECONDS = 10

#: Networks of one's own, which `allow_private` opens.
_OWN = {
    "10.0.0.0/8": "private",
    "172.16.0.0/12": "private",
    "192.168.0.0/16": "private",
    "100.64.0.0/10": "carrier-grade NAT",
    "127.0.0.0/8": "loopback",
    "::1/128": "loopback",
    "fc00::/7": "private",
}
#: Never a receiver of anything, whoever runs the server. Sources: the IANA special-purpose address registries
#: (RFC 6890 and its updates), and the cloud providers' documentation of their metadata services.
_NEVER = {
    "100.100.100.200/32": "metadata",  # Alibaba Cloud
    "168.63.129.16/32": "metadata",  # Azure
    "192.0.0.192/32": "metadata",  # Oracle Cloud, older
    "fd00:ec2::/32": "metadata",  # AWS
    "fd20:ce::/32": "metadata",  # Google Cloud
    "0.0.0.0/8": "unspecified",
    "169.254.0.0/16": "link-local",  # with nearly every provider's metadata service
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "reserved",  # AS112
    "192.52.193.0/24": "reserved",  # AMT
    "192.88.99.0/24": "6to4 relay",
    "192.175.48.0/24": "reserved",  # AS112
    "198.18.0.0/15": "benchmark",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "::ffff:0:0/96": "IPv4-mapped",
    "::ffff:0:0:0/96": "IPv4-translated",
    "64:ff9b::/96": "NAT64",
    "64:ff9b:1::/48": "NAT64",
    "2001::/32": "Teredo",
    "2001::/23": "reserved",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "reserved",  # AS112
    "3fff::/20": "documentation",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
#: Both, for what guards the same at another place, such as network policies.
NOT_PUBLIC = _OWN | _NEVER
#: All of IPv6 that is given out to the public; whatever lies outside is not.
_PUBLIC_IPV6 = IPv6Network("2000::/3")

_NEVER_IN_A_URL = (
    (
        re.compile(r'[\x00-\x20\x7f\\<>"^`{|}]'),
        'must have no white space, control characters, \\, <, >, ", ^, `, {, | or }',
    ),
    (re.compile("#"), "must have no fragment"),
    (re.compile("^[^/?]*//[^/?]*@"), "must have no user name or password"),
)

_Network = IPv4Network | IPv6Network
_Address = IPv4Address | IPv6Address


def _by_precision(table: dict[str, str]) -> tuple[tuple[_Network, str], ...]:
    networks = [(ip_network(text), kind) for text, kind in table.items()]
    return tuple(sorted(networks, key=lambda item: -item[0].prefixlen))


_OWN_NETWORKS = _by_precision(_OWN)
_NEVER_NETWORKS = _by_precision(_NEVER)


class AddressForbidden(ImprimaturError, OSError):
    """The host leads to an address that this service must not connect to.

    An OSError too, so that a connect loop takes it as an address that does not work. The message names the host
    and the kind of address, not the address: it may reach the tenant, who is not to explore our network with it.
    """

    def __init__(self, host: str, kind: str) -> None:
        super().__init__(f"{host} leads to a forbidden address ({kind})")
        self.host = host
        self.kind = kind


def as_forbidden(fault: BaseException) -> AddressForbidden | None:
    """The AddressForbidden behind what an HTTP client raised, if that is what it was."""
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, AddressForbidden):
            return cause
        cause = cause.__cause__
    return None


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
        kind = self._forbidden_kind(address)
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
            kind = self._forbidden_kind(host)
        except ValueError:
            return "must have a host name or a plainly written IP address"
        return f"must not lead to a forbidden address ({kind})" if kind else ""

    def _forbidden_kind(self, text: str) -> str:
        """What kind of forbidden address it is; empty for an allowed one."""
        if "%" in text:
            return "link-local"  # only those have zones
        address = ip_address(text)
        if kind := _kind_in(_NEVER_NETWORKS, address):
            return kind
        if kind := _kind_in(_OWN_NETWORKS, address):
            return "" if self.allow_private else kind
        if isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6:
            return "reserved"
        return ""


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


def _kind_in(networks: Sequence[tuple[_Network, str]], address: _Address) -> str:
    return next((kind for network, kind in networks if address in network), "")


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
