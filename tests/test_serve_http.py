"""HTTP around a served model: hosts that are answered, connections that end, valid JSON."""

import asyncio
import json

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from uvicorn.server import ServerState

from dlflax.inference import serve_http


@pytest.fixture
def client():
    """Of an application that came to 192.168.1.5:8000 and may be asked by app.example."""
    routes = [Route("/", lambda _: PlainTextResponse("yes"), methods=["GET", "POST"])]
    hosts = {*serve_http.LOCAL, "models.example", "fd00::1"}
    app = serve_http.HostCheck(Starlette(routes=routes), hosts, {"app.example"})
    return TestClient(app, base_url="http://192.168.1.5:8000")


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LocalHost:8000", "localhost.", "localhost.:1", "127.0.0.1:99", "[::1]:8000",
        "[0:0:0:0:0:0:0:1]", "[FD00::1]", "models.example", "MODELS.EXAMPLE:443", "192.168.1.5",
    ],
)  # fmt: skip
def test_hosts_that_are_answered(client, host):
    assert client.get("/", headers={"host": host}).text == "yes"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
        "evil.localhost", "models.example.evil", "xmodels.example", "192.168.1.6", "127.0.0.2",
        "2130706433", "127.1", "0x7f.1", "[::2]", "[fe80::1]", "", " ", "a b", "[::1", "::1]:80",
        "evil@localhost", "localhost@evil", "localhost/", "localhost:x", "localhost:80:80", "*",
        "localhost,evil.example", "app.example", "l\u00f6calhost", "a" * 9000,
    ],
)  # fmt: skip
def test_hosts_that_are_not_answered(client, host):
    """A page whose name was made to lead here is one of them (DNS rebinding)."""
    answer = client.get("/", headers={"host": host.encode("latin-1")})
    assert answer.status_code == 421 and len(answer.json()["error"]) < 300
    if host == "evil.example":
        assert "--allow-host evil.example" in answer.json()["error"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200), ("http://models.example:8000", 200), ("https://Models.Example:8000", 200),
        ("http://app.example", 200), ("https://APP.example:3000", 200),
        ("http://models.example", 403), ("http://models.example:80", 403), ("null", 403), ("", 403),
        ("http://evil.example", 403), ("http://localhost:8000", 403), ("file://", 403),
        ("http://models.example:8000.evil.example", 403), ("http://app.example.evil", 403),
        ("http://app.example@evil", 403), ("http://evil/app.example", 403),
    ],
)  # fmt: skip
def test_pages_of_other_sites_may_not_ask(client, origin, status):
    headers = {"host": "models.example:8000"} | ({} if origin is None else {"origin": origin})
    answer = client.post("/", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert "--allow-host" in answer.json()["error"]
    assert client.get("/", headers=headers).status_code == 200  # which shows them nothing


def test_json_is_valid():
    values = {"a": [float("nan"), 1.5, (float("-inf"), {"b": float("inf")})], "c": "é", "d": None}
    assert json.loads(serve_http.JSON(values).body) == {
        "a": [None, 1.5, [None, {"b": None}]], "c": "é", "d": None,
    }  # fmt: skip
    assert json.loads(serve_http.JSON({"text": "a\ud800"}).body) == {"text": "a\ud800"}


def on_connections(talk, seconds):
    """Awaits talk(connect, state) beside a server whose answers, to "/", are 8 MB."""

    async def app(scope, receive, send):
        size = 2**23 if scope["path"] == "/" else 1
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size - 1), "more_body": True})
        await send({"type": "http.response.body", "body": bytes(1)})

    async def go():
        config = uvicorn.Config(app, log_level="critical", timeout_keep_alive=60)
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: serve_http.Protocol(config, state, {}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        async with server:
            async with asyncio.timeout(seconds):
                await talk(lambda: asyncio.open_connection("127.0.0.1", port, limit=1024), state)
            while state.tasks or state.connections:
                await asyncio.sleep(0.01)

    asyncio.run(go())


HEAD = b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def ended(reader):
    """What is left to read of a connection that the server ends."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD[:-2], HEAD + b"GET /", HEAD])
def test_a_head_that_does_not_come_ends_the_connection(sent, monkeypatch):
    monkeypatch.setattr(serve_http, "IDLE_SECONDS", 0.2)

    async def talk(connect, _):
        reader, writer = await connect()
        writer.write(sent)
        answer = await ended(reader)
        assert answer.count(b" 200 ") == sent.count(HEAD)
        writer.close()

    on_connections(talk, 20)


def test_lines_that_never_end_and_bodies_that_nobody_reads(monkeypatch):
    monkeypatch.setattr(serve_http, "IDLE_SECONDS", 0.2)

    async def talk(connect, _):
        for begin, more in ((HEAD[:-2], b"X: y\r\n"), (b"POST" + HEAD[3:-2], b"1\r\nx\r\n")):
            if begin.startswith(b"POST"):
                begin += b"Transfer-Encoding: chunked\r\n\r\n"
            reader, writer = await connect()
            writer.write(begin)
            reading = asyncio.create_task(ended(reader))
            while not reading.done():
                writer.write(more)
                await asyncio.sleep(0.02)
            writer.close()

    on_connections(talk, 20)


@pytest.mark.parametrize("pause", [None, 0.07])
def test_a_client_that_does_not_read_is_left(pause, monkeypatch):
    """One that reads slowly gets all of it."""
    monkeypatch.setattr(serve_http, "IDLE_SECONDS", 0.4)

    async def talk(connect, state):
        reader, writer = await connect()
        writer.write(HEAD.replace(b"/small", b"/"))
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        if pause is None:
            while state.connections:
                await asyncio.sleep(0.01)
            assert len(await ended(reader)) < 2**23
        else:
            for _ in range(8):
                await reader.readexactly(2**20)
                await asyncio.sleep(pause)
        writer.close()

    on_connections(talk, 20)


def test_beyond_the_most_connections_the_oldest_that_waits_ends(monkeypatch):
    monkeypatch.setattr(serve_http, "MOST_CONNECTIONS", 3)

    async def talk(connect, _):
        connections = [await connect() for _ in range(3)]
        connections[0][1].write(HEAD)
        await connections[0][0].readuntil(b"\r\n\r\n\0")  # it has waited least
        connections += [await connect() for _ in range(2)]
        for i, (reader, writer) in enumerate(connections):
            if i not in (1, 2):
                writer.write(HEAD)
                await reader.readuntil(b"\r\n\r\n\0")
            else:
                assert await ended(reader) == b""
            writer.close()

    on_connections(talk, 20)
