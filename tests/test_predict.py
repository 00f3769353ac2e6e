"""What predict is given: folders, patterns, standard input; what it gives: lines, JSON, a table."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits

import dlflax
import experiments
from dlflax import run
from dlflax.errors import InputError
from dlflax.inference import predict as predictor
from dlflax.run.exit_codes import with_exit_codes
from experiments import image_folder, mnist, predict, tabular

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, zoo):
    """Runs on digits and on texts, and a folder of digits, one of which is no picture."""
    place = tmp_path_factory.mktemp("runs")
    for name in ("digits", "texts"):
        shutil.copytree(zoo(name), place / name)
    images, targets = load_digits(return_X_y=True)
    for i in range(12):
        folder = place / "pictures" / ("a", "b", ".hidden")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.uint8(255 - images[i].reshape(8, 8) * 15).repeat(6, 0).repeat(6, 1)
        Image.fromarray(np.pad(pixels, 20, constant_values=255)).save(
            folder / f"{i}-{targets[i]}.png"
        )
    (place / "pictures" / "b" / "no.png").write_bytes(b"no picture")
    return place


def ended(command):
    try:
        with_exit_codes(command)
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_a_folder_is_answered_but_for_what_is_no_picture(trained, capsys):
    code = ended(lambda: predict.command(trained / "digits", (f"{trained}/pictures",), True))
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    names = [Path(answer["file"]).name for answer in answers]
    assert code == 3 and err.count("error: ") == 1 and "no.png" in err
    assert len(names) == 8 and names[:4] == sorted(names[:4])
    right = [answer["class"] == Path(answer["file"]).stem[-1] for answer in answers]
    assert np.mean(right) > 0.6


def test_patterns_and_standard_input(trained, capsys, monkeypatch):
    assert (
        ended(lambda: predict.command(trained / "digits", (f"{trained}/pictures/*/*-1.png",))) == 0
    )
    assert len(capsys.readouterr().out.splitlines()) == 1
    for wrong in (f"{trained}/pictures/*/*.gif", str(trained / "empty")):
        (trained / "empty").mkdir(exist_ok=True)
        assert ended(lambda wrong=wrong: predict.command(trained / "digits", (wrong,))) == 2
        assert "has no files" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("a good day\n\na poor day\n"))
    assert ended(lambda: predict.command(trained / "texts", ("-",), True)) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == ["a good day", "a poor day"]
    assert [answer["class"] for answer in answers] == ["1", "0"]
    # a text may have any mark, and be called like a folder
    monkeypatch.chdir(trained)
    assert ended(lambda: predict.command(trained / "texts", ("good?", "pictures"), True)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_folder_beside_and_a_hidden_one(trained, capsys, monkeypatch):
    """Dots in the path that is named hide nothing."""
    expected = [path.name for path in sorted(trained.glob("pictures/a/*"))]
    (trained / "pictures" / ".hidden" / ".thumbnails").mkdir(exist_ok=True)
    (trained / "pictures" / ".hidden" / ".thumbnails" / "x.png").touch()
    monkeypatch.chdir(trained / "texts")
    for name in ("../pictures/a", "../texts/../pictures/a/", "./../pictures/a"):
        assert ended(lambda name=name: predict.command(Path("../digits"), (name,), True)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [Path(json.loads(line)["file"]).name for line in lines] == expected
    assert ended(lambda: predict.command(Path("../digits"), ("../pictures/.hidden",), True)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    monkeypatch.chdir(trained / "pictures" / ".hidden")
    assert ended(lambda: predict.command(Path("../../digits"), (".",), True)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_table_of_answers(trained, capsys, place):
    monkey = (trained / "digits", (f"{trained}/pictures",), False, Path("answers.csv"))
    assert ended(lambda: predict.command(*monkey)) == 3
    out, err = capsys.readouterr()
    assert not out and "8 answers are in answers.csv" in err
    with open("answers.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and set(rows[0]) == {
        "file", "class", "probability", *(f"probabilities.{i}" for i in range(10))}  # fmt: skip
    assert sum(float(rows[0][f"probabilities.{i}"]) for i in range(10)) == pytest.approx(1)
    missing = (trained / "texts", ("good",), False, Path("nowhere/answers.csv"))
    assert ended(lambda: predict.command(*missing)) in (1, 2)
    assert "nowhere" in capsys.readouterr().err
    assert predictor.csv_row({"a": [1, {"b": 2}], "c": "d"}) == {"a.1": 1, "a.2.b": 2, "c": "d"}


def test_many_inputs_are_read_a_part_at_a_time(trained, monkeypatch):
    monkeypatch.setattr(predictor, "CHUNK_SIZE", 3)
    whole = predictor.Predictor(trained / "digits", experiments, log=lambda _: None)
    names, done = [str(p) for p in sorted(trained.glob("pictures/a/*"))] * 2, []
    answers = whole.answers(names, advance=done.append)
    assert done == [3, 3, 2] and [values["file"] for _, values in answers] == names
    assert answers[0][1]["probabilities"] == pytest.approx(answers[4][1]["probabilities"])
    with pytest.raises(InputError):
        whole.answers([*names, str(trained / "pictures/b/no.png")])


def test_a_loaded_model_says_what_the_command_says(trained, capsys):
    model = dlflax.load(trained / "digits", log=lambda _: None)
    assert model.class_names == tuple("0123456789") and model.input_shape == (28, 28, 1)
    names = [str(path) for path in sorted(trained.glob("pictures/a/*"))]
    predict.command(trained / "digits", tuple(names), True)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert model.predict(names) == said == model.predict(str(trained / "pictures/a"))
    (alone,) = model.predict(Path(names[0]))
    assert alone["probabilities"] == pytest.approx(said[0]["probabilities"], abs=1e-5)
    source = mnist.PRESETS["default"].data
    images = type(source)("digits").load(lambda _: None).test["inputs"][:300]
    whole = model.predict(images)
    assert len(whole) == 300 and model.predict(images[0])[0]["class"] == whole[0]["class"]
    assert model.predict(np.float32(images[:2]) / 255)[1]["probabilities"] == pytest.approx(
        whole[1]["probabilities"], abs=1e-5
    )
    for wrong in (images[:, :9], np.array(["a"]), [1, 2], np.zeros((2, 3, 28, 28, 1))):
        with pytest.raises(InputError, match="predict takes arrays in shape"):
            model.predict(wrong)
    texts = dlflax.load(trained / "texts", log=lambda _: None)
    assert [a["class"] for a in texts.predict(["a good day", "a poor day"])] == ["1", "0"]


def test_a_loaded_model_reads_tables(trained, place):
    flags = [
        "--epochs",
        "3",
        "--baseline",
        "none",
        "--run-dir",
        "table",
        "--dataset",
        "diabetes",
        "--bag-folds",
        "0",
    ]
    run.main("tabular", tabular.PRESETS, {}, flags)
    frame = load_diabetes(as_frame=True).data[:5]
    found = dlflax.load("table", log=lambda _: None).predict(frame)
    frame.to_csv("rows.csv", index=False)
    again = dlflax.load("table", log=lambda _: None).predict("rows.csv")
    assert [a["values"] for a in found] == [a["values"] for a in again] and len(found) == 5
    assert [a["row"] for a in found] == list(range(5))
    with pytest.raises(InputError, match="lacks the column"):
        dlflax.load("table", log=lambda _: None).predict(frame[["age"]])


def test_evaluate_gives_the_runs_own_scores(trained, place):
    """On its test data, as an array; on labelled data at a path, class by class as trained."""
    model = dlflax.load(trained / "digits", log=lambda _: None)
    test = type(mnist.PRESETS["default"].data)("digits").load(lambda _: None).test
    found = model.evaluate(test["inputs"], test["targets"])
    saved = json.loads((trained / "digits" / "results.json").read_text(encoding="utf-8"))["test"]
    for name in ("loss", "accuracy", "macro_f1"):
        assert found[name] == pytest.approx(saved[name], rel=1e-5)
    with pytest.raises(InputError, match="as many targets as inputs"):
        model.evaluate(test["inputs"], test["targets"][:3])

    texts = dlflax.load(trained / "texts", log=lambda _: None)
    rows = [f"{'good' if i % 2 else 'poor'} day number {i + 500},{i % 2}" for i in range(20)]
    Path("more.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    found = texts.evaluate("more.csv")
    answers = texts.predict([row.partition(",")[0] for row in rows])
    right = [answer["class"] == row[-1] for answer, row in zip(answers, rows, strict=True)]
    assert found["accuracy"] == pytest.approx(np.mean(right))
    Path("other.csv").write_text(
        "\n".join(["text,label", *(f"day {i},{'xy'[i % 2]}" for i in range(20))]), encoding="utf-8"
    )
    said = []
    texts = dlflax.load(trained / "texts", log=said.append)
    found = texts.evaluate("other.csv")  # of other classes: all of them are wrong, which is said
    assert found["accuracy"] == 0 and "loss" not in found
    assert "20 of 20 examples are of classes that the model does not have" in " ".join(said)
    with pytest.raises(InputError, match="does not exist"):
        texts.evaluate("nothing.csv")


def test_evaluate_a_table_in_its_own_unit(place):
    generator = np.random.default_rng(0)
    rows = [(x, 100 + 30 * x + generator.normal()) for x in generator.normal(size=150)]
    text = ["x,price", *(f"{x},{y}" for x, y in rows)]
    Path("a.csv").write_text("\n".join(text), encoding="utf-8")
    run.main("tabular", tabular.PRESETS, {}, ["--data", "a.csv", "--epochs", "5",
             "--baseline", "none", "--run-dir", "table", "--bag-folds", "0"])  # fmt: skip
    model = dlflax.load("table", log=lambda _: None)
    guessed = [each["values"][0] for each in model.predict("a.csv")]
    error = np.array(guessed) - [y for _, y in rows]
    assert model.evaluate("a.csv")["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)


def test_an_array_means_one_thing(trained):
    """Pixels from 0 to 255 in any integer type, or floats from 0 to 1; never other numbers."""
    model = dlflax.load(trained / "digits", log=lambda _: None)
    test = type(mnist.PRESETS["default"].data)("digits").load(lambda _: None).test
    images, targets = test["inputs"][:20], test["targets"][:20]
    wanted = model.predict(images)
    for kind in ("int64", "int16", "uint32"):
        assert model.predict(images.astype(kind)) == wanted
    for wrong in (images.astype(float), np.int64(images) - 1, images / 255 * np.nan, images > 9):
        with pytest.raises(InputError, match="predict takes"):
            model.predict(wrong)
    for place, number in ((3, 99), (0, -1)):
        wrong = targets.copy()
        wrong[place] = number
        with pytest.raises(InputError, match="targets must be class numbers from 0 to 9"):
            model.evaluate(images, wrong)
    for wrong in (targets[:, None], targets.astype(float), [str(t) for t in targets], 3):
        with pytest.raises(InputError):
            model.evaluate(images, wrong)
    texts = dlflax.load(trained / "texts", log=lambda _: None)
    wanted = texts.predict(["a good day", "a poor day"])
    frame = pd.DataFrame({"text": ["a good day", "a poor day"], "number": [1, 2]})
    assert texts.predict(frame["text"]) == texts.predict(frame[["text"]]) == wanted
    for wrong in (frame, frame["number"], pd.Series(["a", None])):
        with pytest.raises(InputError, match="column of texts"):
            texts.predict(wrong)
    shape = (1, *texts.input_shape)
    for wrong in (np.full(shape, 10**9), np.full(shape, -1), np.full(shape, 2.5)):
        with pytest.raises(InputError, match="predict takes"):
            texts.predict(wrong)


def test_scores_of_every_split_are_in_the_unit_of_the_target(place):
    """Of images: in training, on the test data, and by evaluate."""
    rng = np.random.default_rng(0)
    light = rng.uniform(0, 255, 90)
    (place / "lamps").mkdir()
    rows = ["file,lumen"]
    for i, value in enumerate(light):
        pixels = np.full((16, 16, 3), value, np.uint8)
        Image.fromarray(pixels).save(f"lamps/{i:02}.png")
        rows.append(f"{i:02}.png,{10_000 + 40 * value:.1f}")
    Path("lumen.csv").write_text("\n".join(rows), encoding="utf-8")
    flags = ["--preset", "scratch", "--image-size", "16", "--epochs", "3", "--batch-size", "8",
             "--data", "lamps", "--labels-csv", "lumen.csv", "--baseline", "none"]  # fmt: skip
    run.main("image_folder", image_folder.PRESETS, image_folder.ARCHITECTURES,
             [*flags, "--run-dir", "r"])  # fmt: skip
    model = dlflax.load("r", log=lambda _: None)
    pictures = np.stack([np.array(Image.open(f"lamps/{i:02}.png")) for i in range(90)])
    lumen = np.array([float(row.partition(",")[2]) for row in rows[1:]])
    guessed = np.array([each["values"][0] for each in model.predict(pictures)])
    found = model.evaluate(pictures, lumen)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((guessed - lumen) ** 2)), rel=1e-4)
    assert found["mae"] == pytest.approx(np.abs(guessed - lumen).mean(), rel=1e-4)
    results = json.loads(Path("r/results.json").read_text(encoding="utf-8"))
    with open("r/predictions.csv", newline="", encoding="utf-8") as file:
        test = np.array([[float(row[n]) for n in ("true_0", "predicted_0")]
                         for row in csv.DictReader(file)])  # fmt: skip
    rmse = np.sqrt(np.mean((test[:, 0] - test[:, 1]) ** 2))
    assert results["test"]["rmse"] == pytest.approx(rmse, rel=1e-4)
    for split in ("train", "val"):  # of standardized targets it would be about 1
        assert results[split]["rmse"] > 100
    for wrong in (np.full(90, np.nan), np.zeros(90, bool), lumen[:, None].repeat(2, 1)):
        with pytest.raises(InputError):
            model.evaluate(pictures, wrong)


@pytest.mark.slow
def test_test_time_augmentation_is_the_mean_over_views(place, capsys):
    flags = ["--dataset", "digits", "--model", "mlp", "--epochs", "1", "--baseline", "none"]
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES,
             [*flags, "--augment", "crop", "cutmix", "--run-dir", "shifted"])  # fmt: skip
    images = type(mnist.PRESETS["default"].data)("digits").load(lambda _: None).test["inputs"][:5]
    model = dlflax.load("shifted", log=lambda _: None)

    def probabilities(model, images):
        return np.array([list(each["probabilities"].values()) for each in model.predict(images)])

    plain = probabilities(model, images)
    several = predictor.Predictor(Path("shifted"), log=lambda _: None, tta=3)
    views = [np.asarray(predictor.train.floats(images))]
    for i in range(3):
        batch = {"inputs": predictor.jnp.asarray(views[0])}
        views.append(predictor.augment(
            several._augmentations(), predictor.jax.random.key(i), batch, several.config.hparams
        )["inputs"])  # fmt: skip
    assert len(several._augmentations()) == 1  # cutmix mixes examples
    logits = [model._predictor.outputs(np.asarray(view)) for view in views]
    wanted = np.mean([predictor.jax.nn.softmax(each) for each in logits], 0)
    found = predictor.jax.nn.softmax(several.outputs(images))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not np.allclose(probabilities(dlflax.load("shifted", lambda _: None, tta=3), images),
                           plain, atol=1e-3)  # fmt: skip
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*flags, "--run-dir", "plain"])
    with pytest.raises(InputError, match="--tta 3 needs a run with --augment"):
        dlflax.load("plain", lambda _: None, tta=3)
