"""Creatives in files: the protobuf JSON form of `Creative`, with `images[].path` in place of the bytes.

An image may also be named by `assetId` or `url`, as in the contract.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from cli.commands import CommandFailed
from cli.output import note
from imprimatur.v1.creative_pb2 import Creative


@dataclass(frozen=True, kw_only=True)
class CreativeFile:
    """A creative and where it was read."""

    path: Path
    creative: Creative


def read_all(paths: Iterable[Path]) -> list[CreativeFile]:
    """The creatives of all files and folders, in that order; a folder's by name.

    In a folder, JSON files that are no creatives are skipped, with a note; a file that was named must be one.

    Raises:
        CommandFailed: a file cannot be read or is no creative.
    """
    found = [creative for path in paths for creative in (_folder(path) if path.is_dir() else [_file(path)])]
    if not found:
        raise CommandFailed(
            "there are no creatives in the folders given: a creative is a JSON object with a creativeId"
        )
    return found


def _folder(folder: Path) -> Iterator[CreativeFile]:
    for path in sorted(folder.glob("*.json")):
        document = _document(path)
        if isinstance(document, dict) and ("creativeId" in document or "creative_id" in document):
            yield CreativeFile(path=path, creative=_creative(path, document))
        else:
            note(f"skipped {path}: no creative, for it has no creativeId")


def _file(path: Path) -> CreativeFile:
    document = _document(path)
    if not isinstance(document, dict):
        raise CommandFailed(f"{path}: is no creative: it must hold one JSON object")
    return CreativeFile(path=path, creative=_creative(path, document))


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{path}: is not JSON: {error}") from error


def _creative(path: Path, document: dict[str, Any]) -> Creative:
    images = document.pop("images", [])
    try:
        creative = json_format.ParseDict(document, Creative())
        for number, image in enumerate(images):
            if not isinstance(image, dict):
                raise CommandFailed(f"{path}: images[{number}]: must be an object")
            place = image.pop("path", None)
            added = json_format.ParseDict(image, creative.images.add())
            if place is not None:
                added.data = _image(path, number, place)
                added.name = added.name or Path(place).name
    except (json_format.ParseError, TypeError) as error:
        raise CommandFailed(f"{path}: {error}") from error
    return creative


def _image(path: Path, number: int, place: object) -> bytes:
    """The image's bytes. It must lie beside the file or below: a seller's file must not send other files of ours."""
    folder = path.parent.resolve()
    image = (folder / str(place)).resolve()
    if not isinstance(place, str) or not image.is_relative_to(folder):
        raise CommandFailed(f"{path}: images[{number}].path: must lead into the folder of the file itself")
    try:
        return image.read_bytes()
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{path}: images[{number}].path: {place}: {error}") from error
