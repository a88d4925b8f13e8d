"""Which server a command speaks to, and with which key: from options, the environment, or what `serve` left.

`imprimatur serve` writes `client.json` into its data folder (mode 0600): {"target": …, "api_key": …,
"webhook_secret": …}. A key from there is only ever sent to the target from there.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from imprimatur.client import Client
from imprimatur.errors import ConfigurationError

CLIENT_FILE = "client.json"
DEFAULT_DATA = Path("imprimatur-data")

#: A person waits: say soon that nobody answers.
_DEADLINE_SECONDS = 20.0
_RETRY_SECONDS = 3.0
_PATIENCE_SECONDS = 120.0

_PANEL = "Connection"
TargetOption = Annotated[
    str | None, typer.Option("--target", envvar="IMPRIMATUR_TARGET", help="host:port", rich_help_panel=_PANEL)
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="IMPRIMATUR_API_KEY",
        help="Better by its variable: others on this machine may see a command line.",
        rich_help_panel=_PANEL,
    ),
]
TlsOption = Annotated[
    bool | None,
    typer.Option("--tls/--no-tls", help="Default: TLS, unless the target is this machine.", rich_help_panel=_PANEL),
]
CaFileOption = Annotated[Path | None, typer.Option("--ca-file", help="PEM of whom to trust.", rich_help_panel=_PANEL)]
CertFileOption = Annotated[
    Path | None, typer.Option("--cert-file", help="PEM of the client's certificate (mTLS).", rich_help_panel=_PANEL)
]
KeyFileOption = Annotated[
    Path | None, typer.Option("--key-file", help="PEM of its private key.", rich_help_panel=_PANEL)
]
DataOption = Annotated[
    Path,
    typer.Option("--data", envvar="IMPRIMATUR_DATA", help="The data folder of `serve`.", rich_help_panel=_PANEL),
]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How to reach the server."""

    target: str
    api_key: str = field(repr=False)
    named_in: Path | None = None  #: the file that names the target, where no option does
    tls: bool | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def told(self) -> str:
        """The target, and who named it."""
        return f"{self.target} (from {self.named_in})" if self.named_in else self.target

    def open(self) -> Client:
        """A client for it; raises ConfigurationError where a file or option is wrong."""
        try:
            return Client(
                self.target,
                api_key=self.api_key,
                tls=self.tls,
                root_certificates=_read(self.ca_file),
                client_certificate=_read(self.cert_file),
                client_key=_read(self.key_file),
                deadline_seconds=_DEADLINE_SECONDS,
                retry_seconds=_RETRY_SECONDS,
                patience_seconds=_PATIENCE_SECONDS,
            )
        except ValueError as error:
            raise ConfigurationError(str(error)) from error


def resolve(
    *,
    target: TargetOption = None,
    api_key: ApiKeyOption = None,
    tls: TlsOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    key_file: KeyFileOption = None,
    data: DataOption = DEFAULT_DATA,
) -> Connection:
    """The connection that the options ask for; raises ConfigurationError, naming what is missing."""
    named_in = None
    if not target or not api_key:
        found = _left_by_serve(data)
        api_key = api_key or (found.get("api_key") if target in {None, "", found.get("target")} else None)
        named_in = None if target else data / CLIENT_FILE
        target = target or found.get("target")
    if not target:
        raise ConfigurationError(
            f"no server is named, and {data / CLIENT_FILE} is not there: start one here with 'imprimatur serve', "
            "or give --target and --api-key (IMPRIMATUR_TARGET, IMPRIMATUR_API_KEY)"
        )
    if not api_key:
        raise ConfigurationError(f"no key for {target}: give --api-key, or set IMPRIMATUR_API_KEY")
    return Connection(
        target=target,
        api_key=api_key.strip(),
        named_in=named_in,
        tls=tls,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
    )


def _left_by_serve(data: Path) -> dict[str, str]:
    file = data / CLIENT_FILE
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file} is not what 'imprimatur serve' writes")
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from error
