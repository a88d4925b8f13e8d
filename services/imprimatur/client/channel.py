"""The channel to the gateways: where they are, with TLS or without, how connections are kept. No calls here."""

import ipaddress
import json

import grpc
from grpc import aio

#: How often a connection with an open call is probed. `gateway.server` allows a probe each 10 s; a gRPC server that
#: is not told so allows one in 300 s and answers more with GOAWAY too_many_pings.
KEEPALIVE_SECONDS = 30.0
#: How long a probe may stay unanswered before the connection counts as lost.
KEEPALIVE_TIMEOUT_SECONDS = 20.0
#: A lost connection is tried again after so long at first, and after so long at most.
FIRST_RECONNECT_SECONDS = 0.2
LONGEST_RECONNECT_SECONDS = 3.0
#: Pages of jobs and reviews with images outgrow gRPC's 4 MiB.
LARGEST_ANSWER_BYTES = 64 * 1024 * 1024

#: Calls are spread over all gateways that the name resolves to; repetition is `calls`' business.
_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


def open_channel(
    target: str,
    *,
    tls: bool | None = None,
    root_certificates: bytes | None = None,
    client_certificate: bytes | None = None,
    client_key: bytes | None = None,
    keepalive_seconds: float = KEEPALIVE_SECONDS,
) -> aio.Channel:
    """A channel to `target` ("host:port" or any gRPC name); it connects with the first call.

    Args:
        tls: None decides: with TLS, unless the target is this machine and no certificate is given.
        root_certificates: PEM of whom to trust; None trusts what gRPC ships.
        client_certificate: PEM chain that shows who we are (mTLS); needs `client_key`.
        client_key: PEM of its private key.

    Raises:
        ValueError: the options contradict each other.
    """
    certificates = (root_certificates, client_certificate, client_key)
    if (client_certificate is None) != (client_key is None):
        raise ValueError("client_certificate and client_key belong together: give both or neither")
    if tls is False and any(certificates):
        raise ValueError("certificates are given, but tls is False")
    options = _options(keepalive_seconds)
    if tls or (tls is None and (any(certificates) or not is_local(target))):
        credentials = grpc.ssl_channel_credentials(root_certificates, client_key, client_certificate)
        return aio.secure_channel(target, credentials, options=options)
    return aio.insecure_channel(target, options=options)


def is_local(target: str) -> bool:
    """Whether all of the target is this machine, so that nobody can listen in."""
    scheme, _, rest = target.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    addresses = rest if scheme in {"dns", "ipv4", "ipv6"} else target
    return all(_is_loopback(address) for address in addresses.rpartition("/")[2].split(","))


def _is_loopback(address: str) -> bool:
    bracketed = address.startswith("[")
    host = address[1:].partition("]")[0] if bracketed else address.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _options(keepalive_seconds: float) -> list[tuple[str, str | int]]:
    return [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.max_receive_message_length", LARGEST_ANSWER_BYTES),
        ("grpc.keepalive_time_ms", _ms(keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _ms(KEEPALIVE_TIMEOUT_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),  # no limit: a quiet watch is probed as well
        ("grpc.initial_reconnect_backoff_ms", _ms(FIRST_RECONNECT_SECONDS)),
        ("grpc.max_reconnect_backoff_ms", _ms(LONGEST_RECONNECT_SECONDS)),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
