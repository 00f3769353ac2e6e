"""Absurd command lines, damaged run folders, damaged data: one sentence, never a traceback.

All of them: python -m pytest tests/test_fuzz.py -m 'slow or not slow' (500, 300 and 200). The suite
has a sample, chosen by a seed.
"""

import contextlib
import csv
import io
import json
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import experiments
from dlflax import run
from dlflax.run import with_exit_codes
from dlflax.tune import cli
from experiments import forecast, image_folder, mnist, predict, sentiment

pytestmark = pytest.mark.usefixtures("place")

SECONDS = 40  # what hangs, not what is slow: 10 s passed on one machine and failed on another
NUMBERS = (
    "1e30", "-1", "nan", "inf", "0", "99999999999999999999", "2147483648", "-2147483649", "1e-400",
    "0.5", "1.5", "-0.5", "7",
)  # fmt: skip
ABSURD = (
    "1e30", "-1", "nan", "inf", "-inf", "", "0", "x", "99999999999999999999", "../..", "\x1b[31m",
    "None", "🙂", "1e-400", "-0.0", "/dev/null", "/nowhere/at/all", "0.5", "true", "[1,2]", "*",
)  # fmt: skip
TINY = ("--model", "mlp", "--model.features", "4", "--epochs", "1", "--batch-size", "64")


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


def one_sentence(err):
    """Of ours, or tyro's box."""
    lines = [line for line in err.strip().splitlines() if line]
    of_tyro = r" ?(Unrecognized|Invalid|Value error|Parsing|Required|Missing|Ambiguous|Error)"
    return (len(lines) == 1 and lines[0].startswith("error: ")) or re.match(
        of_tyro, err.lstrip("\n")
    )


def cases(name, count, sample):
    """Seeds 0 to count - 1; those after the sample are slow."""
    return pytest.mark.parametrize(
        name,
        [*range(sample), *(pytest.param(i, marks=pytest.mark.slow) for i in range(sample, count))],
    )


# Command lines


def flags_of(experiment, args=()):
    """All flags that its --help shows."""
    _, out, _ = ended(lambda: run.main("mnist", experiment.PRESETS, args=[*args, "--help-all"]))
    return sorted(set(re.findall(r"--[a-z][a-z0-9.-]+", out)) - {"--help", "--help-all"})


def command_line(seed):
    """(command, its words): some flags of some command with some values."""
    rng = np.random.default_rng(seed)
    module = (mnist, mnist, sentiment, forecast, image_folder)[seed % 5]
    name = module.__name__.rpartition(".")[2]
    base = {"mnist": TINY, "image_folder": ("--data-dir", "nothing")}.get(name, ("--epochs", "1"))
    known = flags_of(module)
    words = list(base)
    for flag in rng.choice(known, 1 + seed % 3, replace=False):
        words.append(str(flag))
        values = NUMBERS if rng.random() < 0.7 else ABSURD
        words += [str(rng.choice(values)) for _ in range(1 + (rng.random() < 0.1))]
    words = [word for word in words if word != "--distributed"]
    if module is sentiment and "--folds" in words:  # 7,500 words seven times take minutes
        words[words.index("--folds") + 1] = "1"
    if seed % 4 == 3 and name == "mnist":
        extra = ("--trials", "2", "--population", "2")
        search = lambda: cli.main(  # noqa: E731
            "random_search", experiments, ("random",), ["mnist", *words, *extra], ""
        )
        return search, words
    architectures = getattr(module, "ARCHITECTURES", {})
    return lambda: run.main(name, module.PRESETS, architectures, words), words


@cases("seed", 500, 20)
def test_absurd_command_lines(place, seed):
    command, words = command_line(seed)
    code, _, err = ended(command)
    assert code in (0, 1, 2), (words, code, err)
    assert "Traceback" not in err
    assert code == 0 or one_sentence(err), (words, err)


# Run folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of texts, of pictures and of a series, two epochs each."""
    made = tmp_path_factory.mktemp("runs")
    with open(made / "notes.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(f"note {i} {'good' if i % 2 else 'poor'} day", i % 2) for i in range(60)]
        csv.writer(file).writerows([("text", "label"), *rows])
    for name, module, flags in (
        ("texts", sentiment, ["--data-dir", str(made / "notes.csv"), "--model.features", "4"]),
        ("pictures", mnist, ["--model", "mlp", "--model.features", "4", "--dataset", "digits"]),
        ("series", forecast, ["--dataset", "sunspots", "--model", "mlp", "--window", "22",
                              "--horizon", "11", "--model.features", "4"]),
    ):  # fmt: skip
        flags += ["--epochs", "2", "--batch-size", "32", "--run-dir", str(made / name)]
        architectures = getattr(module, "ARCHITECTURES", {})
        run.main(module.__name__.rpartition(".")[2], module.PRESETS, architectures, flags)
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(made / "x.png")
    return made


def leaves(tree, path=()):
    """The paths of everything in JSON values."""
    yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from leaves(tree[key], (*path, key))


WRONG = (None, 0, -1, 1e308, "x", "", [], {}, [1, "a"], {"class": "os:system"}, True, 2**70, "nan",
         {"function": "os:system"}, ["dlflax.models:MLP"])  # fmt: skip


def damage_json(path, rng):
    """One value is gone or another, somewhere in a JSON file."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    where = list(leaves(tree))[1:]
    *inside, last = where[rng.integers(len(where))]
    at = tree
    for key in inside:
        at = at[key]
    if rng.random() < 0.3:
        del at[last]
    else:
        at[last] = WRONG[rng.integers(len(WRONG))]
    path.write_text(json.dumps(tree), encoding="utf-8")
    return f"{path.name}: {'.'.join(map(str, (*inside, last)))}"


def damage_bytes(path, rng):
    """Bytes are flipped, cut off, or others; or the file is gone, empty, a folder."""
    content, kind = bytearray(path.read_bytes()), rng.integers(6)
    if kind == 0 and content:
        for place in rng.integers(0, len(content), 1 + rng.integers(8)):
            content[place] ^= rng.integers(1, 256)
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
    return f"{path.name}: {kind}"


@cases("seed", 300, 12)
def test_damaged_run_folders(place, runs, seed):
    """Resumed and asked: right answers, or one sentence."""
    rng = np.random.default_rng(seed)
    name = ("texts", "pictures", "series")[seed % 3]
    folder = place / "run"
    shutil.copytree(runs / name, folder)
    files = sorted(
        path for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts and path.suffix != ".png"
    )  # fmt: skip
    config = folder / "config.json"
    chosen = config if seed % 2 else files[rng.integers(len(files))]
    as_json = chosen.suffix == ".json" and rng.random() < 0.8
    what = (damage_json if as_json else damage_bytes)(chosen, rng)
    module = {"texts": sentiment, "pictures": mnist, "series": forecast}[name]
    architectures = getattr(module, "ARCHITECTURES", {})
    inputs = {"texts": ("a good day",), "pictures": (str(runs / "x.png"),), "series": ()}[name]
    for command in (
        lambda: with_exit_codes(lambda: predict.command(folder, inputs, True)),
        lambda: run.main(
            module.__name__.rpartition(".")[2], module.PRESETS, architectures,
            ["--run-dir", str(folder), "--resume"],
        ),
    ):  # fmt: skip
        code, _, err = ended(command)
        assert "Traceback" not in err and code in (0, 1, 2, 3), (what, code, err)
        assert code == 0 or "error: " in err, (what, err)


# Data


def damaged_csv(path, rng, series):
    """A table that something is wrong with."""
    n = int(rng.choice([0, 1, 3, 12, 40]))
    if series:
        rows = [[f"2020-{1 + i // 28:02}-{1 + i % 28:02}", f"{i * 1.5:.1f}"] for i in range(n)]
        header = ["date", "value"]
    else:
        rows = [[f"text {i} of some length", ("a", "b")[i % 2]] for i in range(n)]
        header = ["text", "label"]
    odd = ("", "nan", "-", '"', "\x00", "1,5", "x" * 5000, "=1+1", "\u202e", "9" * 400, "inf", "\r")
    for _ in range(rng.integers(1, 4)):
        if rows:
            row = rows[rng.integers(len(rows))]
            if rng.random() < 0.3:
                row.append("more")
            elif row:
                row[rng.integers(len(row))] = str(rng.choice(odd))
    header = [[], header[:1], header, header + header, ["", ""]][
        rng.choice(5, p=[0.1, 0.1, 0.6, 0.1, 0.1])
    ]
    delimiter = str(rng.choice([",", ";", "\t", "|"]))
    text = "\n".join(delimiter.join(row) for row in [header, *rows])
    content = text.encode(str(rng.choice(["utf-8", "utf-16", "latin-1", "utf-8-sig"])), "replace")
    if rng.random() < 0.3:
        content = bytearray(content)
        for place in rng.integers(0, max(len(content), 1), 5) if content else ():
            content[place] = rng.integers(256)
    path.write_bytes(bytes(content))


def damaged_pictures(folder, rng):
    """Folders of pictures with files, names and parts that are wrong."""
    odd = ["a", "b", "train", "test", "val", "[x]", "\x1b[2J", "ü"]
    names = [str(name) for name in rng.choice(odd, rng.integers(0, 4), replace=False)]
    for name in names:
        inner = folder / name
        if rng.random() < 0.4:
            inner = inner / str(rng.choice(["a", "b"]))
        inner.mkdir(parents=True, exist_ok=True)
        for i in range(rng.integers(0, 14)):
            file = io.BytesIO()
            pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, str(rng.choice(["PNG", "JPEG", "GIF"])))
            content = bytearray(file.getvalue())
            if rng.random() < 0.2:
                content = content[: rng.integers(len(content))]
            (inner / f"{i}.{rng.choice(['png', 'jpg', 'txt'])}").write_bytes(content)
    folder.mkdir(exist_ok=True)
    if rng.random() < 0.2:
        (folder / "loop").symlink_to(folder)


@cases("seed", 200, 12)
def test_damaged_data(place, seed):
    rng = np.random.default_rng(seed)
    kind = ("texts", "series", "pictures")[seed % 3]
    if kind == "pictures":
        damaged_pictures(place / "data", rng)
        module, data = image_folder, place / "data"
        flags = ["--preset", "scratch", "--size", "8", "--model.features", "4", "4", "4", "4"]
    else:
        module, data = (sentiment, forecast)[kind == "series"], place / "data.csv"
        damaged_csv(data, rng, kind == "series")
        flags = ["--model", "mlp", "--window", "6", "--horizon", "2", "--model.features", "4"]
        flags = flags if kind == "series" else ["--model.features", "4", "--batch-size", "8"]
    flags += ["--epochs", "1", "--run-dir", "run", "--data-dir", str(data)]
    architectures = getattr(module, "ARCHITECTURES", {})
    name = module.__name__.rpartition(".")[2]
    code, out, err = ended(lambda: run.main(name, module.PRESETS, architectures, flags))
    assert "Traceback" not in err and code in (0, 2), (code, err)
    assert code == 0 or one_sentence(err), err
    assert "\x1b" not in out + err
