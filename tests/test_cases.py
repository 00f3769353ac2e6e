"""Small inputs that once ended wrong, without a word: each kind of them, written anew."""

import csv
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import experiments
from dlflax import run
from dlflax.data import ImageFolder, Series, Text, make_splits
from dlflax.data.image.image_file import read_image
from dlflax.data.series.series_file import read_file
from dlflax.errors import InputError
from dlflax.inference.predict import Predictor
from dlflax.report import figures, tables
from dlflax.tune import sweep_command
from experiments import image_folder, mnist, predict, sentiment

ROOT = Path(__file__).parents[1]
TINY = ["--model", "mlp", "--model.features", "32", "--epochs", "1"]


pytestmark = pytest.mark.usefixtures("place")


def command(module, *flags, environment=(), code=0):
    """(stdout, stderr) of `python -m MODULE FLAGS`."""
    ran = subprocess.run(
        [sys.executable, "-m", module, *flags], capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(environment)},
    )  # fmt: skip
    assert ran.returncode == code, ran.stderr.decode()
    return ran.stdout.decode(), ran.stderr.decode()


def texts(count, of=lambda i: f"note {i} {'good' if i % 2 else 'poor'} day"):
    return [(of(i), ("poor", "good")[i % 2]) for i in range(count)]


def write(path, rows, header=("text", "label")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# Paths, encodings, output


ODD = 'project [v2], a*b?c, 50 % #1, it\'s "quoted", größe 大小'


@pytest.mark.slow
@pytest.mark.parametrize("name", [ODD, "x" * 200])
def test_a_run_folder_of_any_name(place, name):
    folder = place / name / "run"
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*TINY, "--run-dir", str(folder)])
    flags = ["--run-dir", str(folder), "--resume", "--epochs", "2"]
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, flags)
    assert json.loads((folder / "results.json").read_text())["epochs_run"] == 2
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save("x.png")
    assert len(Predictor(folder, experiments).answers(["x.png"])) == 1


@pytest.mark.slow
def test_a_sweep_folder_of_any_name(place):
    for trials in ("2", "3"):
        flags = [*TINY, "--trials", trials, "--population-size", "2"]
        flags += ["--run-dir", str(place / ODD)]
        sweep_command.main("random_search", experiments, ("random",), ["mnist", *flags], "")
    assert json.loads((place / ODD / "results.json").read_text())["trials"] == 3
    assert (place / ODD / "study.journal").stat().st_size > 0


@pytest.mark.slow
def test_another_locale(place):
    """All files are UTF-8, and a character that the terminal lacks is not the end."""
    write(place / "notes.csv", texts(40, lambda i: f"{'warm café' if i % 2 else 'kalt 冷'} nr {i}"))
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    flags = ["--model", "rnn", "--data", "notes.csv", "--epochs", "1", "--batch-size", "16",
             "--run-dir", "out"]  # fmt: skip
    command("experiments.sentiment", *flags, environment=locale.items())
    out, _ = command("experiments.predict", "out", "warm café", environment=locale.items())
    assert out.startswith("warm caf\\xe9: ")
    answers = Predictor(place / "out", experiments).answers(["warm café"])
    assert answers[0][1]["probability"] == pytest.approx(
        float(out.split("(")[1][:4]) / 100, abs=1e-3
    )


# One bad input among good ones


def photos(place, names, shade):
    for k, name in enumerate(names):
        (place / "photos" / name).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            pixels = np.full((20, 20, 3), shade(k, i), np.uint8)
            pixels[i % 20] = 255 - 10 * k
            Image.fromarray(pixels).save(place / "photos" / name / f"{i}.png")


def test_one_bad_file_does_not_silence_the_others(place, zoo, capsys):
    photos(place, ("day", "night"), lambda k, i: 200 - 150 * k + i)
    Path("cut.png").write_bytes(Path("photos/day/1.png").read_bytes()[:40])
    good = ["photos/day/1.png", "photos/night/1.png"]
    with pytest.raises(SystemExit) as exit_:
        predict.command(zoo("digits"), (good[0], "cut.png", good[1]), True)
    out, err = capsys.readouterr()
    assert exit_.value.code == 3
    assert [json.loads(line)["file"] for line in out.splitlines()] == good
    assert "error: cut.png: " in err
    with pytest.raises(SystemExit) as exit_:
        predict.command(zoo("digits"), ("cut.png",), True)
    assert exit_.value.code == 2


# What the data mean


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("TRAIN", "Test"), ("train", "testing")]
)
def test_parts_by_their_names_in_any_case(place, names):
    for name in names:
        for k, fruit in enumerate(("apple", "plum")):
            folder = place / "photos" / name / fruit
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = np.full((20, 20, 3), 40 + 100 * k + i + 20 * (name in names[1]), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    dataset = ImageFolder(data=place / "photos", image_size=16).load(lambda _: None)
    assert dataset.class_names == ("apple", "plum") and len(dataset.test["targets"]) == 12


@pytest.mark.figures
def test_names_with_dollars_are_shown_as_they_are(place, capsys):
    names, said = ("$5_$10", "$10_$20"), []
    matrix = {"matrix": lambda: figures.confusion_matrix(np.eye(2, dtype=int), names)}
    assert figures.draw(matrix, place, said.append)["matrix"].exists() and not said
    tables.print_table(None, ("class", "count"), [(name, "1") for name in names])
    assert "$5_$10" in capsys.readouterr().out


@pytest.mark.parametrize("most", [210, 4095, 4096, 65535])
def test_pictures_of_twelve_bits_keep_their_shades(place, most):
    pixels = np.linspace(0, most, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(pixels).save("x.png")
    found = read_image("x.png", (20, 20, 1), ink=False, deep=True)
    np.testing.assert_array_equal(found[:, :, 0], np.float32(pixels))
    if most <= 4095:  # beside images of 8 bits that is no scale
        with pytest.raises(InputError, match=f"pixels from 0 to {most}, which is no scale"):
            read_image("x.png", (20, 20, 1), ink=False)
    else:
        found = read_image("x.png", (20, 20, 1), ink=False)
        assert found.max() == round(255 * most / 65535)


def test_words_of_a_language_without_blanks_become_pieces(place):
    words = "天气很好心情坏电影难看精彩", "0123456789"
    rng = np.random.default_rng(0)

    def text(i):
        filler = "".join(rng.choice(list(words[0]), 6))
        return filler[:3] + ("喜欢" if i % 2 else "讨厌") + filler[3:]

    path = write(place / "reviews.csv", texts(200, text))
    source = Text(data=path)
    splits = make_splits(source, source.load(lambda _: None), 0.1, 0)
    assert "words are unknown to the tokenizer" in splits.notes[0]
    assert "--tokenizer bpe" in splits.notes[0] and splits.encoder.tokens == "bpe"
    assert (splits.train["inputs"] > 1).sum(1).mean() > 3  # several known tokens each
    words_alone = make_splits(
        Text(data=path, tokenizer="word"), source.load(lambda _: None), 0.1, 0
    )
    assert "try --tokenizer bpe" in words_alone.notes[0]


def test_texts_that_are_cut_are_counted(place):
    path = write(place / "letters.csv", texts(60, lambda i: f"a {'word ' * 400} end{i % 2} {i}"))
    source = Text(data=path)
    notes = make_splits(source, source.load(lambda _: None), 0.1, 0).notes
    assert notes[-1] == (  # before it, where it can be installed, that there is an encoder
        "100.0% of the training texts are truncated to 256 tokens: --max-length 403 keeps more."
    )


def test_training_texts_that_are_in_the_test_are_left_out(place):
    for part, count in (("train", 60), ("test", 20)):
        for i in range(count):
            folder = place / "notes" / part / ("no", "yes")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            text = f"Note {i}  of the DAY" if part == "train" else f"note {i} of the day"
            (folder / f"{i}.txt").write_text(text)
    said = []
    dataset = Text(data=place / "notes").load(said.append)
    assert "20 of 60 training texts are also held-out texts: dropped" in said[0]
    assert len(dataset.train["inputs"]) == 40 and len(dataset.test["inputs"]) == 20


def test_texts_with_two_labels_are_left_out_in_any_order(place):
    rows = texts(40) + [("Both  ways", "good"), ("both ways", "poor")]
    checksums = set()
    for order in (rows, rows[::-1]):
        said = []
        data = Text(data=write(place / "notes.csv", order)).load(said.append)
        assert "2 texts have more than one label and are dropped" in said[0]
        both = [*data.train["inputs"], *data.test["inputs"]]
        assert not any("oth" in text for text in both)
        checksums.add(len(both))
    assert checksums == {40}


@pytest.mark.slow
def test_a_class_that_never_occurs_does_not_count(place):
    write(place / "notes.csv", [*texts(120), ("one of its own", "other")])
    flags = ["--model", "rnn", "--data", "notes.csv", "--epochs", "8", "--batch-size", "16",
             "--run-dir", "out"]  # fmt: skip
    run.main("sentiment", sentiment.PRESETS, sentiment.ARCHITECTURES, flags)
    scores = json.loads(Path("out/results.json").read_text())["test"]
    assert scores["per_class"]["other"]["support"] == 0
    assert scores["accuracy"] == 1.0 and scores["macro_f1"] == scores["macro_recall"] == 1.0


# Series


def days(count, step=1):
    start = datetime.date(2020, 1, 1)
    return [start + datetime.timedelta(days=step * i) for i in range(count)]


def test_rows_are_sorted_by_their_times(place):
    rows = [(f"{day:%Y-%m-%d}", 100 + i) for i, day in enumerate(days(40))]
    said = []
    values = read_file(
        write(place / "a.csv", rows[::-1], ("date", "price")), log=said.append
    ).values
    np.testing.assert_array_equal(values, 100.0 + np.arange(40))
    assert said == [
        "a.csv: times are read from date, written as 2024-12-31.",
        "a.csv: the rows are not in the order of their times: sorted.",
        "a.csv: one row every day, from 2020-01-01 to 2020-02-09.",
    ]


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d",
        "%d.%m.%Y",
        "%m/%d/%Y",
        "%Y%m%d",
        "%Y-%m-%d %H:%M",
        "%d/%m/%y %I:%M %p",
        "%b %d %Y",
    ],
)
def test_times_of_many_forms(place, form):
    rows = [(day.strftime(form), i) for i, day in enumerate(days(40, step=7))]
    said = []
    read_file(write(place / "a.csv", rows, ("date", "value")), log=said.append)
    assert said[0].startswith("a.csv: times are read from date, written as ")
    assert said[1:] == ["a.csv: one row every 7 days, from 2020-01-01 to 2020-09-30."]


def test_what_is_missing_in_time_is_missing_in_the_series(place):
    rows = [(str(day), i) for i, day in enumerate(days(40)) if i not in (7, 8)]
    said = []
    values = read_file(write(place / "a.csv", rows, ("date", "value")), log=said.append).values
    assert len(values) == 40 and "2 of 40 values are missing" in said[-1]
    weekdays = [day for day in days(60) if day.weekday() < 5]
    rows = [(str(day), i) for i, day in enumerate(weekdays)]
    said.clear()
    assert len(
        read_file(write(place / "b.csv", rows, ("date", "value")), log=said.append).values
    ) == len(rows)
    assert "one row every day without weekends" in said[1]
    months = [f"20{10 + i // 12}-{i % 12 + 1:02}-01" for i in range(30)]
    said.clear()
    read_file(
        write(place / "c.csv", list(zip(months, range(30), strict=True)), ("m", "v")),
        log=said.append,
    )
    assert "one row every month" in said[1]


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([("2020-01-01", 1)] * 9, "has two rows of 2020-01-01"),
        (
            [(str(days(900)[k]), 1) for k in (0, 1, 5, 80, 81, 300, 500, 899)],
            "rows at irregular times, day to 399 days apart",
        ),
    ],
)  # fmt: skip
def test_times_that_cannot_be_a_series(place, cells, sentence):
    with pytest.raises(InputError, match=sentence):
        read_file(write(place / "a.csv", cells, ("date", "value")))


@pytest.mark.parametrize(
    ("cell", "delimiter"),
    [("{:,.1f}", ","), ("{:,.1f}", ";"), ("{:.1f}", "\t"), ("{:_.1f}", ";")],
)
def test_numbers_by_the_rule_of_their_column(place, cell, delimiter):
    numbers = 900.5 + 100 * np.arange(20)
    cells = [cell.format(number) for number in numbers]
    if "_" in cell:  # as in German: 1.234,5
        cells = [c.replace(".", ",").replace("_", ".") for c in cells]
    with open("a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("n", "value"), *enumerate(cells)])
    np.testing.assert_allclose(read_file(Path("a.csv")).values, numbers)


def test_a_row_of_another_length_is_named(place):
    lines = ["month,sales", *(f"{i},9{i:02}" for i in range(30)), "31,1,004"]
    Path("sales.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="line 32 has 3 cells for 2 columns"):
        Series(data=Path("sales.csv"), window=8, horizon=2).load(print)


@pytest.mark.slow
def test_every_trial_has_its_score_in_the_hparams_tab(place):
    """In each run's own event file, under one name for all."""
    from test_progress import values

    flags = [*TINY, "--trials", "3", "--population-size", "3", "--run-dir", "tab"]
    sweep_command.main("random_search", experiments, ("random",), ["mnist", *flags], "")
    boards = [*Path("tab/tensorboard").iterdir(), Path("tab/best/tensorboard")]
    assert len(boards) == 4
    for board in boards:
        assert "result/loss/val" in {value.tag for _, value in values(board)}


# Starting again and again


@pytest.mark.slow
def test_the_same_line_runs_again_and_again(place):
    """As in a SLURM script, with switches that are on by default or by the flag."""
    flags = [*TINY, "--ema", "--run-dir", "run", "--resume"]
    for _ in range(3):
        run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, flags)
    assert not run.load_config(Path("run"))["config"]["resume"]
    best = ["--preset", "best", "--no-ema", "--model.features", "2", "--model.dense", "4"]
    flags = [*best, "--epochs", "1", "--batch-size", "64", "--run-dir", "best", "--resume"]
    for _ in range(2):
        run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, flags)
    assert run.load_config(Path("best"))["config"]["recipe"]["ema"] is False


def test_a_password_is_never_saved(place):
    from dlflax.tune.study import without_password

    for url in ("postgresql+psycopg://me:se:cr@t@host/db", "postgresql://host/db?password=secret"):
        assert "secret" not in without_password(url) and "cr@t" not in without_password(url)


@pytest.mark.slow
def test_thirty_pictures_train_without_a_flag(place, capsys):
    photos(place, ("day", "night"), lambda k, i: 200 - 150 * k + i)
    flags = ["--preset", "scratch", "--image-size", "16", "--epochs", "1", "--data", "photos"]
    for again in ([], ["--resume"]):
        flags_now = [*flags, "--run-dir", "out", *again]
        run.main("image_folder", image_folder.PRESETS, image_folder.ARCHITECTURES, flags_now)
    out = capsys.readouterr().out
    assert re.search(r"there are (\d\d) training examples: --batch-size \1 instead of 32", out)
    assert "note: 2 validation examples are too few to choose an epoch" in out


def test_two_processes_do_not_write_one_folder(place):
    from dlflax.files import file_lock

    (place / "run").mkdir()
    with file_lock(place / "run" / ".lock") as free:
        assert free
        with pytest.raises(SystemExit) as exit_:
            run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*TINY, "--run-dir", "run"])
    assert exit_.value.code == 2
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*TINY, "--run-dir", "run"])


def test_cells_that_a_spreadsheet_would_run(place):
    from dlflax.files import write_csv

    write_csv(place / "a.csv", [{"text": cell, "n": -1.5} for cell in ("=1+1", "@x", "-2", "b")])
    with open("a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [["'=1+1", "-1.5"], ["'@x", "-1.5"], ["'-2", "-1.5"], ["b", "-1.5"]]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--epochs", "1000000000000"], "--epochs 1000000000000 must be 1,000,000,000 or less"),
        (["--devices", "-1"], "--devices -1 must be 0 or more"),
        (["--run-dir", ""], "--run-dir must name a folder"),
        (["--val-split", "nan"], "--val-split nan must be from 0 up to below 1"),
        (["--hparams.cutout-fraction", "2"], "--hparams.cutout-fraction 2 must be from 0 to 1"),
        (["--hparams.learning-rate", "nan"], "--hparams.learning-rate nan must be above 0"),
    ],
)
def test_absurd_values_of_a_run(flags, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*TINY, *flags])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and sentence in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num-seeds", "2147483648"], "--num-seeds 2147483648 must be 1,000 or less"),
        (["--workers", "10001"], "--workers 10001 must be 10,000 or less"),
        (["--heartbeat", "3"], "--heartbeat"),
        (["--study", "../../x"], "must be a name without slashes"),
        (["--trials", "-1"], "--trials -1 must be 1 or more"),
    ],
)
def test_absurd_values_of_a_sweep(flags, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        sweep_command.main("random_search", experiments, ("random",), ["mnist", *TINY, *flags], "")
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and sentence in err and len(err.strip().splitlines()) == 1
