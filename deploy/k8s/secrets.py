"""`python -m deploy.k8s.secrets | kubectl apply -f -`: fresh secrets for the local overlay, written to standard output.

Nothing is kept: who applies them twice cuts the database off from its password, and webhooks from the vault's key. For
production the operators make the passwords, and the vault's key belongs into your own store of secrets.
"""

import json
import secrets
import sys

from deploy.k8s.rendering import Manifest
from imprimatur.vault import new_key

NAMESPACE = "imprimatur"


def fresh() -> list[Manifest]:
    """The three secrets that the local overlay refers to."""
    database, broker = secrets.token_hex(24), secrets.token_hex(24)
    return [
        _secret(
            "imprimatur-database",
            password=database,
            url=f"postgresql://imprimatur:{database}@imprimatur-postgres:5432/imprimatur",
        ),
        _secret("imprimatur-broker", password=broker, url=f"amqp://imprimatur:{broker}@imprimatur-rabbitmq:5672/"),
        _secret("imprimatur-vault", key=new_key()),
    ]


def _secret(name: str, **values: str) -> Manifest:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/part-of": "imprimatur"}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}


def main() -> None:
    """Print them as one List."""
    json.dump({"apiVersion": "v1", "kind": "List", "items": fresh()}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
