"""Secrets at rest: AES-256-GCM under one of several keys. No storage here, and no secret is ever logged.

The first key encrypts, every key decrypts: to change keys, put the new one in front and drop the old one once
nothing is sealed with it any more. A sealed secret is bound to its purpose, so that it cannot be moved to
another row and opened there.

Sealed form: 1 byte format, 4 bytes key id, 12 bytes nonce, then ciphertext and tag.
"""

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imprimatur.errors import ConfigurationError, ImprimaturError

KEY_BYTES = 32
_FORMAT = b"\x01"
_ID_BYTES = 4
_NONCE_BYTES = 12
_HEADER_BYTES = len(_FORMAT) + _ID_BYTES + _NONCE_BYTES
_TAG_BYTES = 16
_MODE = 0o600
_OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class VaultError(ImprimaturError):
    """A sealed secret cannot be opened."""


class UnknownVaultKey(VaultError):
    """It was sealed with a key that this vault does not have."""


class Tampered(VaultError):
    """It was changed, or sealed for another purpose."""


class Vault:
    """Seals and opens secrets.

    Args:
        keys: 32 bytes each; the first encrypts.

    Raises:
        ConfigurationError: no key, or one of another length.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ConfigurationError(f"the vault needs one key or more, of {KEY_BYTES} bytes each")
        self._ciphers = {_id_of(key): AESGCM(key) for key in reversed(keys)}
        self._sealing_id = _id_of(keys[0])

    def seal(self, secret: bytes, *, purpose: str) -> bytes:
        """Encrypt. Only the same `purpose` opens it again."""
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._sealing_id]
        return _FORMAT + self._sealing_id + nonce + cipher.encrypt(nonce, secret, _aad(purpose))

    def open(self, sealed: bytes, *, purpose: str) -> bytes:
        """Decrypt.

        Raises:
            UnknownVaultKey: none of this vault's keys sealed it.
            Tampered: the purpose is another, or the bytes were changed.
        """
        if len(sealed) < _HEADER_BYTES + _TAG_BYTES or not sealed.startswith(_FORMAT):
            raise Tampered("this is nothing that a vault of this version has sealed")
        cipher = self._ciphers.get(self._key_id(sealed))
        if cipher is None:
            raise UnknownVaultKey("the secret was sealed with another vault key: add that key behind the present one")
        nonce = sealed[_HEADER_BYTES - _NONCE_BYTES : _HEADER_BYTES]
        try:
            return cipher.decrypt(nonce, sealed[_HEADER_BYTES:], _aad(purpose))
        except InvalidTag:
            raise Tampered("the sealed secret was changed, or belongs elsewhere") from None

    @classmethod
    def from_text(cls, text: str, *, source: str = "the vault key") -> Self:
        """Keys as `new_key` writes them, separated by white space or commas; what follows a "#" is a comment.

        Raises:
            ConfigurationError: naming `source`.
        """
        lines = [line.partition("#")[0].replace(",", " ") for line in text.splitlines()]
        return cls([_decoded(word, source) for line in lines for word in line.split()] or _no_key(source))

    @classmethod
    def from_file(cls, path: Path, *, create: bool = False) -> Self:
        """Keys from a file that only its owner may read, one a line.

        Args:
            create: make the file with a fresh key if there is none. Two processes doing so agree on one.

        Raises:
            ConfigurationError: naming the file.
        """
        if create:
            _create(path)
        return cls.from_text(_read(path), source=str(path))

    @staticmethod
    def _key_id(sealed: bytes) -> bytes:
        return sealed[len(_FORMAT) : len(_FORMAT) + _ID_BYTES]


def new_key() -> str:
    """A fresh key, in base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"imprimatur vault key id\0" + key).digest()[:_ID_BYTES]


def _aad(purpose: str) -> bytes:
    return b"imprimatur\0" + purpose.encode()


def _decoded(word: str, source: str) -> bytes:
    try:
        key = base64.b64decode(word.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"{source}: a key must be {KEY_BYTES} bytes in base64 (44 characters)")
    return key


def _no_key(source: str) -> list[bytes]:
    raise ConfigurationError(f"{source}: holds no key")


def _create(path: Path) -> None:
    """Written aside and linked into place, so that nobody reads half a key and the first writer wins."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(new_key() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    except FileExistsError:
        return
    except OSError as fault:
        raise ConfigurationError(f"{path}: cannot be made: {fault.strerror}") from fault
    finally:
        aside.unlink()


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & _OPEN_TO_OTHERS:
                raise ConfigurationError(f"{path}: others than its owner may read it: run `chmod 600 {path}`")
            return file.read()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: holds no key") from None
    except OSError as fault:
        raise ConfigurationError(f"{path}: cannot be read: {fault.strerror}") from fault
