"""HTTP server of a trained model: a web page, and JSON for programs.

`app` is an ASGI application (Starlette), `serve` runs it (uvicorn). Threads parse the requests, and
one thread computes them in batches of `SIZES`, which are compiled at the start.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import importlib.resources
import io
import ipaddress
import itertools
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import numpy as np
import pyarrow as pa
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from dlflax import train
from dlflax.data import Examples, join
from dlflax.errors import InputError
from dlflax.files import read_bytes
from dlflax.inference.predict import Predictor
from dlflax.inference.serve_card import FIGURE, card, openapi
from dlflax.inference.serve_http import JSON, LOCAL, HostCheck, Protocol, host_name
from dlflax.inference.serve_inputs import Refused, read_part, split_request
from dlflax.models import grad_cam
from dlflax.train.batch import SIZES

MOST_BYTES = 20 * 2**20  # in the body of a request
MOST_BYTES_IN_ALL = 2**28  # in the bodies of all waiting requests
MOST_WAITING = 4096  # inputs
READ_SECONDS = 30  # time limit for a request's body
ANSWER_SECONDS = 60  # time limit for the answer
STOP_SECONDS = 30  # from SIGTERM to the exit of the process
SAY_SECONDS = 5  # the last of these, for error responses to waiting clients


class Room:
    """Counter of the bytes or inputs of all open requests."""

    count = 0

    @contextlib.contextmanager
    def take(self, count: int, most: int):
        """Adds to the count within the block. Raises Refused beyond `most`."""
        if self.count + count > most:
            raise Refused(429, "too many requests are waiting: try again in a second.")
        self.count += count
        try:
            yield
        finally:
            self.count -= count


class Batches:
    """Computes the inputs of several requests in shared batches, one after the other."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._turn = asyncio.Lock()
        self._next: dict[object, Examples] = {}  # requests of the next batch
        self._task: asyncio.Task | None = None

    def warm_up(self) -> None:
        """Compiles every batch size."""
        example = self._predictor.example()
        for size in SIZES:
            repeated = {name: np.repeat(array, size, 0) for name, array in example.items()}
            self._predictor.predictions(repeated)

    async def answers(self, examples: Examples) -> list[dict[str, Any]]:
        """Returns the predictions for examples, as JSON values. They join the next batch, or begin
        another one if they would exceed SIZES or have other types."""
        count, types = len(examples), _column_types(examples)
        for other in self._next.values():
            count += len(other)
            types = types if types == _column_types(other) else None
        if not self._next or count > SIZES[-1] or types is None:
            self._next = {}
            self._task = asyncio.create_task(self._compute(self._next))
        batch, key = self._next, object()
        batch[key] = examples
        try:
            return (await asyncio.shield(self._task))[key]
        finally:
            batch.pop(key, None)  # if the client is gone

    async def _compute(self, batch: dict[object, Examples]) -> dict[object, list[dict[str, Any]]]:
        async with self._turn:
            if self._next is batch:
                self._next = {}
            if not (batch := dict(batch)):
                return {}
            loop, examples = asyncio.get_running_loop(), join(list(batch.values()))
            answers = iter(await loop.run_in_executor(self._thread, self._predict, examples))
        return {key: list(itertools.islice(answers, len(part))) for key, part in batch.items()}

    def _predict(self, examples) -> list[dict[str, Any]]:
        with np.errstate(all="ignore"):  # NaN becomes null
            answers = self._predictor.answer_examples(examples, draw=False)
        return [values for _, values in answers]


def _column_types(examples):
    """Returns the dtypes and shapes that the examples of one batch share. Pixels may be uint8 or
    float32, so requests differ."""
    columns = examples.columns.values()
    return [c.type if isinstance(c, pa.Array) else (c.dtype, c.shape[1:]) for c in columns]


@contextlib.asynccontextmanager
async def read_body(request: Request, room: Room):
    """Yields the body of a request. Raises Refused if it is too large or too slow."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "send the body as it is, without Content-Encoding.")
    length, body = request.headers.get("content-length", "0"), bytearray()
    too_large = Refused(413, f"a request may have {MOST_BYTES // 2**20} MB.")
    if not length.isdecimal() or int(length) > MOST_BYTES:
        raise too_large
    with contextlib.ExitStack() as parts:
        try:
            async with asyncio.timeout(READ_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise too_large
                    parts.enter_context(room.take(len(part), MOST_BYTES_IN_ALL))
        except TimeoutError:
            sentence = f"the request took longer than {READ_SECONDS} seconds."
            raise Refused(408, sentence) from None
        yield body


def app(
    predictor: Predictor, hosts: Collection[str] = LOCAL, origins: Collection[str] = ()
) -> Starlette:
    """Returns the ASGI application, after loading and compiling the model. hosts, origins: of
    `HostCheck`. Raises InputError and RunError as Predictor."""
    batches, in_memory, waiting = Batches(predictor), Room(), Room()
    batches.warm_up()
    encoder, example = predictor.encoder, predictor.example()["inputs"]
    if takes_images := encoder.image(example, 0) is not None:
        _explain_image(predictor, example)
    readers = concurrent.futures.ThreadPoolExecutor(2)

    def in_thread(*work):
        return asyncio.get_running_loop().run_in_executor(readers, *work)

    async def inputs(request, body, most=None) -> Examples:
        media = request.headers.get("content-type", "")
        parts = (await in_thread(split_request, encoder, media, body))[:most]
        with waiting.take(len(parts), MOST_WAITING):  # part by part, in turns with other requests
            return join([await in_thread(read_part, encoder, part) for part in parts])

    async def answers(examples):
        with waiting.take(len(examples), MOST_WAITING):
            return await batches.answers(examples)

    async def predict(request, body):
        return {"answers": await answers(await inputs(request, body))}

    async def look(request, body):
        if not takes_images:
            raise Refused(404, "this model does not take images.")
        examples = (await inputs(request, body, 1)).take(slice(1))
        (values,) = await answers(examples)
        images = encoder.batch(encoder.raw(examples))["inputs"]
        return {"answer": values, **await in_thread(_explain_image, predictor, images)}

    def post(path, answer):
        async def respond(request):
            try:
                async with read_body(request, in_memory) as body:
                    return JSON(await _cancel_on_disconnect(request, answer(request, body)))
            except asyncio.CancelledError:  # by uvicorn, before the process ends
                raise Refused(503, "the server is stopping: try again later.") from None

        return Route(path, respond, methods=["POST"])

    def figure(request):
        name = request.path_params["name"]
        with contextlib.suppress(OSError):  # missing, or a link out of the folder
            if FIGURE.fullmatch(name):
                content = read_bytes(predictor.folder / name, follow=False)
                return Response(content, media_type="image/png")
        raise HTTPException(404)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        readers.shutdown(wait=False, cancel_futures=True)

    async def health(_):
        return JSON({"status": "ok"})

    routes = [
        Route("/", _page("serve.html")),
        Route("/docs", _page("serve_docs.html")),
        Route("/health", health),
        Route("/card", lambda _: JSON(card(predictor))),
        Route("/openapi.json", lambda _: JSON(openapi(predictor))),
        Route("/figures/{name}", figure),
        post("/predict", predict),
        post("/look", look),
    ]
    handlers = {
        HTTPException: _http_error, ClientDisconnect: _disconnect, Exception: _server_error,
    }  # fmt: skip
    check = Middleware(HostCheck, hosts=hosts, origins=origins)
    return Starlette(
        routes=routes, exception_handlers=handlers, lifespan=lifespan, middleware=[check]
    )


def _page(name: str) -> Callable[[Request], HTMLResponse]:
    content = importlib.resources.files("dlflax.inference").joinpath(name).read_text("utf-8")
    return lambda _: HTMLResponse(content)


async def _cancel_on_disconnect(request: Request, work: Coroutine):
    """Returns the result of `work`, cancelled if the client disconnects or after ANSWER_SECONDS."""

    async def disconnection():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(disconnection())]
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if tasks[0] in done:
            return tasks[0].result()
        if done:
            raise ClientDisconnect
        sentence = f"no answer within {ANSWER_SECONDS} seconds: send less, or try again later."
        raise Refused(503, sentence)
    finally:
        for task in tasks:
            task.cancel()


async def _disconnect(*_):
    return Response(status_code=400)  # no client reads it


async def _server_error(*_):
    return JSON({"error": "the server failed on this request: see its log."}, 500)


async def _http_error(_, error):
    sentences = {
        "Not Found": "there is nothing here: see /openapi.json.",
        "Method Not Allowed": "use another method: see /openapi.json.",
    }
    sentence = sentences.get(error.detail, error.detail)
    return JSON({"error": sentence}, error.status_code, headers=error.headers)


def _explain_image(predictor, inputs) -> dict[str, str | None]:
    """Returns the first input image and its Grad-CAM heatmap, None for a model without one, as data
    URIs of PNG files."""
    recipe, heatmap = predictor.config.recipe, None
    variables = train.variables(recipe, predictor.state())
    with contextlib.suppress(TypeError, ValueError):  # an ensemble has several feature maps
        heatmap = grad_cam.grad_cam(recipe.model, variables, train.floats(inputs))
    looked = None if heatmap is None else _png(np.uint8(255 * heatmap[0])[:, :, None])
    return {"seen": _png(predictor.encoder.image(inputs, 0)), "looked": looked}


def _png(pixels: np.ndarray) -> str:
    """Returns the data URI of an image, uint8 (h, w, 1 or 3)."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


class _Server(uvicorn.Server):
    """Server that exits with 0 after a signal: uvicorn's own raises the signal once more."""

    @contextlib.contextmanager
    def capture_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig, frame):
        super().handle_exit(sig, frame)
        # threads that still decode or compute would keep the process alive
        end = threading.Timer(STOP_SECONDS, os._exit, (0,))
        end.daemon = True
        end.start()


def serve(
    predictor: Predictor, host: str = "127.0.0.1", port: int = 8000,
    log: Callable[[str], None] = lambda line: print(line, flush=True),
    allow_hosts: Collection[str] = (),
) -> None:  # fmt: skip
    """Serves until SIGTERM or SIGINT, and then finishes accepted requests. allow_hosts: further
    host names of the server, whose pages may send requests too. Raises InputError for an invalid
    name or a port in use, else as `app`."""
    for name in allow_hosts:
        if not host_name(name):
            raise InputError(
                f"--allow-host {name!r} is no host: give a name such as models.example.com, or an "
                "address."
            )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port} cannot be used: {reason}.") from error
    with bound:
        origins = set(map(host_name, allow_hosts))
        hosts = {*LOCAL, host_name(host), *origins}
        if ipaddress.ip_address(bound.getsockname()[0]).is_unspecified:  # 0.0.0.0: all networks
            hosts.add(host_name(socket.gethostname()))
        config = uvicorn.Config(
            app(predictor, hosts, origins), http=Protocol, ws="none", log_level="warning",
            timeout_graceful_shutdown=STOP_SECONDS - SAY_SECONDS, server_header=False,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        log(f"http://{shown}:{bound.getsockname()[1]} serves {predictor.folder}; Ctrl-C stops it")
        _Server(config).run(sockets=[bound])
    log("stopped.")
