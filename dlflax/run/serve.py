"""A trained model behind HTTP: a page for people, JSON for programs.

`app` is an ASGI application (Starlette), `serve` runs it (uvicorn). Requests are read in threads,
put together into batches of `SIZES`, which were compiled at the start, and computed one after the
other.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import importlib.resources
import io
import signal
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dlflax import train
from dlflax.errors import InputError
from dlflax.models import explain
from dlflax.run.predict import Predictor
from dlflax.run.serve_card import card, openapi, pictures
from dlflax.run.serve_inputs import Refused, inputs_of

SIZES = (1, 8, 64)  # of batches that are computed
MOST_BYTES = 20 * 2**20  # of a request
MOST_WAITING = 4096  # inputs
READ_SECONDS = 30  # that a request's body may take
STOP_SECONDS = 30  # in which what was accepted is answered when it is told to stop


class Batches:
    """Puts the inputs of requests together, computes them in batches of SIZES, and hands the
    answers back."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._queue: asyncio.Queue = asyncio.Queue()
        self._waiting = 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def warm_up(self) -> None:
        """Compiles every size."""
        predictor = self._predictor
        if predictor.kind == "series":
            _, _, batch = predictor.config.data.read([], predictor.data, predictor.folder)
        else:
            shape = tuple(predictor.data["input_shape"])
            batch = {"inputs": np.zeros((1, *shape), predictor.dtype)}
        for size in SIZES:
            repeated = {name: np.repeat(array, size, 0) for name, array in batch.items()}
            self._computed(["x"] * size, "row", repeated)

    async def answers(self, names: list[str], kind: str, batch) -> list[dict[str, Any]]:
        """What predict says of each, as JSON values. Refused where too many are waiting."""
        if self._waiting + len(names) > MOST_WAITING:
            raise Refused(429, "too many requests are waiting: try again in a second.")
        self._waiting += len(names)
        try:
            parts = []
            for start in range(0, len(names), SIZES[-1]):
                rows = slice(start, start + SIZES[-1])
                part = {name: array[rows] for name, array in batch.items()}
                done = asyncio.get_running_loop().create_future()
                self._queue.put_nowait((names[rows], kind, part, done))
                parts.append(done)
            return [values for part in await asyncio.gather(*parts) for values in part]
        finally:
            self._waiting -= len(names)

    async def run(self) -> None:
        """Computes for ever."""
        held = None
        while True:
            items = [held or await self._queue.get()]
            count, held = len(items[0][0]), None
            while not self._queue.empty():
                item = self._queue.get_nowait()
                if count + len(item[0]) > SIZES[-1] or item[1] != items[0][1]:
                    held = item
                    break
                items.append(item)
                count += len(item[0])
            await self._compute(items)

    async def _compute(self, items) -> None:
        names = [name for some, *_ in items for name in some]
        batch = {key: np.concatenate([part[key] for _, _, part, _ in items]) for key in items[0][2]}
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._thread, self._computed, names, items[0][1], batch
            )
        except Exception as error:
            for *_, done in items:
                if not done.cancelled():
                    done.set_exception(error)
            return
        for some, _, _, done in items:
            if not done.cancelled():  # who asked may be gone
                done.set_result(found[: len(some)])
            found = found[len(some) :]

    def _computed(self, names, kind, batch) -> list[dict[str, Any]]:
        size = next(size for size in SIZES if size >= len(names))
        more = size - len(names)
        batch = {k: np.concatenate([v, np.repeat(v[:1], more, 0)]) for k, v in batch.items()}
        padded = [*names, *names[:1] * more]
        answers = self._predictor.of_batch(padded, kind, batch, draw=False)
        return [values for _, values in answers[: len(names)]]


def app(predictor: Predictor) -> Starlette:
    """The page and the interface of a run's model, whose state is read and compiled first.
    InputError and RunError as Predictor."""
    batches = Batches(predictor)
    batches.warm_up()
    _heat(predictor, np.zeros((1, *predictor.data["input_shape"]), predictor.dtype))
    readers = concurrent.futures.ThreadPoolExecutor(2)
    page = importlib.resources.files("dlflax.run").joinpath("serve.html").read_text("utf-8")

    async def asked(request):
        body, kind = await _body(request), request.headers.get("content-type", "")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(readers, inputs_of, predictor, kind, body)

    async def predict(request):
        return JSONResponse({"answers": await batches.answers(*await asked(request))})

    async def look(request):
        names, kind, batch = await asked(request)
        (values,) = await batches.answers(names[:1], kind, {k: v[:1] for k, v in batch.items()})
        loop = asyncio.get_running_loop()
        seen = await loop.run_in_executor(readers, _looked, predictor, batch["inputs"][:1])
        return JSONResponse({"answer": values, **seen})

    async def picture(request):
        name = request.path_params["name"]
        if name not in pictures(predictor.folder):
            raise HTTPException(404)
        return FileResponse(predictor.folder / name)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()
        readers.shutdown(wait=False)

    async def health(_):
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/", lambda _: HTMLResponse(page)),
        Route("/health", health),
        Route("/card", lambda _: JSONResponse(card(predictor))),
        Route("/openapi.json", lambda _: JSONResponse(openapi(predictor))),
        Route("/pictures/{name}", picture),
        Route("/predict", predict, methods=["POST"]),
        Route("/look", look, methods=["POST"]),
    ]
    handlers = {Refused: _refused, HTTPException: _http, ClientDisconnect: _gone}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _refused(_, error):
    return JSONResponse({"error": error.sentence}, error.status)


async def _gone(*_):
    return Response(status_code=400)  # which nobody reads


async def _http(_, error):
    say = {
        404: "there is nothing here: see /openapi.json.",
        405: "use another method: see /openapi.json.",
    }
    sentence = say.get(error.status_code, str(error.detail))
    return JSONResponse({"error": sentence}, error.status_code, headers=error.headers)


async def _body(request: Request) -> bytes:
    """All of it. Refused when it is too large, or takes too long."""
    limit = f"a request may have {MOST_BYTES // 2**20} MB."
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "send the body as it is, without Content-Encoding.")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MOST_BYTES:
        raise Refused(413, limit)
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise Refused(413, limit)
    except TimeoutError:
        raise Refused(408, f"the request took longer than {READ_SECONDS} seconds.") from None
    return bytes(body)


def _heat(predictor, inputs) -> np.ndarray | None:
    """Where the model looks in pictures, float32 (n, h, w); None for one that cannot say."""
    if predictor.kind != "picture":
        return None
    recipe = predictor.config.recipe
    variables = train.variables(recipe, predictor.state(inputs))
    try:
        return explain.grad_cam(recipe.model, variables, train.floats(inputs))
    except (TypeError, ValueError):  # an ensemble has several feature maps
        return None


def _looked(predictor, inputs) -> dict[str, str | None]:
    """The picture as the model saw it, and where it looked, as data URIs of PNG files."""
    if predictor.kind != "picture":
        raise Refused(404, "this model does not look at pictures.")
    heat = _heat(predictor, inputs)
    return {
        "seen": _png(inputs[0]),
        "looked": None if heat is None else _png(heat[0][:, :, None]),
    }


def _png(pixels: np.ndarray) -> str:
    """Of uint8 or of floats in 0..1, (h, w, 1 or 3)."""
    from PIL import Image

    content = io.BytesIO()
    if pixels.dtype != np.uint8:
        pixels = np.uint8(255 * pixels.clip(0, 1))
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


class _Server(uvicorn.Server):
    """One that ends with 0 when it was told to stop: uvicorn's own raises the signal once more."""

    @contextlib.contextmanager
    def capture_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield


def serve(
    predictor: Predictor, host: str = "127.0.0.1", port: int = 8000,
    log: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Answers until SIGTERM or SIGINT, then what it has accepted. InputError where the port is
    taken; else as `app`."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port} cannot be used: {reason}.") from error
    with bound:
        config = uvicorn.Config(
            app(predictor), log_level="warning", timeout_graceful_shutdown=STOP_SECONDS,
            timeout_keep_alive=30, server_header=False,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        log(f"http://{shown}:{bound.getsockname()[1]} answers for {predictor.folder}; Ctrl-C ends")
        _Server(config).run(sockets=[bound])
    log("stopped; all that was asked is answered.")
