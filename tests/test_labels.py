"""Pictures with a file of labels: what it is taken for, groups, odd files, whole runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlflax import run
from dlflax.data import ImageFolder, make_splits
from dlflax.data.image import folder_files, folder_labels
from dlflax.errors import InputError
from experiments import image_folder, predict

pytestmark = pytest.mark.usefixtures("place")


def photos(n=60, seed=0):
    """Pictures that are red or blue, and striped or not: [(name, colour, striped, brightness)]."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        colour, striped, level = i % 2, i % 3 == 0, int(rng.integers(80, 190))
        pixels[..., 2 * colour] += np.uint8(level)
        if striped:
            pixels[::4] = 250
        path = Path("photos", f"part{i % 4}", f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows.append((f"{i}.png", ("red", "blue")[colour], striped, round(float(pixels.mean()), 2)))
    return rows


def write(header, rows, name="labels.csv", delimiter=","):
    with open(name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return Path(name)


def source(path="labels.csv", **fields):
    return ImageFolder("", data=Path("photos"), image_size=16, labels_csv=Path(path), **fields)


def splits_of(source, validation=0.2, log=lambda _: None):
    dataset = source.load(log)
    return dataset, make_splits(source, dataset, validation, 0)


def refused(**fields):
    with pytest.raises(InputError) as error:
        splits_of(source(**fields))
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_classes_by_whatever_names_the_files():
    rows = photos()
    ways = (
        lambda name, i: f"part{i % 4}/{name}",
        lambda name, i: name,
        lambda name, i: Path(name).stem,
        lambda name, i: f"C:\\data\\part{i % 4}\\{name}",
        lambda name, i: f"./part{i % 4}/{name}",
        lambda name, i: f"photos/part{i % 4}/{Path(name).stem}",
        lambda name, i: f"../photos/part{i % 4}/{name}",
        lambda name, i: str(Path(f"photos/part{i % 4}/{name}").absolute()),
    )
    found = []
    for way in ways:
        write(["id", "label"], [(way(row[0], i), row[1]) for i, row in enumerate(rows)])
        dataset, splits = splits_of(source())
        assert dataset.class_names == ("blue", "red") and splits.train["targets"].dtype == np.int32
        for part in (splits.train, splits.val, splits.test):
            blue = part["inputs"][..., 2].mean((1, 2)) > part["inputs"][..., 0].mean((1, 2))
            np.testing.assert_array_equal(part["targets"] == 0, blue)
        found.append(dataset.checksum)
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("files", "cell", "name"),
    [
        (["2024/0.png"], "2023/0.png", None),
        (["2024/0.png"], "2023\\0", None),
        (["2024/0.png"], "/data/2023/0.png", None),
        (["2024/0.png"], "photos/0.png", None),
        (["2024/0.png"], "0.png", "2024/0.png"),
        (["a/2024/0.png"], "2024/0", "a/2024/0.png"),
        (["a/2024/0.png", "b/2024/0.png"], "2024/0.png", None),
        (["a/2024/0.png", "2024/0.png"], "2024/0.png", "2024/0.png"),
        (["a/0.png", "b/0.png"], "0.png", None),
        (["0.png"], "photos2023/0.png", None),
        (["0.png"], "/home/me/photos2023/0.png", None),
        (["0.png"], "/home/me/photos/0.png", "0.png"),
        (["0.png"], "photos/0", "0.png"),
        (["0.png", "photos/0.png"], "photos/0.png", "photos/0.png"),
        (["t/0.png"], "{here}/old/t/0.png", None),
        (["t/0.png"], "s3://bucket/old/t/0.png", "t/0.png"),
        (["0.png"], "", None),
    ],
)
def test_a_cell_with_folders_names_no_file_of_another_folder(place, files, cell, name):
    for file in ("old/t/0.png", *(f"photos/{file}" for file in files)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    walked = folder_files.walk(Path("photos"), "photos")[0]
    table = {"x": ["else", "else"], "file": [cell.format(here=place), "nothing.png"]}
    expected = {"file": [name, None]} if name else {}
    assert folder_labels._find_files(table, walked) == expected


def test_labels_of_another_folder_are_refused():
    rows = [(f"2023/{name}", colour) for name, colour, *_ in photos()]
    write(["file", "kind"], rows)
    assert "no column names images of --data photos, such as " in refused()
    # of the same names in folders of another computer, which may be those: an example is shown
    write(["file", "kind"], [(f"D:/old/part{i % 4}/{i}.png", row[1]) for i, row in enumerate(rows)])
    said = []
    splits_of(source(), log=said.append)
    assert "labels.csv: kind of the images in file (D:/old/part0/0.png is part0/0.png)" in said


@pytest.mark.parametrize("mark", ["|", ";", ", ", " "])
def test_several_labels(mark):
    rows = [(n, mark.join([c] + ["striped"] * s)) for n, c, s, _ in photos()]
    write(["file", "tags"], rows, delimiter="," if mark == "|" else "\t")
    said = []
    kind = {"target_type": "labels"} if mark == " " else {}
    dataset, splits = splits_of(source(**kind), log=said.append)
    assert dataset.class_names == ("blue", "red", "striped")
    assert splits.train["targets"].shape[1] == 3 and splits.summary()["classes"]["red"]["test"]
    striped = splits.test["inputs"][:, ::4].min((1, 2, 3)) == 250
    np.testing.assert_array_equal(splits.test["targets"][:, 2], striped)
    assert any("several labels, separated by" in line for line in said)


def test_columns_of_0_and_1_and_rows_that_come_again():
    rows = photos()
    write(["file", "red", "striped"], [(n, int(c == "red"), int(s)) for n, c, s, _ in rows])
    columns = splits_of(source(target=("red", "striped")))[1]
    again = [(n, "red") for n, c, _, _ in rows if c == "red"]
    again += [(n, "striped") for n, _, s, _ in rows if s] + [(n, "") for n, *_ in rows]
    write(["file", "tag"], again)
    one = splits_of(source(target_type="labels"))[1]
    for name in ("train", "val", "test"):
        a, b = getattr(columns, name), getattr(one, name)
        np.testing.assert_array_equal(a["targets"], b["targets"])
    assert (columns.train["targets"].sum(1) == 0).any()  # a picture may have none


def test_a_comma_in_the_name_of_a_class():
    names = {"red": "tench, Tinca tinca", "blue": "goldfish, Carassius auratus"}
    write(["file", "label"], [(n, names[c]) for n, c, *_ in photos()])
    assert splits_of(source())[0].class_names == tuple(sorted(names.values()))


def test_numbers():
    write(["file", "brightness", "red"], [(n, b, 2 * b) for n, _, _, b in photos()])
    _, splits = splits_of(source(target=("brightness",)))
    means = splits.test["inputs"].mean((1, 2, 3))
    np.testing.assert_allclose(splits.target.decode(splits.test["targets"]), means, atol=0.01)
    assert abs(splits.train["targets"].mean()) < 1e-5
    _, two = splits_of(source(target=("brightness", "red")))
    assert two.train["targets"].shape[1] == 2 and len(two.target.mean) == 2
    np.testing.assert_allclose(two.train["targets"][:, 0], two.train["targets"][:, 1], atol=1e-5)


def test_groups_stay_on_one_side():
    rows = photos()
    write(["file", "label", "patient"], [(n, c, i // 5) for i, (n, c, *_) in enumerate(rows)])
    dataset, splits = splits_of(source(group="patient"))
    sides = {}
    for name in ("train", "val", "test"):
        for row in getattr(splits, name)["inputs"]:
            sides.setdefault(row.tobytes(), name)
    of_group = {}
    for i, (name, *_) in enumerate(rows):
        pixels = np.asarray(Image.open(Path("photos", f"part{i % 4}", name)))
        of_group.setdefault(i // 5, set()).add(sides[pixels.tobytes()])
    assert all(len(side) == 1 for side in of_group.values())
    assert set.union(*of_group.values()) == {"train", "val", "test"}
    # a group that comes later moves no other one into or out of the test
    tested = set(dataset.split.groups[dataset.split.test(dataset.examples)])
    assert tested <= {str(i) for i in range(12)}
    write(["file", "label", "patient"], [(n, c, i // 5) for i, (n, c, *_) in enumerate(rows[:50])])
    fewer = source(group="patient").load(print)
    assert set(fewer.split.groups[fewer.split.test(fewer.examples)]) <= tested


def test_odd_rows_are_listed():
    rows = [(n, c) for n, c, *_ in photos()]
    odd = [("nowhere.png", "red"), (rows[0][0], "blue"), (rows[1][0], rows[1][1])]
    rows[2] = (rows[2][0], " ")
    write(["file", "label"], [*rows[:-1], *odd])
    dataset = source().load(lambda _: None)
    listed = {row["file"]: row["reason"] for row in csv.DictReader(
        dataset.files["files_skipped.csv"].splitlines()) if row["what"] == "skipped"}  # fmt: skip
    assert listed == {
        "nowhere.png": "no such image: labels.csv, line 61",
        "part0/0.png": "two labels: red and blue",
        "part2/2.png": "no label: labels.csv, line 4",
        "part3/59.png": "no label: no row in labels.csv",
    }
    assert len(dataset.examples.names) == 57


def test_bad_files():
    rows = photos(24)
    write(["a", "b"], [("x", "y"), ("z", "w")])
    assert "no column names images" in refused()
    write(["file", "a", "b"], [(n, c, c) for n, c, *_ in rows])
    assert "choose with --target" in refused()
    assert "--target c: " in refused(target=("c",))
    assert "--group c: " in refused(target=("a",), group="c")
    assert "--target file names files or groups" in refused(target=("file",))
    assert "should be a number" in refused(target=("a", "b"))
    assert "is not a number" in refused(target=("a",), target_type="number")
    write(["file", "label"], [(n, "red") for n, *_ in rows])
    assert "fewer than two classes" in refused()
    write(["file", "label"], [(n, i) for i, (n, *_) in enumerate(rows)])
    assert "fewer than two classes" in refused(target_type="classes")
    write(["file", "label", "p"], [(n, c, c) for n, c, *_ in rows])
    assert "there are 2 groups" in refused(group="p")
    write(["file", "label", "p"], [(n, c, c + str(i % 5 * (c == "red"))) for i, (n, c, *_) in
                                   enumerate(rows)])  # fmt: skip
    sentence = "the class 'blue' has no example to train on: all of its examples are of groups"
    with pytest.raises(InputError, match=sentence):
        for seed in range(20):
            splits_of(source(group="p", split_seed=seed))
    assert "does not exist" in refused(path="nothing.csv")
    with pytest.raises(InputError, match="--group requires --labels-csv"):
        ImageFolder(data=Path("photos"), group="p").load(print)


FLAGS = ["--preset", "scratch", "--data", "photos", "--labels-csv", "labels.csv", "--image-size",
         "16", "--epochs", "8", "--batch-size", "8", "--model.features", "8", "--run-dir", "run",
         "--hparams.learning-rate", "5e-3", "--hparams.dropout", "0", "--augment"]  # fmt: skip


def ran(*flags):
    run.main("image_folder", image_folder.PRESETS, image_folder.ARCHITECTURES, [*FLAGS, *flags])
    return json.loads(Path("run/results.json").read_text(encoding="utf-8"))


def answer(capsys, name):
    capsys.readouterr()
    predict.command(Path("run"), (name,), json_output=True)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_a_run_with_several_labels(capsys):
    rows = photos(200)
    write(["file", "tags"], [(n, "|".join([c] + ["striped"] * s)) for n, c, s, _ in rows])
    results = ran("--baseline", "none", "--val-split", "0.3")
    assert results["task"] == "MultiLabel" and results["test"]["macro_f1"] > 0.9
    saved = json.loads(Path("run/calibration.json").read_text(encoding="utf-8"))
    assert len(saved["thresholds"]) == 3
    assert answer(capsys, "photos/part0/0.png")["labels"] == ["red", "striped"]
    with open("run/probabilities.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["file", "blue", "red", "striped"]


@pytest.mark.slow
def test_a_run_with_numbers_goes_on_to_the_same_bits(capsys):
    write(["file", "brightness"], [(n, b) for n, _, _, b in photos()])
    flags = ["--baseline", "none", "--schedule", "constant", "--hparams.warmup-fraction", "0"]
    whole = ran(*flags, "--epochs", "4")["test"]
    Path("run").rename("whole")
    ran(*flags, "--epochs", "2")
    again = ran(*flags, "--resume", "--epochs", "4")["test"]
    assert again == whole and {"rmse", "mae", "r2"} <= set(again)
    (value,) = answer(capsys, "photos/part0/0.png")["values"]
    assert 0 < value < 255


def test_an_empty_cell_alone_is_no_label():
    """A class may be called none, or NA; an image may have none of several labels."""
    rows, said = photos(), []
    classes = {"red": "none", "blue": "NA"}
    cells = [(n, classes[c]) for n, c, *_ in rows]
    cells[4] = (cells[4][0], "")
    write(["file", "label"], cells)
    dataset, splits = splits_of(source(), log=said.append)
    assert set(dataset.class_names) == {"NA", "none"} and len(dataset.examples) == 59
    assert any('"NA", "none" is a class: only an empty cell is missing' in s for s in said)
    for part in (splits.train, splits.val, splits.test):
        blue = part["inputs"][..., 2].mean((1, 2)) > part["inputs"][..., 0].mean((1, 2))
        np.testing.assert_array_equal(part["targets"] == dataset.class_names.index("NA"), blue)

    tags = {"red": "none", "blue": ""}
    write(["file", "tags"], [(n, "|".join([tags[c]] + ["striped"] * s)) for n, c, s, _ in rows])
    said.clear()
    dataset, splits = splits_of(source(), log=said.append)
    plain = sum(c == "blue" and not s for _, c, s, _ in rows)
    assert dataset.class_names == ("none", "striped") and len(dataset.examples) == 60
    sentence = f"{plain} of 60 images have no label: they are negative examples of every label."
    assert any(sentence in s for s in said)
    assert (dataset.examples.target.sum(1) == 0).sum() == plain

    # of numbers, in a word, one is missing
    cells = [(n, b) for n, _, _, b in rows]
    cells[7] = (cells[7][0], "n/a")
    write(["file", "brightness"], cells)
    dataset, _ = splits_of(source())
    assert len(dataset.examples) == 59
    assert (
        "part3/7.png,skipped,no label: no number in labels.csv"
        in dataset.files["files_skipped.csv"]
    )
    write(["file", "label"], [(n, "none") for n, *_ in rows])
    assert "fewer than two classes" in refused()


def test_a_label_that_no_image_has_is_named():
    rows, said = photos(), []
    columns = ["file", "red", "striped", "rotten"]
    write(columns, [(n, int(c == "red"), int(s), 0) for n, c, s, _ in rows])
    dataset, _ = splits_of(source(target=tuple(columns[1:])), log=said.append)
    assert dataset.class_names == ("red", "striped")
    sentence = 'labels of fewer than 3 images are dropped: "rotten"'
    assert any(sentence in line for line in said)


def test_names_in_another_letter_case_or_of_several_files_are_said():
    rows, said = photos(), []
    write(["file", "label"], [(f"PART{i % 4}/{r[0].upper()}", r[1]) for i, r in enumerate(rows)])
    dataset, _ = splits_of(source(), log=said.append)
    assert len(dataset.examples) == 60
    assert (
        "60 names in labels.csv differ from the files' in letter case, such as PART0/0.PNG for "
        "part0/0.png."
    ) in said
    Path("photos/part1/0.png").write_bytes(Path("photos/part1/1.png").read_bytes() + b" ")
    write(["file", "label"], [r[:2] for r in rows])
    report = source().load(lambda _: None).files["files_skipped.csv"]
    assert '0.png,skipped,"several images of this name: labels.csv, line 2"' in report
    for name in ("part0", "part1"):
        Path("photos", name, "A.png").write_bytes(Path("photos/part2/2.png").read_bytes())
    write(["file", "label"], [("A.png", "red"), ("a.png", "blue")])
    assert "Several are named A.png: write its folder, too" in refused()
    # the same letters in another case are two files where there are two
    walked = [folder_files.File(f"/d/{n}", n, 1, 1, True) for n in ("a.png", "A.png")]
    table = {"f": ["a.png", "A.png", "A.PNG"]}
    names = folder_labels._match_files(Path("l"), table, walked, {}, "", said.append)
    assert names == ("f", ["a.png", "A.png", None])
