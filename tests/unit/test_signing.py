"""Signatures, held against the public package and the example of the specification."""

import base64
import time

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from imprimatur.webhooks import MalformedSecret, key_of, new_secret
from notifier import signing

BODY = '{"type":"job.succeeded","data":{"name":"Grüße ✓"}}'.encode()


def headers(*secrets: str, body: bytes = BODY, timestamp: int | None = None) -> dict[str, str]:
    return signing.headers(secrets, message_id="msg-1", timestamp=timestamp or int(time.time()), body=body)


def test_the_example_of_the_specification_comes_out_as_printed() -> None:
    signed = signing.signature(
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        message_id="msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        timestamp=1649367553,
        body=b'{"email":"test@example.com","username":"test_user"}',
    )

    assert signed == "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="


def test_the_public_package_verifies_what_is_signed() -> None:
    secret = new_secret()

    assert Webhook(secret).verify(BODY, headers(secret))["type"] == "job.succeeded"


def test_during_a_rotation_a_receiver_may_know_either_secret() -> None:
    newer, older = new_secret(), new_secret()

    signed = headers(newer, older)

    assert len(signed["webhook-signature"].split(" ")) == 2
    for secret in (newer, older):
        Webhook(secret).verify(BODY, signed)


def test_another_secret_does_not_verify() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, headers(new_secret()))


@pytest.mark.parametrize("part", ["webhook-id", "webhook-timestamp", "body"])
def test_a_change_to_anything_signed_is_noticed(part: str) -> None:
    secret = new_secret()
    signed, body = headers(secret), BODY
    if part == "webhook-id":
        signed[part] = "msg-2"
    elif part == "webhook-timestamp":
        signed[part] = str(int(signed[part]) - 1)
    else:
        body += b" "

    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, signed)


def test_a_new_secret_is_the_prefix_and_base64_of_32_bytes() -> None:
    secret = new_secret()

    assert secret.startswith("whsec_")
    assert len(key_of(secret)) == 32
    assert secret != new_secret()


@pytest.mark.parametrize("length", [24, 64])
def test_keys_of_24_to_64_bytes_are_taken(length: int) -> None:
    assert key_of("whsec_" + base64.b64encode(bytes(length)).decode()) == bytes(length)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_not base64",
        base64.b64encode(bytes(32)).decode(),
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
    ],
)
def test_anything_else_is_no_secret_and_is_not_quoted(secret: str) -> None:
    with pytest.raises(MalformedSecret) as raised:
        key_of(secret)

    assert len(secret) < 10 or secret not in str(raised.value)
