"""What Terraform's client puts on the wire, sent to a real node: its methods, odd empty bodies, large states."""

import http.client
import json
from base64 import b64encode
from collections.abc import Iterator
from hashlib import md5
from typing import Any

import pytest

from raftspine.core.ledger.terraform import STATE_BYTES
from tests.support.cluster import LocalCluster
from tests.support.processes import Processes

pytestmark = pytest.mark.system

INFO = {"ID": "one", "Operation": "OperationTypeApply", "Info": "", "Who": "ada@here", "Version": "1.11.4",
        "Created": "2026-11-20T15:49:28.512376468Z", "Path": ""}  # fmt: skip


@pytest.fixture(scope="module")
def port(module_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> int:
    cluster = LocalCluster(module_processes, tmp_path_factory.mktemp("node"), nodes=1)
    cluster.start()
    return cluster.http["n1"]


@pytest.fixture
def client(port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    yield connection
    connection.close()


def ask(
    client: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **more: Any
) -> tuple[int, bytes]:
    """As Go's client sends it: with a body also its MD5."""
    headers = {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}
    if body is not None:
        headers |= {"Content-Type": "application/json", "Content-MD5": b64encode(md5(body).digest()).decode()}
    if more.get("chunked"):
        headers["Transfer-Encoding"] = "chunked"
        client.request(method, path, iter(()), headers, encode_chunked=True)
    else:
        client.request(method, path, body, headers)
    reply = client.getresponse()
    return reply.status, reply.read()


@pytest.mark.parametrize("chunked", [True, False])
def test_a_forced_unlock_has_an_empty_body(client: http.client.HTTPConnection, *, chunked: bool) -> None:
    path = f"/v1/terraform/forced%2F{chunked}"
    info = json.dumps(INFO).encode()
    assert ask(client, "LOCK", path, info)[0] == 200
    status, body = ask(client, "LOCK", path, info.replace(b'"one"', b'"two"'))
    assert status == 409
    assert json.loads(body)["ID"] == "one"
    status, body = ask(client, "UNLOCK", path, b"", chunked=chunked)
    assert (status, json.loads(body)["forced"]) == (200, True)
    assert ask(client, "LOCK", path, info.replace(b'"one"', b'"two"'))[0] == 200, "on the same connection"


def test_methods_that_every_proxy_knows(client: http.client.HTTPConnection) -> None:
    path, info = "/v1/terraform/plain/lock", json.dumps(INFO).encode()
    assert ask(client, "POST", path, info)[0] == 200
    assert ask(client, "GET", path)[0] == 200
    status, body = ask(client, "DELETE", path, info)
    assert (status, json.loads(body)["forced"]) == (200, False)
    assert ask(client, "GET", path)[0] == 404


def test_large_states(client: http.client.HTTPConnection) -> None:
    path = "/v1/terraform/large"
    start, end = b'{"version": 4, "serial": 1, "x": "', b'"}\n'
    state = start + b"x" * (STATE_BYTES - len(start) - len(end)) + end
    assert ask(client, "POST", path, state)[0] == 201
    assert ask(client, "GET", path) == (200, state)
    assert ask(client, "HEAD", path) == (200, b"")
    status, body = ask(client, "POST", path, state + b" ")
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")
    client.close()
    assert ask(client, "GET", path) == (200, state)
