"""A model behind HTTP: the answers of predict, one sentence for bad input, a clean end."""

import base64
import io
import json
import os
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

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dlflax import data
from dlflax.errors import InputError
from dlflax.run import serve, serve_inputs
from dlflax.run.export import exported
from dlflax.run.predict import Predictor
from experiments import forecast, mnist, sentiment, tabular

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_run):
    """Small runs of pictures, texts, a table and a series."""
    place = tmp_path_factory.mktemp("runs")

    def train_one(name, module, *flags):
        small_run(place / name, module, *flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr("dlflax.run.exit_codes.compilation_cache", lambda: None)
        train_one("mnist", mnist, "--dataset", "digits", "--model.features", "8")
        rows = [f"{'good' if i % 2 else 'poor'} day number {i},{i % 2}" for i in range(200)]
        (place / "notes.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
        train_one("sentiment", sentiment, "--data-dir", f"{place}/notes.csv",
                  "--model.features", "8")  # fmt: skip
        train_one("tabular", tabular, "--dataset", "wine")
        train_one("forecast", forecast, "--dataset", "sunspots", "--window", "22",
                  "--horizon", "11")  # fmt: skip
    return place


def client_of(runs, name):
    return TestClient(serve.app(Predictor(runs / name, log=lambda _: None)))


@pytest.fixture(scope="module")
def digits(runs):
    with client_of(runs, "mnist") as client:
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


def test_predict_serve_and_export_agree_on_odd_pictures(runs, digits, tmp_path):
    contents = odd_pictures()
    paths = [tmp_path / f"{i}.png" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    predictor = Predictor(runs / "mnist", log=lambda _: None)
    answers = predictor.answers([str(path) for path in paths])
    said = np.array([list(values["probabilities"].values()) for _, values in answers])
    one_by_one = [
        digits.post("/predict", content=content, headers={"content-type": "image/png"}).json()
        for content in contents
    ]
    served = [list(each["answers"][0]["probabilities"].values()) for each in one_by_one]
    np.testing.assert_allclose(served, said, atol=1e-5)
    together = digits.post(
        "/predict", json={"pictures": [base64.b64encode(c).decode() for c in contents]}
    ).json()["answers"]
    served = [list(each["probabilities"].values()) for each in together]
    np.testing.assert_allclose(served, said, atol=1e-5)
    function, _ = exported(predictor)
    _, _, batch = predictor.config.data.read([str(path) for path in paths], predictor.data, None)
    np.testing.assert_allclose(function(batch["inputs"])["probabilities"], said, atol=1e-5)


def test_other_kinds_of_inputs(runs):
    with client_of(runs, "sentiment") as client:
        answers = client.post("/predict", json={"texts": ["a good day", "é", ""]}).json()
        assert [each["text"] for each in answers["answers"]] == ["a good day", "é", ""]
        alone = client.post("/predict", content=b"a good day",
                            headers={"content-type": "text/plain; charset=utf-8"})  # fmt: skip
        assert alone.json()["answers"][0]["probabilities"] == pytest.approx(
            answers["answers"][0]["probabilities"], abs=1e-5
        )
        assert client.post("/look", json={"texts": ["a"]}).status_code == 404
    with client_of(runs, "tabular") as client:
        columns = client.get("/card").json()["columns"]
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
    with client_of(runs, "forecast") as client:
        (answer,) = client.post("/predict", json={"rows": []}).json()["answers"]
        predictor = Predictor(runs / "forecast", log=lambda _: None)
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
    yield png(bomb), binary, {422}
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
        '{"pictures": 1}', '{"pictures": []}', '{"pictures": [1]}', '{"pictures": ["%"]}',
        '{"pictures": [""]}', '{"pictures": [null]}', '{"pictures": {"a": 1}}', '{"texts": ["a"]}',
        f'{{"pictures": ["{good}"], "more": 1}}', f'{{"pictures": ["{good[:40]}"]}}',
        json.dumps({"pictures": [good] * 257}), f'{{"pictures": ["{good}", "AAAA"]}}',
        '{"pictures": ["\\ud800"]}', '{"rows": []}', '{"inputs": [[0]]}', "\x00", "{'a': 1}",
        '{"pictures": ["é"]}', '{"pictures": [[]]}', "NaN",
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


def test_what_else_is_there(runs, digits):
    assert digits.get("/health").json() == {"status": "ok"}
    page = digits.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page.text  # nothing from elsewhere
    card = digits.get("/card").json()
    assert card["takes"] == "pictures" and card["draw"] and card["test"]["accuracy"] > 0
    assert card["pictures"][0] == "confusion_matrix.png"
    assert digits.get("/pictures/confusion_matrix.png").content.startswith(b"\x89PNG")
    for hidden in ("config.json", "..%2fconfig.json", "none.png", "%2e%2e"):
        assert digits.get(f"/pictures/{hidden}").status_code == 404
    for path, status in (("/nothing", 404), ("/predict", 405)):
        answer = digits.get(path)
        assert answer.status_code == status and "openapi" in answer.json()["error"]
    described = digits.get("/openapi.json").json()
    assert described["openapi"].startswith("3.") and set(described["paths"]) == {
        "/predict", "/look", "/card", "/health"}  # fmt: skip
    body = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "image/*"}


def test_where_it_looked(digits):
    content = odd_pictures()[0]
    found = digits.post("/look", content=content, headers={"content-type": "image/png"}).json()
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found[name].partition(",")[2]))))
        for name in ("seen", "looked")
    ]
    assert [each.shape for each in pictures] == [(28, 28)] * 2 and pictures[1].max() > 250
    assert found["answer"]["class"] in "0123456789"


def test_requests_share_batches_of_compiled_sizes(runs):
    predictor = Predictor(runs / "mnist", log=lambda _: None)
    sizes, of_batch = [], predictor.of_batch

    def counted(names, kind, batch, draw=True):
        sizes.append(len(names))
        return of_batch(names, kind, batch, draw)

    predictor.of_batch = counted
    content = odd_pictures()[0]
    with TestClient(serve.app(predictor)) as client:
        assert sizes == list(serve.SIZES)

        def post():
            client.post("/predict", content=content, headers={"content-type": "image/png"})

        threads = [threading.Thread(target=post) for _ in range(40)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        asked = {"pictures": [base64.b64encode(content).decode()] * 100}
        answers = client.post("/predict", json=asked).json()["answers"]
    assert len(answers) == 100 and len({json.dumps(each["probabilities"]) for each in answers}) == 1
    assert set(sizes) <= set(serve.SIZES) and len(sizes) < 3 + 40 + 3


def test_too_many_wait_their_turn(digits, monkeypatch):
    monkeypatch.setattr(serve, "MOST_WAITING", 3)
    asked = {"pictures": [base64.b64encode(odd_pictures()[0]).decode()] * 4}
    answer = digits.post("/predict", json=asked)
    assert answer.status_code == 429 and "try again" in answer.json()["error"]
    monkeypatch.setattr(serve_inputs, "MOST_INPUTS", 3)
    assert digits.post("/predict", json=asked).status_code == 413


def started(folder):
    """(a server's process, its address)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.serve", str(folder), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("http://"):
            return process, line.split()[0]
    raise AssertionError(process.stderr.read())


def asked(address, content):
    request = urllib.request.Request(f"{address}/predict", content, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["answers"][0]


def test_the_command_ends_cleanly_and_answers_the_same_again(runs):
    content = odd_pictures()[7]
    process, address = started(runs / "mnist")
    first = asked(address, content)
    process.kill()
    process.communicate(timeout=60)
    process, address = started(runs / "mnist")
    assert asked(address, content) == first
    host, port = address.removeprefix("http://").split(":")
    slow = socket.create_connection((host, int(port)))  # a request that is on its way
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(content)}\r\n\r\n"  # fmt: skip  # noqa: E501
    slow.sendall(head.encode() + content[:50])
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    slow.sendall(content[50:])
    reply = b""
    with slow:
        while part := slow.recv(65536):
            reply += part
    assert b" 200 " in reply.split(b"\r\n")[0] and first["class"].encode() in reply
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped" in out and "Traceback" not in err
    with pytest.raises(urllib.error.URLError):
        asked(address, content)


def test_a_port_that_is_taken_and_a_folder_that_is_none(runs, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} cannot be used"):
            serve.serve(Predictor(runs / "mnist", log=lambda _: None), port=port)
    with pytest.raises(InputError, match="not a run folder"):
        Predictor(tmp_path / "none")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.parametrize("size", [(1200, 800), (390, 844)])
def test_the_page_in_a_browser(runs, size, tmp_path):
    """Draws, drops and types. With SCREENSHOT=docs/serve.png it takes the README's picture."""
    playwright = pytest.importorskip("playwright.sync_api")
    (tmp_path / "digit.png").write_bytes(odd_pictures()[7])
    options = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    processes = {name: started(runs / name) for name in ("mnist", "sentiment", "forecast")}
    try:
        with playwright.sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            wrong, urls = [], []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda request: urls.append(request.url))

            def answer(name):
                page.goto(processes[name][1])
                page.wait_for_selector("#scores tr")

            answer("mnist")
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
            if os.environ.get("SCREENSHOT") and size[0] > 1000:
                page.screenshot(path=os.environ["SCREENSHOT"])
            page.click("text=Clear")
            assert page.locator("#answer").count() == 0
            page.set_input_files("#file", tmp_path / "digit.png")
            page.wait_for_selector("#answer")
            page.evaluate("""async () => {
                const bytes = await (await fetch("pictures/curves.png")).blob();
                const data = new DataTransfer();
                data.items.add(new File([bytes.slice(0, 50)], "cut.png", {type: "image/png"}));
                document.querySelector("#drop").dispatchEvent(
                    new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
            }""")
            page.wait_for_function("document.querySelector('#error').textContent")
            assert "damaged" in page.inner_text("#error")
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

            answer("sentiment")
            page.fill("#text", "a good day")
            page.click("#ask")
            page.wait_for_selector("#answer")
            assert page.inner_text("#answer") in ("0", "1")
            answer("forecast")
            page.click("#ask")
            page.wait_for_selector("#bars svg polyline >> nth=1")
            own = ("http://127.0.0.1", "data:", "blob:")
            assert not wrong and all(url.startswith(own) for url in urls)
            browser.close()
    finally:
        for process, _ in processes.values():
            process.kill()
            process.communicate()
