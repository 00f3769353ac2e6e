"""HTTP of the server: valid JSON, a check of host names, and timeouts of connections."""

import ipaddress
import json
import math
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

LOCAL = ("localhost", "127.0.0.1", "::1")
IDLE_SECONDS = 10  # time limit for the head of a request, and for reading an answer
MOST_CONNECTIONS = 500  # at a time; a process may often have only 1,024 open files
NETLOC = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})(:[0-9]*)?")


class JSON(JSONResponse):
    """Valid JSON for any model outputs: null for NaN and infinity."""

    def render(self, content) -> bytes:
        try:
            return super().render(content)
        except ValueError:  # NaN, infinity, or half a surrogate pair, which UTF-8 does not have
            return json.dumps(_finite(content), allow_nan=False).encode()


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def host_name(netloc: str) -> str:
    """Returns the normalized name or address of "Name:port"; "" for an invalid one."""
    match = NETLOC.fullmatch(netloc.lower())
    name = match[1].strip("[]").rstrip(".") if match else netloc
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name if match else ""


class HostCheck:
    """Refuses requests for unknown host names (DNS rebinding) and from pages of other sites.

    hosts: names and addresses of the server, besides the address of the connection; origins: other
    hosts whose pages may send requests.
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
                advice = f": start it with --allow-host {name}" if name else ""
                sentence = f"this server does not answer for the host {host[:80]!r}{advice}."
                app = JSON({"error": sentence}, 421)
            elif origin is not None and scope["method"] not in ("GET", "HEAD"):
                netloc = origin.lower().partition("://")[2]
                if netloc != host and host_name(netloc) not in self.origins:
                    sentence = (
                        f"pages of {origin[:80]!r} may not send requests here: start the server "
                        "with --allow-host and the page's host."
                    )
                    app = JSON({"error": sentence}, 403)
        await app(scope, receive, send)


class Protocol(H11Protocol):
    """Closes idle connections, after IDLE_SECONDS or beyond MOST_CONNECTIONS."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self._deadline = self.loop.call_later(IDLE_SECONDS, self._abort_if_idle)
        if len(self.connections) > MOST_CONNECTIONS:  # at least this one is idle
            idle = [c for c in self.connections if not c.transport.is_closing() and c._is_idle()]
            min(idle, key=lambda connection: connection._deadline.when()).transport.abort()

    def on_response_complete(self):
        super().on_response_complete()
        self._restart_timeout()

    def pause_writing(self):
        super().pause_writing()
        self._restart_timeout()

    def _restart_timeout(self):
        self._deadline.cancel()
        self._deadline = self.loop.call_later(IDLE_SECONDS, self._abort_if_idle)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

    def _abort_if_idle(self):
        if self._is_idle():
            self.transport.abort()
