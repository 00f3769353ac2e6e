"""Absurd input of every kind: what reads it gives a right answer, or one sentence that says what is
wrong. The readers by themselves, and some whole commands, most of which are slow."""

import contextlib
import io
import json
import re
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import experiments
from dlflax import run
from dlflax.config import config as configs
from dlflax.config.experiment import from_presets
from dlflax.config.saved import load_encoder
from dlflax.data import ImageFolder, Series, Table, Text, make_splits
from dlflax.data.table.number_formats import NumberFormat, infer_formats
from dlflax.data.table.raw_table import RawTable
from dlflax.data.table.time_formats import infer_times
from dlflax.errors import InputError
from dlflax.inference.predict import Predictor
from dlflax.inference.serve_inputs import Refused, read_part, split_request
from dlflax.run.exit_codes import with_exit_codes
from dlflax.tune import sweep_command
from experiments import forecast, image_folder, mnist, predict, sentiment, tabular

pytestmark = pytest.mark.usefixtures("place")

SECONDS = 40  # what hangs, not what is slow
ODD_CELLS = (
    "", "nan", "-", '"', "\x00", "1,5", "x" * 5000, "=1+1", "\u202e", "9" * 400, "inf", "\r",
    "1e999", "2020-13-45", "12%", "€ 3", "0x10", "１２",
)  # fmt: skip
ABSURD = (
    "1e30", "-1", "nan", "inf", "-inf", "", "0", "x", "99999999999999999999", "2147483648", "-0.5",
    "-2147483649", "1e-400", "../..", "\x1b[31m", "None", "🙂", "-0.0", "/dev/null", "0.5", "7",
    "/nowhere/at/all", "true", "[1,2]", "*", "1.5",
)  # fmt: skip
TINY = ("--model", "mlp", "--model.features", "32", "--epochs", "1")


def examples(count):
    """Decides how many inputs are tried; the same ones every time."""
    skipped = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=skipped,
    )  # fmt: skip


def one_sentence(message):
    return "\n" not in message and message.endswith((".", "?"))


# Cells and files


@st.composite
def csv_bytes(draw, header, rows):
    """A CSV file of these rows that something may be wrong with."""
    rows = [list(map(str, row)) for row in rows[: draw(st.sampled_from([0, 1, 3, 12, 40]))]]
    for _ in range(draw(st.integers(0, 3)) if rows else 0):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        at = draw(st.integers(0, len(row)))
        row[at : at + 1] = [draw(st.sampled_from(ODD_CELLS) | st.text(max_size=8))]
    header = draw(st.sampled_from([[], header[:1], *[header] * 6, header + header, ["", ""]]))
    delimiter = draw(st.sampled_from(",,;\t|"))
    text = "\n".join(delimiter.join(row) for row in [header, *rows])
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1", "utf-8-sig"]))
    content = bytearray(text.encode(encoding, "replace"))
    for _ in range(draw(st.integers(0, 5)) if draw(st.booleans()) else 0):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


def read_by(source):
    """Loads and splits; nothing, or the one sentence."""
    try:
        splits = make_splits(source, source.load(lambda _: None), 0.2, 0)
    except InputError as error:
        assert one_sentence(str(error)), error
        return
    for part in filter(None, (splits.train, splits.val, splits.test)):
        assert np.isfinite(np.asarray(part["inputs"][:], np.float64)).all()


DATES = [(f"2020-{1 + i // 28:02}-{1 + i % 28:02}", f"{i * 1.5:.1f}") for i in range(40)]
NOTES = [(f"text {i} of some length", "ab"[i % 2]) for i in range(40)]


@examples(150)
@given(csv_bytes(["date", "value"], DATES))
def test_series(place, content):
    Path("a.csv").write_bytes(content)
    read_by(Series(data=Path("a.csv"), window=6, horizon=2))


@examples(150)
@given(csv_bytes(["text", "label"], NOTES))
def test_texts(place, content):
    Path("a.csv").write_bytes(content)
    read_by(Text(data=Path("a.csv"), max_length=8))


@examples(150)
@given(csv_bytes(["when", "value", "kind"], [(*row, "ab"[i % 2]) for i, row in enumerate(DATES)]))
def test_tables(place, content):
    Path("a.csv").write_bytes(content)
    read_by(Table(data=Path("a.csv"), target="kind"))


@examples(300)
@given(
    st.lists(
        st.from_regex(r"[-+]?[0-9]{0,4}([.,' ][0-9]{1,3}){0,2}( ?[%€$])?", fullmatch=True)
        | st.sampled_from(ODD_CELLS),
        min_size=1, max_size=8,
    ),
    st.sampled_from(",;\t"),
)  # fmt: skip
def test_a_cell_means_the_same_alone_as_in_its_column(cells, delimiter):
    cells = [cell.strip() for cell in cells]
    try:
        table = RawTable({"x": pa.array(cells)}, "a.csv", delimiter)
        how = infer_formats(table, ["x"])["x"]
    except InputError as error:
        assert one_sentence(str(error))
        return
    if how is None:
        return
    values, wrong = how.parse(cells)
    alone = [how.parse([cell]) for cell in cells]
    np.testing.assert_array_equal(values, [each[0][0] for each in alone])
    np.testing.assert_array_equal(wrong, [each[1][0] for each in alone])


@examples(300)
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(".,"))
def test_a_number_that_is_written_is_read_back(value, decimal):
    text = str(value).replace(".", decimal)
    assert NumberFormat(decimal=decimal).parse([text])[0][0] == value


@examples(300)
@given(
    st.lists(
        st.sampled_from(ODD_CELLS) | st.text("0123456789-/.:T ZQWMarch+", max_size=20), min_size=1
    ),
    st.booleans(),
)
def test_times(cells, regular):
    with contextlib.suppress(InputError):  # of two readings
        form = infer_times(cells, regular)
        assert form is None or not form.parse(cells)[1].any()


@st.composite
def folders(draw):
    """{file: bytes} of pictures with files, names and parts that are wrong."""
    odd = ["a", "b", "train", "test", "val", "[x]", "\x1b[2J", "ü"]
    files = {}
    for name in draw(st.lists(st.sampled_from(odd), max_size=3, unique=True)):
        inner = f"{name}/{draw(st.sampled_from('ab'))}" if draw(st.booleans()) else name
        for i in range(draw(st.integers(0, 12))):
            pixels = np.random.default_rng(len(files)).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, draw(st.sampled_from(["PNG", "JPEG", "GIF"])))
            content = file.getvalue()
            if draw(st.integers(0, 4)) == 0:
                content = content[: draw(st.integers(0, len(content)))]
            files[f"{inner}/{i}.{draw(st.sampled_from(['png', 'jpg', 'txt']))}"] = content
    return files


@examples(80)
@given(folders(), st.booleans())
def test_pictures(place, files, loop):
    with tempfile.TemporaryDirectory(dir=place) as folder:
        for name, content in files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        if loop:
            (Path(folder) / "loop").symlink_to(folder)
        read_by(ImageFolder(data=Path(folder), image_size=8))


LABELS = [(f"part{i % 2}/{i}.png", "ab"[i % 3 > 0], i * 1.5) for i in range(24)]


@examples(80)
@given(
    csv_bytes(["file", "label", "level"], LABELS),
    st.sampled_from(["label", "level", "file", "nothing"]),
)
def test_labels(place, content, target):
    for i, (name, *_) in enumerate(LABELS if not Path("photos").exists() else ()):
        (Path("photos") / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path("photos") / name)
    Path("labels.csv").write_bytes(content)
    labels = Path("labels.csv")
    read_by(ImageFolder(data=Path("photos"), image_size=8, labels_csv=labels, target=target))


# What a run folder and a request say

ZOO = ("texts", "digits", "series")
WRONG = st.sampled_from([
    None, 0, -1, 1e308, "x", "", [], {}, [1, "a"], {"class": "os:system"}, True, 2**70, "nan",
    {"function": "os:system"}, ["dlflax.models:MLP"],
])  # fmt: skip


def places(tree, path=()):
    """The paths of everything in JSON values."""
    yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def damage(tree, where, value):
    """One value is another, or gone where it is ..."""
    *inside, last = where
    for key in inside:
        tree = tree[key]
    if value is ...:
        del tree[last]
    else:
        tree[last] = value


@pytest.mark.parametrize("name", ZOO)
def test_config_json(zoo, place, name):
    """Another value, or none, anywhere in it."""
    saved = json.loads((zoo(name) / "config.json").read_text(encoding="utf-8"))
    module = {"texts": sentiment, "digits": mnist, "series": forecast}[name]
    experiment = from_presets(saved["experiment"], module.PRESETS, {})

    @examples(120)
    @given(st.sampled_from(list(places(saved))[1:]), WRONG | st.just(...))
    def check(where, value):
        tree = json.loads(json.dumps(saved))
        damage(tree, where, value)
        (place / "config.json").write_text(json.dumps(tree), encoding="utf-8")
        try:
            run.config_from_json(run.load_config(place)["config"], place, experiment)
        except InputError as error:
            assert one_sentence(str(error)), error

    check()


@pytest.mark.parametrize("name", [*ZOO, "table"])
def test_encoder_json(zoo, place, name):
    """As config.json."""
    folder = zoo(name)
    saved = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    module = {"texts": sentiment, "digits": mnist, "series": forecast, "table": tabular}[name]
    experiment = from_presets(module.__name__.rpartition(".")[2], module.PRESETS, {})
    if name == "texts":
        shutil.copy(folder / "tokenizer.json", place)

    @examples(120)
    @given(st.sampled_from(list(places(saved))[1:]), WRONG | st.just(...))
    def check(where, value):
        tree = json.loads(json.dumps(saved))
        damage(tree, where, value)
        (place / "encoder.json").write_text(json.dumps(tree), encoding="utf-8")
        try:
            load_encoder(place, experiment)
        except InputError as error:
            assert one_sentence(str(error)), error

    check()


LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9)
JSON = LEAVES
for _ in range(3):
    JSON = LEAVES | st.lists(JSON, max_size=4) | st.dictionaries(st.text(max_size=5), JSON)
BODIES = st.one_of(
    st.tuples(st.just("application/json"), st.binary(max_size=40)),
    st.tuples(st.just("application/json"), JSON.map(lambda value: json.dumps(value).encode())),
    st.tuples(
        st.just("application/json"),
        st.tuples(st.sampled_from(["rows", "texts", "pictures", "inputs"]), JSON).map(
            lambda pair: json.dumps(dict([pair])).encode()
        ),
    ),
    st.tuples(st.sampled_from(["text/csv", "text/plain", "image/png", "", "x"]), st.binary()),
    st.tuples(st.just("text/csv"), csv_bytes(["n", "y", "day"], [(i, i, 0) for i in range(40)])),
)


@pytest.mark.parametrize("name", [*ZOO, "table"])
def test_request_bodies(zoo, name):
    encoder = Predictor(zoo(name), log=lambda _: None).encoder

    @examples(150)
    @given(BODIES)
    def check(request):
        try:
            examples = read_part(encoder, split_request(encoder, *request)[0])
        except Refused as refused:
            assert 400 <= refused.status_code < 500 and one_sentence(refused.detail)
        else:
            inputs = encoder.batch(encoder.raw(examples))["inputs"]
            assert len(examples.names) == len(inputs) > 0

    check()


# Command lines

MODULES = {"mnist": mnist, "sentiment": sentiment, "forecast": forecast, "tabular": tabular}


def ended(command):
    """(exit code, stdout, stderr) of a command in this process, which may take SECONDS."""
    out, err, code = io.StringIO(), io.StringIO(), 0

    def too_long(*_):
        raise AssertionError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                command()
            except SystemExit as exit_:
                code = exit_.code or 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, out.getvalue(), err.getvalue()


def check_end(code, err, codes=(0, 1, 2)):
    """One sentence of ours, or tyro's box."""
    lines = [line for line in err.strip().splitlines() if line]
    of_tyro = r" ?(Unrecognized|Invalid|Value error|Parsing|Required|Missing|Ambiguous|Error)"
    ours = len(lines) == 1 and lines[0].startswith("error: ")
    assert code in codes and "Traceback" not in err, (code, err)
    assert code == 0 or ours or re.match(of_tyro, err.lstrip("\n")), err


@pytest.fixture(scope="module")
def flags():
    """{experiment: all flags that its --help-all shows}."""
    found = {}
    for name, module in MODULES.items():
        _, out, _ = ended(lambda module=module: run.main("x", module.PRESETS, args=["--help-all"]))
        found[name] = sorted(set(re.findall(r"--[a-z][a-z0-9.-]+", out)))
        found[name] = [flag for flag in found[name] if not flag.startswith("--help")]
    return found


def absurd_words(draw, known):
    words = []
    for flag in draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True)):
        words += [flag, *draw(st.lists(st.sampled_from(ABSURD), min_size=1, max_size=2))]
    return words


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, 12) for name in MODULES]
    + [pytest.param(name, 30, marks=pytest.mark.slow) for name in MODULES],
)
def test_what_flags_say(flags, name, count):
    """Parsed and checked, and no more."""
    experiment = from_presets(name, MODULES[name].PRESETS, {})

    @examples(count)
    @given(st.data())
    def check(data):
        words = absurd_words(data.draw, flags[name])
        command = lambda: configs.check(run.parse(experiment, words))  # noqa: E731
        code, _, err = ended(lambda: with_exit_codes(command))
        check_end(code, err, (0, 2))

    check()


def some(count, quick):
    """Seeds, of which the first are quick."""
    return pytest.mark.parametrize(
        "seed",
        [*range(quick), *(pytest.param(i, marks=pytest.mark.slow) for i in range(quick, count))],
    )


@some(16, 2)
def test_whole_commands_with_absurd_flags(place, flags, seed):
    rng = np.random.default_rng(seed)
    name = ("mnist", "forecast")[seed % 2]
    words = list(TINY if name == "mnist" else ("--epochs", "1"))
    for flag in rng.choice(flags[name], 1 + seed % 3, replace=False):
        words += [str(flag), str(rng.choice(ABSURD))]
    words = [word for word in words if word != "--distributed"]
    module = MODULES[name]
    if seed % 8 == 6:
        words = ["mnist", *words, "--trials", "2", "--population-size", "2"]
        command = lambda: sweep_command.main("random_search", experiments, ("random",), words, "")  # noqa: E731
    else:
        command = lambda: run.main(  # noqa: E731
            name, module.PRESETS, getattr(module, "ARCHITECTURES", {}), words
        )
    code, _, err = ended(command)
    check_end(code, err)


def damage_bytes(path, rng):
    """Bytes are flipped, cut off, or others; or the file is gone, empty, a folder."""
    content, kind = bytearray(path.read_bytes()), rng.integers(6)
    if kind == 0 and content:
        for at in rng.integers(0, len(content), 1 + rng.integers(8)):
            content[at] ^= rng.integers(1, 256)
    elif kind == 1:
        content = content[: rng.integers(len(content) + 1)]
    elif kind == 2:
        content = bytearray(rng.bytes(300))
    elif kind == 3:
        content = bytearray()
    path.unlink()
    if kind == 4:
        path.mkdir()
    elif kind < 4:
        path.write_bytes(content)


@some(18, 1)
def test_damaged_run_folders(place, zoo, seed):
    """Asked and resumed."""
    rng = np.random.default_rng(seed)
    name, folder = ZOO[seed % 3], place / "run"
    shutil.copytree(zoo(name), folder)
    files = sorted(
        path for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts and path.suffix != ".png"
    )  # fmt: skip
    damage_bytes(files[rng.integers(len(files))], rng)
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save("x.png")
    module = {"texts": sentiment, "digits": mnist, "series": forecast}[name]
    inputs = {"texts": ("a good day",), "digits": ("x.png",), "series": ()}[name]
    architectures = getattr(module, "ARCHITECTURES", {})
    for command in (
        lambda: with_exit_codes(lambda: predict.command(folder, inputs, True)),
        lambda: run.main(
            module.__name__.rpartition(".")[2], module.PRESETS, architectures,
            ["--run-dir", str(folder), "--resume"],
        ),
    ):  # fmt: skip
        code, _, err = ended(command)
        assert "Traceback" not in err and code in (0, 1, 2, 3), (code, err)
        assert code == 0 or "error: " in err, err


def test_a_command_says_what_is_wrong_with_a_folder_and_draws_no_codes(place):
    for name in ("[x]", "\x1b[2J"):
        (place / "data" / name).mkdir(parents=True)
    flags = ["--preset", "scratch", "--data", "data", "--run-dir", "run"]
    code, out, err = ended(
        lambda: run.main("image_folder", image_folder.PRESETS, image_folder.ARCHITECTURES, flags)
    )
    check_end(code, err, (2,))
    assert "\x1b" not in out + err
