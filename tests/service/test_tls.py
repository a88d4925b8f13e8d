"""The gRPC port with certificates from files: who is let in, and who is not."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from gateway.server import Listener
from gateway.service import gateway
from imprimatur.errors import ConfigurationError
from imprimatur.v1.job_service_pb2 import GetStatsRequest
from tests.service.certificates import Authority, Issued
from tests.service.systems import Caller, System


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> Callable[..., Listener]:
    """A listener on files with a certificate for 127.0.0.1."""

    def listener(*, mutual: bool) -> Listener:
        ours = authority.issue("127.0.0.1")
        for name, content in (("chain", ours.chain), ("key", ours.key), ("clients", authority.root)):
            (tmp_path / f"{name}.pem").write_bytes(content)
        return Listener(
            host="127.0.0.1",
            port=0,
            certificate=tmp_path / "chain.pem",
            private_key=tmp_path / "key.pem",
            client_ca=tmp_path / "clients.pem" if mutual else None,
        )

    return listener


@asynccontextmanager
async def serving(system: System, listener: Listener) -> AsyncIterator[int]:
    async with gateway(
        system.database, system.broker, system.vault, system.guard, listener, drain_seconds=0.1
    ) as running:
        yield running.port


async def call(system: System, port: int, root: bytes | None, own: Issued | None = None) -> None:
    """One call, over TLS if there is a root to trust."""
    address = f"127.0.0.1:{port}"
    if root is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        chain, key = (own.chain, own.key) if own else (None, None)
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(root, key, chain))
    async with channel:
        me = Caller(channel, (await system.caller()).key)
        await me.jobs.GetStats(GetStatsRequest())


async def test_tls_serves_those_who_trust_its_authority(
    system_on_postgresql: System, authority: Authority, files: Callable[..., Listener]
) -> None:
    async with serving(system_on_postgresql, files(mutual=False)) as port:
        await call(system_on_postgresql, port, authority.root)
        for root in (None, Authority().root):  # plain text, and another authority
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(system_on_postgresql, port, root)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_lets_in_certificates_of_its_authority_alone(
    system_on_postgresql: System, authority: Authority, files: Callable[..., Listener]
) -> None:
    async with serving(system_on_postgresql, files(mutual=True)) as port:
        await call(system_on_postgresql, port, authority.root, authority.issue("a client"))
        for own in (None, Authority().issue("a stranger")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(system_on_postgresql, port, authority.root, own)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_wrong_files_are_a_wrong_configuration(
    system_on_postgresql: System, files: Callable[..., Listener], tmp_path: Path
) -> None:
    good = files(mutual=False)
    nowhere, noise = tmp_path / "nowhere.pem", tmp_path / "noise.pem"
    noise.write_text("not a certificate")
    wrong = (
        (good.certificate, None),  # the key is missing
        (nowhere, good.private_key),
        (good.certificate, nowhere),
        (noise, good.private_key),
    )
    for certificate, key in wrong:
        listener = Listener(host="127.0.0.1", port=0, certificate=certificate, private_key=key)
        with pytest.raises(ConfigurationError):
            async with serving(system_on_postgresql, listener):
                pass


async def test_a_part_of_what_tls_needs_never_opens_a_plain_text_port(
    system_on_postgresql: System, files: Callable[..., Listener]
) -> None:
    good = files(mutual=True)
    for part in (
        replace(good, certificate=None, private_key=None),
        replace(good, certificate=None, client_ca=None),
        replace(good, private_key=None, client_ca=None),
        replace(good, certificate=None),
        replace(good, private_key=None),
    ):
        with pytest.raises(ConfigurationError, match="IMPRIMATUR_TLS_CERTIFICATE and IMPRIMATUR_TLS_PRIVATE_KEY"):
            async with serving(system_on_postgresql, part):
                pass


async def test_a_port_that_is_taken_is_a_wrong_configuration(system_on_postgresql: System) -> None:
    listener = Listener(host="127.0.0.1", port=system_on_postgresql.port)
    with pytest.raises(ConfigurationError, match="cannot listen"):
        async with serving(system_on_postgresql, listener):
            pass
