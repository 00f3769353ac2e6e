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
import ipaddress
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
from dlflax.models import explain
from dlflax.run.predict import Predictor
from dlflax.run.serve_card import PICTURE, card, openapi
from dlflax.run.serve_http import JSON, LOCAL, HostCheck, Protocol, host_name
from dlflax.run.serve_inputs import Refused, parts_of, read_part
from dlflax.train.batch import SIZES

MOST_BYTES = 20 * 2**20  # of a request
MOST_BYTES_IN_ALL = 2**28  # of all requests that wait
MOST_WAITING = 4096  # inputs
READ_SECONDS = 30  # that a request's body may take
ANSWER_SECONDS = 60  # that the answer may take after that
STOP_SECONDS = 30  # after which the process is gone when it is told to stop
SAY_SECONDS = 5  # of these, to say to whoever still waits that there will be no answer
BUSY = "too many requests are waiting: try again in a second."


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
        example = self._predictor.example()
        for size in SIZES:
            repeated = {name: np.repeat(array, size, 0) for name, array in example.items()}
            self._predictor.predictions(repeated)

    @contextlib.contextmanager
    def room(self, count: int):
        """So many more inputs wait while it lasts. Refused where they are too many."""
        if self._waiting + count > MOST_WAITING:
            raise Refused(429, BUSY)
        self._waiting += count
        try:
            yield
        finally:
            self._waiting -= count

    async def answers(self, examples: Examples) -> list[dict[str, Any]]:
        """What predict says of each, as JSON values. Refused where too many are waiting."""
        with self.room(len(examples)):
            parts = []
            for start in range(0, len(examples), SIZES[-1]):
                part = examples.take(slice(start, start + SIZES[-1]))
                done = asyncio.get_running_loop().create_future()
                self._queue.put_nowait((part, done))
                parts.append(done)
            return [values for part in await asyncio.gather(*parts) for values in part]

    async def run(self) -> None:
        """Computes for ever."""
        held = None
        while True:
            items, held = [held or await self._queue.get()], None
            count = len(items[0][0])
            while not self._queue.empty():
                item = self._queue.get_nowait()
                if count + len(item[0]) > SIZES[-1] or _layout(item[0]) != _layout(items[0][0]):
                    held = item
                    break
                items.append(item)
                count += len(item[0])
            await self._compute(items)

    async def _compute(self, items) -> None:
        items = [item for item in items if not item[1].cancelled()]  # who asked may be gone
        if not items:
            return
        loop = asyncio.get_running_loop()
        try:
            examples = join([part for part, _ in items])
            found = await loop.run_in_executor(self._thread, self._computed, examples)
        except Exception as error:
            for _, done in items:
                if not done.cancelled():
                    done.set_exception(error)
            return
        for some, done in items:
            if not done.cancelled():  # who asked may be gone
                done.set_result(found[: len(some)])
            found = found[len(some) :]

    def _computed(self, examples) -> list[dict[str, Any]]:
        with np.errstate(all="ignore"):  # an answer without a number is null
            answers = self._predictor.of_examples(examples, draw=False)
        return [values for _, values in answers]


def _layout(examples):
    """The layout that examples of one batch share: pixels may be uint8 or float32."""
    return [
        (name, column.type) if isinstance(column, pa.Array)
        else (name, column.dtype, column.shape[1:]) for name, column in examples.columns.items()
    ]  # fmt: skip


class Bodies:
    """Reads the bodies of requests, of which all together have MOST_BYTES_IN_ALL."""

    def __init__(self):
        self._bytes = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request):
        """All of one. Refused when it is too large, takes too long, or many others wait."""
        limit = f"a request may have {MOST_BYTES // 2**20} MB."
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "send the body as it is, without Content-Encoding.")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            raise Refused(413, limit)
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    async for part in request.stream():
                        body += part
                        self._bytes += len(part)
                        if len(body) > MOST_BYTES:
                            raise Refused(413, limit)
                        if self._bytes > MOST_BYTES_IN_ALL:
                            raise Refused(429, BUSY)
            except TimeoutError:
                sentence = f"the request took longer than {READ_SECONDS} seconds."
                raise Refused(408, sentence) from None
            yield body
        finally:
            self._bytes -= len(body)


def app(
    predictor: Predictor, hosts: Collection[str] = LOCAL, origins: Collection[str] = ()
) -> Starlette:
    """The page and the interface of a run's model, whose state is read and compiled first; hosts
    and origins as `HostCheck`. InputError and RunError as Predictor."""
    batches, bodies = Batches(predictor), Bodies()
    batches.warm_up()
    _heat(predictor, predictor.example()["inputs"])
    readers = concurrent.futures.ThreadPoolExecutor(2)
    page = importlib.resources.files("dlflax.run").joinpath("serve.html").read_text("utf-8")

    def in_thread(*work):
        return asyncio.get_running_loop().run_in_executor(readers, *work)

    encoder = predictor.encoder

    async def inputs(request, body, most=None) -> Examples:
        media = request.headers.get("content-type", "")
        some = (await in_thread(parts_of, encoder, media, body))[:most]
        with batches.room(len(some)):  # one after the other: others' are read in between
            return join([await in_thread(read_part, encoder, part) for part in some])

    async def predict(request, body):
        return {"answers": await batches.answers(await inputs(request, body))}

    async def look(request, body):
        if encoder.image(predictor.example()["inputs"], 0) is None:
            raise Refused(404, "this model does not look at pictures.")
        examples = (await inputs(request, body, 1)).take(slice(1))
        (values,) = await batches.answers(examples)
        seen = encoder.batch(encoder.raw(examples))["inputs"]
        return {"answer": values, **await in_thread(_looked, predictor, seen)}

    def post(path, answer):
        async def respond(request):
            try:
                async with bodies.read(request) as body:
                    return JSON(await _until_gone(request, answer(request, body)))
            except asyncio.CancelledError:  # by uvicorn, before the process ends
                raise Refused(503, "the server stops: ask again later.") from None

        return Route(path, respond, methods=["POST"])

    def picture(request):
        name = request.path_params["name"]
        if not PICTURE.fullmatch(name):
            raise HTTPException(404)
        try:
            content = read_bytes(predictor.folder / name, follow=False)
        except OSError:  # there is none, or it is a link to somewhere else
            raise HTTPException(404) from None
        return Response(content, media_type="image/png")

    @contextlib.asynccontextmanager
    async def lifespan(_):
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()
        readers.shutdown(wait=False, cancel_futures=True)

    async def health(_):
        return JSON({"status": "ok"})

    routes = [
        Route("/", lambda _: HTMLResponse(page)),
        Route("/health", health),
        Route("/card", lambda _: JSON(card(predictor))),
        Route("/openapi.json", lambda _: JSON(openapi(predictor))),
        Route("/pictures/{name}", picture),
        post("/predict", predict),
        post("/look", look),
    ]
    handlers = {
        Refused: _refused, HTTPException: _http, ClientDisconnect: _gone, Exception: _failed,
    }  # fmt: skip
    check = Middleware(HostCheck, hosts=hosts, origins=origins)
    return Starlette(
        routes=routes, exception_handlers=handlers, lifespan=lifespan, middleware=[check]
    )


async def _until_gone(request: Request, work: Coroutine):
    """Returns what `work` does; cancels it when its client is gone or ANSWER_SECONDS are over."""

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
        sentence = f"no answer within {ANSWER_SECONDS} seconds: send less, or ask again later."
        raise Refused(503, sentence)
    finally:
        for task in tasks:
            task.cancel()


async def _refused(_, error):
    return JSON({"error": error.sentence}, error.status)


async def _gone(*_):
    return Response(status_code=400)  # which nobody reads


async def _failed(*_):
    return JSON({"error": "the server failed on this request: its log says how."}, 500)


async def _http(_, error):
    say = {
        404: "there is nothing here: see /openapi.json.",
        405: "use another method: see /openapi.json.",
    }
    sentence = say.get(error.status_code, str(error.detail))
    return JSON({"error": sentence}, error.status_code, headers=error.headers)


def _heat(predictor, inputs) -> np.ndarray | None:
    """Where the model looks in pictures, float32 (n, h, w); None for one that cannot say."""
    if predictor.encoder.image(inputs, 0) is None:
        return None
    recipe = predictor.config.recipe
    variables = train.variables(recipe, predictor.state())
    try:
        return explain.grad_cam(recipe.model, variables, train.floats(inputs))
    except (TypeError, ValueError):  # an ensemble has several feature maps
        return None


def _looked(predictor, inputs) -> dict[str, str | None]:
    """The picture as the model saw it, and where it looked, as data URIs of PNG files."""
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

    def handle_exit(self, sig, frame):
        super().handle_exit(sig, frame)
        # a thread that still decodes or computes would keep the process
        end = threading.Timer(STOP_SECONDS, os._exit, (0,))
        end.daemon = True
        end.start()


def serve(
    predictor: Predictor, host: str = "127.0.0.1", port: int = 8000,
    log: Callable[[str], None] = lambda line: print(line, flush=True),
    allow_hosts: Collection[str] = (),
) -> None:  # fmt: skip
    """Answers until SIGTERM or SIGINT, then what it has accepted. allow_hosts: names, beside the
    host, that are answered, and whose pages may ask. InputError where the port is taken or a name
    is none; else as `app`."""
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
        if ipaddress.ip_address(bound.getsockname()[0]).is_unspecified:  # 0.0.0.0: of all networks
            hosts.add(host_name(socket.gethostname()))
        config = uvicorn.Config(
            app(predictor, hosts, origins), http=Protocol, ws="none", log_level="warning",
            timeout_graceful_shutdown=STOP_SECONDS - SAY_SECONDS, server_header=False,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        log(f"http://{shown}:{bound.getsockname()[1]} answers for {predictor.folder}; Ctrl-C ends")
        _Server(config).run(sockets=[bound])
    log("stopped.")
