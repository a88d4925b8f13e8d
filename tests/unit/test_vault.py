"""Secrets at rest."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imprimatur.errors import ConfigurationError
from imprimatur.vault import Tampered, UnknownVaultKey, Vault, new_key


def vault(*texts: str) -> Vault:
    return Vault.from_text("\n".join(texts or (new_key(),)))


def test_what_is_sealed_opens_again() -> None:
    one = vault()

    assert one.open(one.seal(b"secret", purpose="a"), purpose="a") == b"secret"


def test_the_same_secret_is_sealed_differently_each_time_and_not_visibly() -> None:
    one = vault()

    sealed = {one.seal(b"secret", purpose="a") for _ in range(100)}

    assert len(sealed) == 100
    assert not any(b"secret" in item for item in sealed)


def test_a_secret_does_not_open_for_another_purpose() -> None:
    one = vault()

    with pytest.raises(Tampered):
        one.open(one.seal(b"secret", purpose="a"), purpose="b")


def test_a_change_of_any_byte_is_noticed() -> None:
    one = vault()
    sealed = one.seal(b"secret", purpose="a")

    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises((Tampered, UnknownVaultKey)):
            one.open(bytes(changed), purpose="a")
    with pytest.raises(Tampered):
        one.open(b"", purpose="a")


def test_another_key_says_that_it_is_the_wrong_one() -> None:
    with pytest.raises(UnknownVaultKey, match="another vault key"):
        vault().open(vault().seal(b"secret", purpose="a"), purpose="a")


def test_a_new_key_in_front_seals_while_the_old_one_still_opens() -> None:
    old_key, key = new_key(), new_key()
    sealed_before = vault(old_key).seal(b"secret", purpose="a")
    rotated = vault(key, old_key)
    sealed_after = rotated.seal(b"secret", purpose="a")

    assert rotated.open(sealed_before, purpose="a") == b"secret"
    with pytest.raises(UnknownVaultKey):
        vault(key).open(sealed_before, purpose="a")
    assert vault(key).open(sealed_after, purpose="a") == b"secret"


def test_the_text_form_takes_several_keys_commas_and_comments() -> None:
    first, second = new_key(), new_key()
    both = Vault.from_text(f"# made in March\n{first}, {second}  # the old one\n")

    assert Vault.from_text(first).open(both.seal(b"x", purpose="a"), purpose="a") == b"x"
    assert both.open(Vault.from_text(second).seal(b"x", purpose="a"), purpose="a") == b"x"


@pytest.mark.parametrize("text", ["", "# only a comment", "short", "not base64 at all!", "QUJD" * 10])
def test_a_text_without_a_proper_key_is_refused_by_name_and_not_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError, match="IMPRIMATUR_VAULT_KEY") as raised:
        Vault.from_text(text, source="IMPRIMATUR_VAULT_KEY")

    assert not text or text not in str(raised.value)


def test_a_vault_without_keys_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Vault([])


# --- files -----------------------------------------------------------------------------------------------


def test_a_created_file_belongs_to_its_owner_alone_and_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "vault.key"

    sealed = Vault.from_file(path, create=True).seal(b"secret", purpose="a")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Vault.from_file(path, create=True).open(sealed, purpose="a") == b"secret"
    assert [item.name for item in path.parent.iterdir()] == ["vault.key"]


def test_processes_that_create_the_file_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"

    with ThreadPoolExecutor(max_workers=8) as threads:
        vaults = list(threads.map(lambda _: Vault.from_file(path, create=True), range(32)))

    sealed = vaults[0].seal(b"secret", purpose="a")
    assert {one.open(sealed, purpose="a") for one in vaults} == {b"secret"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "vault.key"
    path.write_text(new_key())
    os.chmod(path, mode)

    with pytest.raises(ConfigurationError, match=f"{path}.*chmod 600"):
        Vault.from_file(path)


def test_a_missing_file_is_an_error_unless_it_is_to_be_created(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"vault\.key: cannot be read"):
        Vault.from_file(tmp_path / "vault.key")


def test_a_file_without_a_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    path.touch(mode=0o600)

    with pytest.raises(ConfigurationError, match=str(path)):
        Vault.from_file(path)
