"""HTTP around the answers: valid JSON, hosts that are answered, connections that end."""

import ipaddress
import json
import math
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

LOCAL = ("localhost", "127.0.0.1", "::1")
IDLE_SECONDS = 10  # without the head of a request, or without reading an answer
MOST_CONNECTIONS = 500  # at a time; a process may mostly have 1,024 open files
NETLOC = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})(:[0-9]*)?")


class JSON(JSONResponse):
    """Valid JSON whatever a model computes: null for NaN and infinity, which JSON does not have."""

    def render(self, content) -> bytes:
        try:
            return super().render(content)
        except ValueError:  # or half a surrogate pair, which UTF-8 does not have
            return json.dumps(_finite(content), allow_nan=False).encode()


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def host_name(netloc: str) -> str:
    """Returns the name or address in "Name:port", in one spelling; "" where it has none."""
    match = NETLOC.fullmatch(netloc.lower())
    name = match[1].strip("[]").rstrip(".") if match else netloc
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name if match else ""


class HostCheck:
    """Refuses requests for hosts of other names, as a page sends them whose name was made to lead
    here (DNS rebinding), and requests from pages of other sites.

    hosts: names and addresses that are answered, beside the address that a connection came to;
    origins: hosts whose pages may ask from elsewhere.
    """

    def __init__(self, app, hosts: Collection[str] = LOCAL, origins: Collection[str] = ()):
        self.app, self.hosts, self.origins = app, hosts, origins

    async def __call__(self, scope, receive, send):
        app = self.app
        if scope["type"] == "http":
            headers, (server, _) = Headers(scope=scope), scope.get("server") or ("", None)
            host, origin = headers.get("host", "").lower(), headers.get("origin")
            name = host_name(host)
            if not name or name not in self.hosts and name != server:
                advice = f": start it with --allow-host {name} to have it answer" if name else ""
                sentence = f"this server does not answer for the host {host[:80]!r}{advice}."
                app = JSON({"error": sentence}, 421)
            elif origin is not None and scope["method"] not in ("GET", "HEAD"):
                netloc = origin.lower().partition("://")[2]
                if netloc != host and host_name(netloc) not in self.origins:
                    sentence = (
                        f"a page of {origin[:80]!r} may not ask here: send the request from "
                        "elsewhere, or start the server with --allow-host and the page's host."
                    )
                    app = JSON({"error": sentence}, 403)
        await app(scope, receive, send)


class Protocol(H11Protocol):
    """Ends a connection that waits for the head of a request, or for its client to read, for
    IDLE_SECONDS, and beyond MOST_CONNECTIONS the one that waits for longest."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self._deadline = self.loop.call_later(IDLE_SECONDS, self._end_if_waiting)
        if len(self.connections) > MOST_CONNECTIONS:
            others = [other for other in self.connections if not other.transport.is_closing()]
            waiting = [other for other in others if other._waits()]  # this one, too
            min(waiting, key=lambda other: other._deadline.when()).transport.abort()

    def on_response_complete(self):
        super().on_response_complete()
        self._wait()

    def pause_writing(self):
        super().pause_writing()
        self._wait()

    def _wait(self):
        self._deadline.cancel()
        self._deadline = self.loop.call_later(IDLE_SECONDS, self._end_if_waiting)

    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

    def _end_if_waiting(self):
        if self._waits():
            self.transport.abort()
