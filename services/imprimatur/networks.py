"""Which IP addresses are not the public's. Tables and arithmetic; what follows from them is `guard`."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

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
#: ISATAP (RFC 5214): an interface identifier that ends in an IPv4 address, under whatever prefix.
_ISATAP = (0x00005EFE, 0x02005EFE)

_Network = IPv4Network | IPv6Network
_Address = IPv4Address | IPv6Address


def _by_precision(table: dict[str, str]) -> tuple[tuple[_Network, str], ...]:
    networks = [(ip_network(text), kind) for text, kind in table.items()]
    return tuple(sorted(networks, key=lambda item: -item[0].prefixlen))


_OWN_NETWORKS = _by_precision(_OWN)
_NEVER_NETWORKS = _by_precision(_NEVER)


def kind_of(text: str, *, allow_private: bool) -> str:
    """What kind of forbidden address it is; empty for one that may be connected to.

    Args:
        allow_private: loopback, private and carrier-grade NAT addresses may be.

    Raises:
        ValueError: it is no address.
    """
    if "%" in text:
        return "link-local"  # only those have zones
    address = ip_address(text)
    if kind := _kind_in(_NEVER_NETWORKS, address):
        return kind
    if kind := _kind_in(_OWN_NETWORKS, address):
        return "" if allow_private else kind
    if isinstance(address, IPv6Address):
        if address not in _PUBLIC_IPV6:
            return "reserved"
        if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
            return "ISATAP"
    return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _kind_in(networks: Sequence[tuple[_Network, str]], address: _Address) -> str:
    return next((kind for network, kind in networks if address in network), "")
