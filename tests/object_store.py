"""A real S3 API for tests: moto's server, in a thread of this process, on a port of its own.

@pytest.fixture(scope="module")
def bucket(): with object_store() as store: yield store.make_bucket()      # "s3://name?endpoint_override=...&scheme=http"
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


class ObjectStore:
    """The running server."""

    def __init__(self, host: str, port: int) -> None:
        import boto3

        self.endpoint = f"http://{host}:{port}"
        self.options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        self.client: Any = boto3.client("s3", endpoint_url=self.endpoint)

    def make_bucket(self, prefix: str = "") -> str:
        """A new bucket; its URL, or that of a prefix in it."""
        name = f"fastfeat-{secrets.token_hex(4)}"  # all servers of a process share their buckets
        self.client.create_bucket(Bucket=name)
        return self.url(f"{name}/{prefix}" if prefix else name)

    def url(self, path: str) -> str:
        return f"s3://{path}?{self.options}"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start the server, with credentials for it in the environment; stop it at the end."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with mock.patch.dict(os.environ, CREDENTIALS):
        server.start()
        try:
            yield ObjectStore(*server.get_host_and_port())
        finally:
            server.stop()
