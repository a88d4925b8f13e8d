"""`imprimatur assets`: images that are kept apart from the creatives that show them."""

from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cli import tables
from cli.commands import CommandFailed, Session, client_command
from cli.output import as_dict, complain, moment, note, plain
from imprimatur.client import ClientError
from imprimatur.v1.asset_service_pb2 import Asset

app = typer.Typer(help="Images, uploaded once and named by creatives.")

AssetArgument = Annotated[str, typer.Argument(metavar="ASSET_ID", help="64 hexadecimal digits.")]
ImagesArgument = Annotated[list[Path], typer.Argument(metavar="FILE…", exists=True, dir_okay=False)]


@client_command(app, "upload")
async def upload(session: Session, *, files: ImagesArgument) -> None:
    """Upload images (PNG, JPEG, GIF, WebP), and show the ids by which creatives name them (images[].assetId).

    The same image has the same id, however often it is uploaded. Files that are refused are named on standard error,
    and the exit code is then 1.
    """
    kept: list[tuple[Path, Asset]] = []
    for file in files:
        try:
            kept.append((file, await session.client.upload_asset(read(file))))
        except ClientError as error:
            if not error.field:
                raise
            complain(f"{file}: {error.message}")
    shown: list[dict[str, Any]] = [{"file": str(file), "asset": as_dict(asset)} for file, asset in kept]
    session.output.show({"results": shown}, lambda: _table(kept))
    if len(kept) < len(files):
        raise typer.Exit(1)


@client_command(app, "show")
async def show(session: Session, *, asset_id: AssetArgument) -> None:
    """Show what is known of an image, and how long it is kept at least."""
    asset = await session.client.asset(asset_id)
    session.output.show(asset, lambda: _table([(Path("-"), asset)]))


@client_command(app, "download")
async def download(
    session: Session,
    *,
    asset_id: AssetArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; must not be there yet.")],
) -> None:
    """Write an image to a file, to look at it. For reviewers and admins."""
    content = await session.client.download_asset(asset_id)
    try:
        with file.open("xb") as written:
            written.write(content)
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}") from error
    note(f"saved {file}")


@client_command(app, "delete")
async def delete(session: Session, *, asset_id: AssetArgument) -> None:
    """Remove an image before its time; not while an unfinished job shows it. For admins."""
    await session.client.delete_asset(asset_id)
    note(f"deleted {asset_id}")


def read(file: Path) -> bytes:
    """The file's bytes; raises CommandFailed."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}") from error


def _table(kept: list[tuple[Path, Asset]]) -> Table:
    made = tables.table("ASSET", "TYPE", "BYTES", "KEPT UNTIL", "FILE")
    for file, asset in kept:
        until = moment(asset.kept_until.ToDatetime(tzinfo=UTC)) if asset.HasField("kept_until") else "for ever"
        made.add_row(plain(asset.asset_id), plain(asset.media_type), f"{asset.size_bytes:,}", until, plain(file))
    return made
