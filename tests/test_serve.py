"""A model behind HTTP: the answers of predict, one sentence for bad input, a clean end."""

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dlflax import data
from dlflax.data import Limits, join
from dlflax.data.image import image_file
from dlflax.errors import InputError
from dlflax.inference import serve, serve_inputs
from dlflax.inference.export import export_stages, join_stages
from dlflax.inference.predict import Predictor

ROOT = Path(__file__).parents[1]


def client_of(folder):
    return TestClient(serve.app(Predictor(folder, log=lambda _: None)))


@pytest.fixture(scope="module")
def digits(zoo):
    with client_of(zoo("digits")) as client:
        yield client


def png(pixels, format="PNG", **options) -> bytes:
    content = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, format, **options)
    return content.getvalue()


def odd_pictures() -> list[bytes]:
    """Fifty files of digits: sizes, modes, formats, orientations."""
    images = data.Images("digits").load(lambda _: None).test["inputs"][:50, :, :, 0]
    found = []
    for i, pixels in enumerate(images):
        image = Image.fromarray(255 - pixels)
        if i % 5:
            image = image.resize((40 + 13 * i, 60 + 7 * i))
        kind = i % 10
        if kind == 0:
            found.append(png(image.convert("RGBA")))
        elif kind == 1:
            alpha = image.convert("RGB")
            alpha.putalpha(Image.fromarray(255 - np.asarray(image)))
            found.append(png(alpha))
        elif kind == 2:
            found.append(png(np.asarray(image).astype(np.uint16) * 257))
        elif kind == 3:
            found.append(png(image.convert("CMYK"), "JPEG"))
        elif kind == 4:
            exif = Image.Exif()
            exif[0x0112] = 6
            found.append(png(image.convert("RGB"), "JPEG", exif=exif))
        elif kind == 5:
            found.append(png(image.resize((1500, 2000)), "JPEG"))
        elif kind == 6:
            found.append(png(image.convert("P"), "GIF"))
        elif kind == 7:
            found.append(png(Image.fromarray(pixels), "BMP"))
        elif kind == 8:
            found.append(png(image.point(lambda v: 255 * (v > 128)).convert("1"), "TIFF"))
        else:
            found.append(png(image.convert("LA")))
    return found


def test_predict_serve_and_export_agree_on_odd_pictures(zoo, digits, tmp_path):
    contents = odd_pictures()
    paths = [tmp_path / f"{i}.png" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    predictor = Predictor(zoo("digits"), log=lambda _: None)
    answers = predictor.answers([str(path) for path in paths])
    said = np.array([list(values["probabilities"].values()) for _, values in answers])
    one_by_one = [
        digits.post("/predict", content=content, headers={"content-type": "image/png"}).json()
        for content in contents
    ]
    served = [list(each["answers"][0]["probabilities"].values()) for each in one_by_one]
    np.testing.assert_allclose(served, said, atol=1e-5)
    together = digits.post(
        "/predict", json={"images": [base64.b64encode(c).decode() for c in contents]}
    ).json()["answers"]
    served = [list(each["probabilities"].values()) for each in together]
    np.testing.assert_allclose(served, said, atol=1e-5)
    stages, _ = export_stages(predictor)
    raw = predictor.encoder.raw(predictor.encoder.parse([str(path) for path in paths]))
    made = join_stages(stages)({"inputs": raw})
    np.testing.assert_allclose(made["probabilities"], said, atol=1e-5)


def test_other_kinds_of_inputs(zoo):
    with client_of(zoo("texts")) as client:
        answers = client.post("/predict", json={"texts": ["a good day", "é"]}).json()
        assert [each["text"] for each in answers["answers"]] == ["a good day", "é"]
        empty = client.post("/predict", json={"texts": ["a good day", " "]})
        assert empty.status_code == 422 and "text 2 of 2 is empty" in empty.json()["error"]
        alone = client.post("/predict", content=b"a good day",
                            headers={"content-type": "text/plain; charset=utf-8"})  # fmt: skip
        assert alone.json()["answers"][0]["probabilities"] == pytest.approx(
            answers["answers"][0]["probabilities"], abs=1e-5
        )
        assert client.post("/look", json={"texts": ["a"]}).status_code == 404
    with client_of(zoo("wine")) as client:
        columns = client.get("/card").json()["outlook"]["columns"]
        row = {column["name"]: column["median"] for column in columns}
        answers = client.post("/predict", json={"rows": [row, row]}).json()["answers"]
        assert answers[0]["probabilities"] == answers[1]["probabilities"]
        text = "\n".join([",".join(row), ",".join(map(str, row.values()))])
        same = client.post("/predict", content=text, headers={"content-type": "text/csv"})
        assert same.json()["answers"][0]["probabilities"] == pytest.approx(
            answers[0]["probabilities"], abs=1e-5
        )
        gone = client.post("/predict", json={"rows": [{"alcohol": 1}]})
        assert gone.status_code == 422 and "lacks the column" in gone.json()["error"]
        assert "/tmp" not in gone.text
    with client_of(zoo("sunspots")) as client:
        (answer,) = client.post("/predict", json={"rows": []}).json()["answers"]
        predictor = Predictor(zoo("sunspots"), log=lambda _: None)
        ((_, values),) = predictor.answers([])
        assert answer["forecast"] == pytest.approx(values["forecast"])
        years = [{"year": 1700 + i, "spots": i % 11} for i in range(40)]
        (other,) = client.post("/predict", json={"rows": years}).json()["answers"]
        assert len(other["forecast"]) == 11 and other["forecast"] != answer["forecast"]
        assert client.post("/predict", json={"rows": years[:9]}).status_code == 422


def malformed():
    """A hundred bodies that are no picture, as (content, headers, what the status may be)."""
    whole, binary = png(np.eye(40, dtype=np.uint8) * 255), {"content-type": "image/png"}
    text = {"content-type": "application/json"}
    for i in range(40):
        yield whole[: 8 + i], binary, {422}
    generator = np.random.default_rng(0)
    for i in range(20):
        yield generator.bytes(i * 50), binary, {422}
    bomb = Image.new("L", (12_000, 12_000))
    yield png(bomb), binary, {413}
    yield png(Image.new("1", (60_000, 60))), binary, {422}
    yield b"x" * (serve.MOST_BYTES + 1), binary, {413}
    yield b"", {**binary, "content-length": str(2 * 10**9)}, {413}
    yield b"", {**binary, "content-length": "many"}, {400, 413}
    yield whole, {**binary, "content-encoding": "gzip"}, {415}
    for media in ("text/html", "video/mp4", "multipart/form-data; boundary=x", "application/xml"):
        yield whole, {"content-type": media}, {415}
    good = base64.b64encode(whole).decode()
    for value in (
        "", "[", "nul", "[" * 100_000, "1" * 10_000, "null", "[]", '"text"', "3", "{}",
        '{"images": 1}', '{"images": []}', '{"images": [1]}', '{"images": ["%"]}',
        '{"images": [""]}', '{"images": [null]}', '{"images": {"a": 1}}', '{"texts": ["a"]}',
        f'{{"images": ["{good}"], "more": 1}}', f'{{"images": ["{good[:40]}"]}}',
        json.dumps({"images": [good] * 257}), f'{{"images": ["{good}", "AAAA"]}}',
        '{"images": ["\\ud800"]}', '{"rows": []}', '{"inputs": [[0]]}', "\x00", "{'a': 1}",
        '{"images": ["é"]}', '{"images": [[]]}', "NaN",
    ):  # fmt: skip
        yield value.encode("utf-8", "surrogatepass"), text, {400, 413, 422}


def test_a_hundred_malformed_bodies(digits):
    cases = list(malformed())
    assert len(cases) == 100
    for content, headers, wanted in cases:
        answer = digits.post("/predict", content=content, headers=headers)
        assert answer.status_code in wanted, (content[:60], headers, answer.text)
        sentence = answer.json()["error"]
        assert sentence and "\n" not in sentence and "/tmp" not in sentence
    good = digits.post("/predict", content=odd_pictures()[0], headers={"content-type": "image/png"})
    assert good.status_code == 200  # it is still well


def test_what_else_is_there(zoo, digits):
    assert digits.get("/health").json() == {"status": "ok"}
    page = digits.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page.text  # nothing from elsewhere
    card = digits.get("/card").json()
    assert card["takes"] == "images" and card["outlook"]["draw"] and card["test"]["accuracy"] > 0
    assert "findings" not in card and "findings" not in page.text
    assert card["figures"][0] == "confusion_matrix.png"
    assert digits.get("/figures/confusion_matrix.png").content.startswith(b"\x89PNG")
    for hidden in ("config.json", "..%2fconfig.json", "none.png", "%2e%2e"):
        assert digits.get(f"/figures/{hidden}").status_code == 404
    for path, status in (("/nothing", 404), ("/predict", 405)):
        answer = digits.get(path)
        assert answer.status_code == status and "openapi" in answer.json()["error"]
    docs = digits.get("/docs").text
    assert 'SwaggerUIBundle({url: "openapi.json"' in docs
    scripts = re.findall(r"<(?:script|link)[^>]*https://[^>]*>", docs)  # of one version, by hash
    assert len(scripts) == 2 and all(re.search(r"@5[.\d]+/.*sha384-.{64}", tag) for tag in scripts)


def bodies_of(kind, columns):
    """(JSON bodies that are answered, others) of a kind of model."""
    image = base64.b64encode(odd_pictures()[0]).decode()
    row = {column["name"]: 1.5 for column in columns}
    rows = [{"year": 1700 + i, "spots": str(i % 11)} for i in range(40)]
    if kind == "wine":
        yield "rows", [[row], [{**row, "flavanoids": None}], [{**row, "more": "x"}] * 256]
        yield "rows", [[], [row] * 257, [{}], [{**row, "alcohol": [1]}], ["x"], [None]]
    elif kind == "sunspots":
        yield "rows", [[], rows]
        yield "rows", [[{"spots": {}}], ["x"], [None]]
    elif kind == "texts":
        yield "texts", [["a"], ["a good day"] * 256]
        yield "texts", [[], ["a"] * 257, [1], [None], [["a"]]]
    else:
        yield "images", [[image], [image] * 3]
        yield "images", [[], [image] * 257, [1], [None], [{}]]


@pytest.mark.parametrize("kind", ["digits", "texts", "wine", "sunspots"])
def test_what_openapi_describes_is_what_is_answered(zoo, kind):
    """By an independent validator of JSON Schema, for bodies and answers."""
    with client_of(zoo(kind)) as client:
        described = client.get("/openapi.json").json()
        assert described["openapi"] == "3.1.0" and {*described["info"]} == {"title", "version"}
        paths = {"/predict", "/card", "/health"} | ({"/look"} if kind == "digits" else set())
        assert {*described["paths"]} == paths
        operations = [item for path in described["paths"].values() for item in path.values()]

        def validator(content):
            schema = content["application/json"]["schema"]
            jsonschema.Draft202012Validator.check_schema(schema)
            return jsonschema.Draft202012Validator(schema)

        for operation in operations:
            [validator(response["content"]) for response in operation["responses"].values()]
        content = described["paths"]["/predict"]["post"]["requestBody"]["content"]
        body, responses = validator(content), described["paths"]["/predict"]["post"]["responses"]
        media = {"digits": {"image/*"}, "texts": {"text/plain"}}.get(kind, {"text/csv"})
        assert {*content} == {"application/json", *media}
        columns = client.get("/card").json()["outlook"].get("columns", ())
        (key, right), (_, wrong) = bodies_of(kind, columns)
        for values in (*right, *wrong):
            answer = client.post("/predict", json={key: values})
            assert answer.status_code == 200 if values in right else str(answer.status_code) in (
                "413", "422"), answer.text  # fmt: skip
            assert body.is_valid({key: values}) == (values in right), values
            assert validator(responses[str(answer.status_code)]["content"]).is_valid(answer.json())
        for other in ({}, {"x": []}, {key: 1}, [], {key: right[-1], "more": 1}):
            assert client.post("/predict", json=other).status_code == 422
            assert not body.is_valid(other)
        for path in ("/card", "/health"):
            responses = described["paths"][path]["get"]["responses"]
            assert validator(responses["200"]["content"]).is_valid(client.get(path).json())
        item = content["application/json"]["schema"]["properties"][key]["items"]
        for example in item.get("examples", ()):
            assert client.post("/predict", json={key: [example]}).status_code == 200
        assert ("examples" in item) == (kind == "wine")
        if kind == "digits":
            found = client.post("/look", json={key: right[0]})
            responses = described["paths"]["/look"]["post"]["responses"]
            assert validator(responses["200"]["content"]).is_valid(found.json())


def test_where_it_looked(digits):
    content = odd_pictures()[0]
    found = digits.post("/look", content=content, headers={"content-type": "image/png"}).json()
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found[name].partition(",")[2]))))
        for name in ("seen", "looked")
    ]
    assert [each.shape for each in pictures] == [(28, 28)] * 2 and pictures[1].max() > 250
    assert found["answer"]["class"] in "0123456789"


def test_requests_share_batches_of_compiled_sizes(zoo):
    predictor = Predictor(zoo("digits"), log=lambda _: None)
    sizes, outputs = [], predictor._outputs

    def counted(inputs):
        sizes.append(len(inputs))
        return outputs(inputs)

    predictor._outputs = counted
    content = odd_pictures()[0]
    with TestClient(serve.app(predictor)) as client:
        assert sizes == list(serve.SIZES)

        def post():
            client.post("/predict", content=content, headers={"content-type": "image/png"})

        threads = [threading.Thread(target=post) for _ in range(40)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        asked = {"images": [base64.b64encode(content).decode()] * 100}
        answers = client.post("/predict", json=asked).json()["answers"]
    assert len(answers) == 100 and len({json.dumps(each["probabilities"]) for each in answers}) == 1
    assert set(sizes) <= set(serve.SIZES) and len(sizes) < 3 + 40 + 3


def test_too_many_wait_their_turn(digits, monkeypatch):
    monkeypatch.setattr(serve, "MOST_WAITING", 3)
    asked = {"images": [base64.b64encode(odd_pictures()[0]).decode()] * 4}
    answer = digits.post("/predict", json=asked)
    assert answer.status_code == 429 and "try again" in answer.json()["error"]
    monkeypatch.setattr(serve_inputs, "LIMITS", Limits(rows=3))
    assert digits.post("/predict", json=asked).status_code == 413


def too_much(kind):
    """(media type, body, what the sentence says) of requests that are refused before the work."""
    if kind == "digits":
        large, other = (Image.new("1", size) for size in ((1001, 1000), (999, 1000)))
        frames = [Image.new("P", (1001, 1000), i) for i in range(3)]
        yield "image/gif", png(frames[0], "GIF", save_all=True, append_images=frames[1:]), "1 mill"
        for format in ("PNG", "TIFF", "WEBP", "JPEG"):
            yield "image/png", png(large.convert("RGB"), format), "1 million"
        yield "image/png", png(Image.new("1", (12_000, 12_000))), "1 million"
        yield "application/json", {"images": [png(other), png(large)]}, "image 2 is too large"
        yield "application/json", {"images": [png(other)] * 5}, "4 million"
    elif kind == "texts":
        yield "text/plain", b"a" * 1001, "1,000 characters"
        yield "application/json", {"texts": ["a" * 600, "\u20ac" * 401]}, "1,000 characters"
    elif kind == "wine":
        columns = ",".join(f"column {i}" for i in range(13))
        rows = [columns, *[",".join(["1"] * 13)] * 257]
        for end in ("\n", "\r", "\r\n\r\n"):
            yield "text/csv", f"\ufeff{end.join(rows)}", "256 rows"
        yield "text/csv", "\n".join(rows).replace(",", ";"), "256 rows"
        yield "application/json", {"rows": [{}] * 257}, "256 rows"
    else:
        yield "text/csv", "year,spots\n" + "1,1\n" * 41, "40 rows"
        yield "application/json", {"rows": [{"spots": 1}] * 41}, "40 rows"


def read_request(predictor, media, body):
    encoder = predictor.encoder
    parts = serve_inputs.split_request(encoder, media, body)
    return join([serve_inputs.read_part(encoder, part) for part in parts])


@pytest.mark.parametrize("kind", ["digits", "texts", "wine", "sunspots"])
def test_too_much_is_refused_before_the_work(zoo, kind, monkeypatch):
    predictor = Predictor(zoo(kind), log=lambda _: None)
    for of, name in ((type(predictor.encoder), "raw"), (image_file, "read_image")):
        monkeypatch.setattr(of, name, lambda *_: pytest.fail("it was read"))
    limits = Limits(steps=40, characters=1000, pixels=10**6, pixels_in_all=4 * 10**6)
    monkeypatch.setattr(serve_inputs, "LIMITS", limits)
    for media, body, words in too_much(kind):
        if isinstance(body, dict):
            body = json.dumps(body, default=lambda content: base64.b64encode(content).decode())
        body = body if isinstance(body, bytes) else body.encode()
        with pytest.raises(serve_inputs.Refused, match=words) as refused:
            read_request(predictor, media, body)
        assert refused.value.status_code == 413


@pytest.mark.parametrize("comma", [",", ";"])
def test_rows_are_counted_as_they_are_read(zoo, comma):
    predictor = Predictor(zoo("wine"), log=lambda _: None)
    names = [column.name for column in predictor.encoder.columns]
    note = f'"a{comma}\n\r\n""\n"'
    lines = [comma.join([*names, "note"]), *[comma.join(["1"] * len(names) + [note])] * 256]
    body = "\n\n".join(lines).encode()
    assert len(read_request(predictor, "text/csv", body)) == 256


def test_numbers_that_json_does_not_have(zoo, monkeypatch):
    """Too large ones are refused, and what a model makes of others is null."""
    with client_of(zoo("sunspots")) as client:
        for values in ([1e308] * 40, [1.0] * 30 + [-1e308] + [1.0] * 9, [1.0] * 39 + [1e39]):
            rows = [{"year": 1700 + i, "spots": value} for i, value in enumerate(values)]
            answer = client.post("/predict", json={"rows": rows})
            assert answer.status_code == 422 and "float32" in answer.json()["error"], answer.text
    predictor = Predictor(zoo("digits"), log=lambda _: None)
    values = {"class": "1", "probability": np.nan, "values": [np.inf, (-np.inf, 1.5, None)]}
    with TestClient(serve.app(predictor)) as client:
        monkeypatch.setattr(predictor, "answer_examples", lambda *_, draw: [("", values)] * 8)
        answer = client.post("/predict", content=odd_pictures()[0])
        assert answer.json()["answers"] == [
            {"class": "1", "probability": None, "values": [None, [None, 1.5, None]]}
        ]


def test_odd_files_in_a_run_folder(zoo, tmp_path):
    """Nothing is served that is a link, or no file; the card is valid, whatever is in results."""
    folder, results = tmp_path / "run", tmp_path / "run" / "results.json"
    shutil.copytree(zoo("digits"), folder)
    (tmp_path / "secret").write_text("secret")
    (folder / "link.png").symlink_to(tmp_path / "secret")
    (folder / "inside.png").symlink_to(folder / "config.json")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "latest").symlink_to(folder)  # which users may have

    def strictly(text):
        return json.loads(text, parse_constant=lambda word: pytest.fail(word))

    with client_of(tmp_path / "latest") as client:
        card = strictly(client.get("/card").text)
        assert "curves.png" in card["figures"] and card["test"]["accuracy"] > 0
        assert client.get("/figures/curves.png").status_code == 200
        for name in ("link", "inside", "gone", "folder", "pipe"):
            assert f"{name}.png" not in card["figures"]
            answer = client.get(f"/figures/{name}.png")
            assert answer.status_code == 404 and "openapi" in answer.json()["error"]
        for text in (
            '{"test": {"accuracy": NaN, "loss": 1e999}, "baselines": {"a": {"loss": -Infinity}}}',
            "[]", "3", "NaN", '{"test": 3}', '{"test": {"loss": [NaN]}}', '{"baselines": [1]}',
            '{"baselines": {"a": null}}', '{"data": 7, "parameters": NaN}', '{"parameters": "3"}',
            '{"data": {"notes": 3}}', '{"data": {"notes": ["\\ud800", NaN, [1]]}}', "[" * 9999, "",
        ):  # fmt: skip
            results.write_text(text)
            card = strictly(client.get("/card").text)
            assert set(card["test"].values()) <= {None} and card["parameters"] is None
        results.rename(tmp_path / "results.json")
        (tmp_path / "results.json").write_text('{"test": {"accuracy": 1}}')
        results.symlink_to(tmp_path / "results.json")
        assert client.get("/card").json()["test"] == {}
        results.unlink()
        os.mkfifo(results)
        assert client.get("/card").json()["test"] == {}


async def asgi(app, body: bytes, gone=None, media="application/json"):
    """(status, body) of what an application answers; body None: the client stops in the middle of
    it. gone: an event, after which the client is gone."""
    sent, answered = [], asyncio.Event()
    parts = [{"type": "http.request", "body": body or b"{", "more_body": body is None}]

    async def receive():
        if not parts:
            await (gone or answered).wait()
            return {"type": "http.disconnect"}
        return parts.pop()

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", media.encode())]
    scope = {
        "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict",
        "query_string": b"", "headers": headers, "server": ("127.0.0.1", 80), "http_version": "1.1",
    }  # fmt: skip
    await app(scope, receive, send)
    answered.set()
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.fixture
def stuck(zoo, monkeypatch):
    """(an application, an event that is set when a picture is read, which takes until the next
    one is set, that one, sizes of the files that were read)."""
    predictor, sizes = Predictor(zoo("digits"), log=lambda _: None), []
    begun, end = threading.Event(), threading.Event()
    parse = type(predictor.encoder).parse

    def stop(self, upload, *args):
        sizes.append(len(upload.content))
        begun.set()
        assert end.wait(60)
        return parse(self, upload, *args)

    app = serve.app(predictor)
    monkeypatch.setattr(type(predictor.encoder), "parse", stop)
    yield app, begun, end, sizes
    end.set()


MANY = json.dumps({"images": [base64.b64encode(odd_pictures()[0]).decode()] * 20}).encode()


def test_many_pictures_keep_nobody_waiting(stuck):
    """Those of other requests are read between them."""
    app, begun, end, sizes = stuck
    small = odd_pictures()[7]

    async def go():
        answers = [asyncio.create_task(asgi(app, MANY)) for _ in range(2)]
        await asyncio.to_thread(begun.wait)
        answers.append(asyncio.create_task(asgi(app, small, media="image/bmp")))
        for _ in range(50):  # until it stands in the queue
            await asyncio.sleep(0)
        end.set()
        while len(small) not in sizes:
            await asyncio.sleep(0.01)
        [answer.cancel() for answer in answers]
        await asyncio.gather(*answers)

    asyncio.run(asyncio.wait_for(go(), 60))
    assert sizes.index(len(small)) < 20  # of 40 before it, all in line


def test_work_ends_with_its_client(stuck):
    app, begun, end, sizes = stuck

    async def go():
        gone = asyncio.Event()
        answer = asyncio.create_task(asgi(app, MANY, gone))
        await asyncio.to_thread(begun.wait)
        gone.set()
        await answer
        end.set()
        return await asyncio.wait_for(asgi(app, b"{}"), 60)  # the threads are free

    status, _ = asyncio.run(go())
    assert status == 422 and len(sizes) == 1


def test_work_takes_no_longer_than_it_may(stuck, monkeypatch):
    app, _, end, sizes = stuck
    monkeypatch.setattr(serve, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(serve, "READ_SECONDS", 0.1)
    status, body = asyncio.run(asgi(app, MANY))
    assert status == 503 and "0.1 seconds" in json.loads(body)["error"]
    end.set()
    status, body = asyncio.run(asgi(app, None))
    assert status == 408 and "0.1 seconds" in json.loads(body)["error"] and len(sizes) == 1


def test_a_server_that_stops_says_so(stuck):
    app, begun, *_ = stuck

    async def go():
        answer = asyncio.create_task(asgi(app, MANY))
        await asyncio.to_thread(begun.wait)
        answer.cancel()  # as uvicorn does
        return await answer

    status, body = asyncio.run(go())
    assert status == 503 and "stopping" in json.loads(body)["error"]


def test_bodies_share_the_memory(digits, stuck, monkeypatch):
    app, begun, end, _ = stuck
    monkeypatch.setattr(serve, "MOST_BYTES_IN_ALL", len(MANY) + 1)

    async def go():
        first = asyncio.create_task(asgi(app, MANY, asyncio.Event()))
        await asyncio.to_thread(begun.wait)
        second = await asgi(app, MANY)
        first.cancel()
        await first
        end.set()
        return second, await asgi(app, b"{" + b" " * (len(MANY) - 1))

    second, third = asyncio.run(go())
    assert second[0] == 429 and third[0] == 400  # there is room again


STUCK = """
import runpy, sys, time
from dlflax.inference import serve
serve.STOP_SECONDS, serve.SAY_SECONDS, read = 4, 2, serve.read_part
size, sys.argv = int(sys.argv[1]), ["serve", *sys.argv[2:]]

def read_part(encoder, part):
    return time.sleep(600) if len(part.args[0].content) == size else read(encoder, part)

serve.read_part = read_part
runpy.run_module("experiments.serve", run_name="__main__")
"""


def started(folder, *command):
    """(a server's process, its address)."""
    process = subprocess.Popen(
        [sys.executable, *(command or ("-m", "experiments.serve")), str(folder), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("http://"):
            return process, line.split()[0]
    raise AssertionError(process.stderr.read())


def asked(address, content):
    request = urllib.request.Request(f"{address}/predict", content, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["answers"][0]


def half_sent(address, content):
    """(a connection on which half of a request is sent, the other half)."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    lines = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: image/png"]
    head = "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""])
    connection.sendall(head.encode() + content[:50])
    return connection, content[50:]


def reply(connection) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.slow
def test_the_command_ends_cleanly_and_answers_the_same_again(zoo):
    """With a request that is on its way, and one that keeps its thread for ever."""
    content, other = odd_pictures()[7], odd_pictures()[5]
    process, address = started(zoo("digits"))
    first = asked(address, content)
    process.kill()
    process.communicate(timeout=60)
    process, address = started(zoo("digits"), "-c", STUCK, str(len(other)))
    assert asked(address, content) == first
    slow, rest = half_sent(address, content)
    stuck, rest_of_stuck = half_sent(address, other)
    stuck.sendall(rest_of_stuck)
    assert asked(address, content) == first  # by the other thread
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    slow.sendall(rest)
    answer = reply(slow)
    assert b" 200 " in answer.split(b"\r\n")[0] and first["class"].encode() in answer
    answer = reply(stuck)
    assert b" 503 " in answer.split(b"\r\n")[0] and b"the server is stopping" in answer
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "stopped" in out and "Traceback" not in err
    with pytest.raises(urllib.error.URLError):
        asked(address, content)


def test_a_port_that_is_taken_and_a_folder_that_is_none(zoo, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} cannot be used"):
            serve.serve(Predictor(zoo("digits"), log=lambda _: None), port=port)
        with pytest.raises(InputError, match="--allow-host 'http://a' is no host"):
            serve.serve(Predictor(zoo("digits"), log=lambda _: None), allow_hosts=["http://a"])
    with pytest.raises(InputError, match="not a run folder"):
        Predictor(tmp_path / "none")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1200, 800), (390, 844)])
def test_the_page_in_a_browser(browser, zoo, size, tmp_path):
    """Draws, drops and types."""
    (tmp_path / "digit.png").write_bytes(odd_pictures()[7])
    processes = {name: started(zoo(name)) for name in ("digits", "texts", "sunspots")}
    try:
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        wrong, urls = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))

        def answer(name):
            page.goto(processes[name][1])
            page.wait_for_selector("#scores tr")

        answer("digits")
        box = page.locator("#draw").bounding_box()
        x, y, side = box["x"], box["y"], box["width"]
        page.mouse.move(x + 0.3 * side, y + 0.2 * side)
        page.mouse.down()
        page.mouse.move(x + 0.7 * side, y + 0.2 * side, steps=8)
        page.mouse.move(x + 0.45 * side, y + 0.8 * side, steps=8)
        page.mouse.up()
        page.wait_for_selector("#seen canvas >> nth=1")
        assert page.inner_text("#answer") in set("0123456789")
        assert page.locator("#bars .row").count() == 10
        page.click("text=Clear")
        assert page.locator("#answer").count() == 0
        page.set_input_files("#file", tmp_path / "digit.png")
        page.wait_for_selector("#answer")
        page.evaluate("""async () => {
            const bytes = await (await fetch("figures/curves.png")).blob();
            const data = new DataTransfer();
            data.items.add(new File([bytes.slice(0, 50)], "cut.png", {type: "image/png"}));
            document.querySelector("#drop").dispatchEvent(
                new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""")
        page.wait_for_function("document.querySelector('#error').textContent")
        assert "damaged" in page.inner_text("#error")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

        answer("texts")
        page.fill("#text", "a good day")
        page.click("#ask")
        page.wait_for_selector("#answer")
        assert page.inner_text("#answer") in ("0", "1")
        answer("sunspots")
        page.click("#ask")
        page.wait_for_selector("#bars svg polyline >> nth=1")
        own = ("http://127.0.0.1", "data:", "blob:")
        assert not wrong and all(url.startswith(own) for url in urls)
    finally:
        for process, _ in processes.values():
            process.kill()
            process.communicate()
