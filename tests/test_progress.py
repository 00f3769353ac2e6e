"""What a run shows and writes, read back."""

import csv
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlflax import files
from dlflax.report import figures, tables
from dlflax.report.loggers import TensorBoard
from dlflax.report.progress import Progress, _fit_width, progress_bar

ROW = {
    "epoch": 2, "step": 400, "learning_rate": 1e-3, "train_loss": 0.0811, "train_accuracy": 0.9754,
    "val_loss": 0.0655, "val_accuracy": 0.9802, "val_macro_f1": 0.98, "seconds": 4.93,
    "examples_per_second": 10950.4,
}  # fmt: skip


def history(epochs, accuracy=True):
    rows = [dict(ROW, epoch=e + 1, step=200 * (e + 1), val_loss=1 / (e + 1)) for e in range(epochs)]
    return rows if accuracy else [{k: v for k, v in r.items() if "acc" not in k} for r in rows]


def events(folder):
    """All events under `folder`, file by file: TFRecord is length u64, crc u32, data, crc u32."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(Path(folder).rglob("*tfevents*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def values(folder):
    return [(event.step, value) for event in events(folder) for value in event.summary.value]


def save(figure, folder):
    """(width, height) of the picture, after drawing it for real."""
    figures.save_figure(figure, folder / "a.png")
    with Image.open(folder / "a.png") as picture:
        return picture.size


def test_tables(capsys):
    name = "[bold]very/" + "long_" * 30 + "name"
    tables.print_model_table("cnn", [("kernel", (3, 3, 1, 32), 288), (name, (), 1)], 1_234_567)
    out = capsys.readouterr().out
    assert "3 x 3 x 1 x 32" in out and "288" in out and "1,234,567" in out
    assert name in "".join(line.split()[0] for line in out.splitlines() if line.strip())

    tables.print_results({"train": {"loss": 0.25}, "val": {}, "seconds": 3,
                        "test": {"accuracy": 0.5, "per_class": {}}})  # fmt: skip
    out = capsys.readouterr().out
    assert "0.5000" in out and "0.2500" in out and "val" not in out and "F1" not in out
    tables.print_results({"seconds": 3})
    assert capsys.readouterr().out == ""


def test_metrics_csv(tmp_path):
    path = tmp_path / "metrics.csv"
    files.write_csv(path, [{"epoch": 1, "loss": 0.1}])
    files.write_csv(path, [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "f1": 1 / 3, "loss": 2}])
    assert path.read_bytes() == b"epoch,loss,f1\n1,0.1,\n2,2,0.3333333333333333\n"
    with pytest.raises(TypeError):
        files.write_csv(path, [{"epoch": 1}, None])
    assert len(list(csv.reader(io.StringIO(path.read_text())))) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    class Broken:
        def savefig(self, path, **_):
            path.write_bytes(b"half")
            raise OSError("disk full")

    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        figures.save_figure(Broken(), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_progress_without_a_terminal(capsys):
    with Progress(5, 200, 32) as progress:
        assert not progress.interactive
        progress.update(1, 200, {"loss": 0.1})
        progress.epoch_end(ROW, best=True)
        progress.epoch_end({"epoch": 3, "train_loss": 1}, best=False)
    assert capsys.readouterr().out.splitlines() == [
        "epoch  2/5  loss 0.0811  acc 0.9754  val loss 0.0655  val acc 0.9802  val F1 0.9800  "
        "4.9 s  10,950 examples/s  *",
        "epoch  3/5  loss 1.0000",
    ]


BAR = """
import time
from dlflax.report.progress import Progress
with Progress(12, 1688, 32, first_epoch=4) as progress:
    for step in (1, 900, 1688):
        progress.update(4, step, {{"loss": 0.12345, "accuracy": 0.9654}})
        time.sleep(0.15)
    progress.epoch_end({row}, best=True)
    time.sleep(0.15)
"""


@pytest.mark.skipif(not importlib.util.find_spec("pty"), reason="needs a POSIX terminal")
@pytest.mark.parametrize("columns", [80, 130])
def test_progress_on_a_terminal_never_wraps(columns):
    import fcntl
    import pty
    import re
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    code = BAR.format(row=dict(ROW, epoch=5))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, env=settings | {"TERM": "xterm-256color"}
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # Linux says so when the other side has closed
        pass
    os.close(ours)
    assert process.wait() == 0
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()))
    assert max(map(len, lines)) <= columns
    bars = [line for line in lines if line.startswith("epoch 5/12")]
    assert any("0.1235" in line and re.search(r"0:00:0\d left", line) for line in bars), lines
    assert any("step  900/1688" in line for line in bars)
    assert any("examples/s" in line for line in bars) == (columns >= 130)
    (end,) = [line for line in lines if line.startswith("epoch  5/12")]
    assert "val loss 0.0655  val acc 0.9802" in end and end.endswith("*")
    assert output.decode().rindex("\x1b[?25h") > output.decode().rindex("\x1b[?25l")  # the cursor


def test_what_does_not_fit_is_left_out():
    parts = [("epoch 1", 0), ("loss 0.1", 1), ("0:00:03 left", 2)]
    assert _fit_width(parts, 31) == ["epoch 1", "loss 0.1", "0:00:03 left"]
    assert _fit_width(parts, 30) == ["epoch 1", "loss 0.1"]
    assert _fit_width(parts, 3) == ["epoch 1"]


def test_tensorboard(tmp_path):
    board = TensorBoard("mnist", tmp_path)
    board.scalars(ROW | {"val_loss": float("nan"), "test_loss": None}, 400)
    figures.save_figure(figures.curves(history(2), "accuracy"), tmp_path / "curves.png")
    board.figure("curves", tmp_path / "curves.png", 400)
    board.hparams({"learning_rate": 0.1, "features": (64, 32), "l2": 0, "augment": True}, {
        "test_accuracy": 0.5
    })  # fmt: skip
    board.close()
    found = {value.tag: (step, value) for step, value in values(tmp_path)}
    scalars = {tag: step for tag, (step, v) in found.items() if v.HasField("simple_value")}
    assert scalars == {
        "learning_rate": 400, "loss/train": 400, "accuracy/train": 400, "loss/val": 400,
        "accuracy/val": 400, "macro_f1/val": 400, "seconds": 400, "examples_per_second": 400,
        "result/accuracy/test": 0,
    }  # fmt: skip
    assert found["accuracy/val"][1].simple_value == pytest.approx(0.9802)
    assert np.isnan(found["loss/val"][1].simple_value)
    step, picture = found["curves"]
    opened = Image.open(io.BytesIO(picture.image.encoded_image_string))
    assert step == 400 and np.ptp(np.asarray(opened)) == 255
    assert opened.size == (picture.image.width, picture.image.height)
    assert {p.parent for p in tmp_path.rglob("*tfevents*")} == {tmp_path / "tensorboard"}


def test_tensorboard_hparams_are_the_plugins(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    board = TensorBoard("mnist", tmp_path)
    given = {"learning_rate": 0.1, "name": "cnn", "augment": True, "features": [64, 32], "no": None}
    board.hparams(given, {"val_loss": 2.0})
    board.close()
    found = {value.tag: value for _, value in values(tmp_path)}
    plugin = {}
    for tag in ("experiment", "session_start_info", "session_end_info"):
        data = found[f"_hparams_/{tag}"].metadata.plugin_data
        assert data.plugin_name == "hparams"
        plugin[tag] = getattr(HParamsPluginData.FromString(data.content), tag)
    given = plugin["session_start_info"].hparams
    assert given["learning_rate"].number_value == 0.1 and given["name"].string_value == "cnn"
    assert given["augment"].bool_value is True and given["features"].string_value == "[64, 32]"
    (metric,) = plugin["experiment"].metric_infos
    assert found[metric.name.tag].simple_value == 2.0


def test_tensorboard_resume_within_a_second_keeps_and_purges(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    for purge_step, steps in ((None, (100, 200, 300)), (201, (300,))):
        board = TensorBoard("mnist", tmp_path, purge_step)
        for step in steps:
            board.scalars({"val_loss": step / 100}, step)
        board.close()
    assert [step for step, _ in values(tmp_path)] == [100, 200, 300, 300]
    (start,) = [e for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert start.step == 201  # TensorBoard forgets from this step on: 200 stays


def test_tensorboards_own_reader_shows_it(tmp_path):
    """Scalars once each though the run was resumed, pictures, and the HParams tab."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for purge_step, steps in ((None, (100, 200, 300)), (201, (300, 400))):
        board = TensorBoard("mnist", tmp_path, purge_step)
        for step in steps:
            board.scalars({"val_loss": step / 100}, step)
        board.close()
    board = TensorBoard("mnist", tmp_path, 401)
    figures.save_figure(figures.curves(history(2), "accuracy"), tmp_path / "curves.png")
    board.figure("curves", tmp_path / "curves.png", 400)
    board.hparams({"learning_rate": 0.1}, {"test_accuracy": 0.5})
    board.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    read = [(event.step, event.value) for event in shown.Scalars("loss/val")]
    assert read == [(100, 1.0), (200, 2.0), (300, 3.0), (400, 4.0)]
    assert shown.Scalars("result/accuracy/test")[0].value == 0.5
    (picture,) = shown.Images("curves")
    assert Image.open(io.BytesIO(picture.encoded_image_string)).size[0] == picture.width
    content = shown.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    found = HParamsPluginData.FromString(content).session_start_info
    assert found.hparams["learning_rate"].number_value == 0.1


@pytest.mark.parametrize(("epochs", "accuracy"), [(1, True), (2, False), (100, True)])
def test_curves(tmp_path, epochs, accuracy):
    figure = figures.curves(history(epochs, accuracy), "accuracy", epochs - 1)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"][: 1 + accuracy]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["train", "val", f"best epoch {epochs}: {1 / epochs:.4f}"]
    assert save(figure, tmp_path) == (600 * (1 + accuracy), 456)


def test_curves_without_validation(tmp_path):
    rows = [{k: v for k, v in row.items() if not k.startswith("val_")} for row in history(2)]
    figure = figures.curves(rows, "accuracy")
    for axes in figure.axes:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train"]
    save(figure, tmp_path)


def test_curves_of_a_diverged_run(tmp_path):
    rows = [dict(row, val_loss=float("nan")) for row in history(2)]
    del rows[1]["val_accuracy"]
    save(figures.curves(rows, "accuracy", 0), tmp_path)


@pytest.mark.parametrize("k", [2, 20, 60])
def test_confusion_matrix(tmp_path, k):
    matrix = np.diag(np.arange(k)) * 1000  # the first class has no examples at all
    matrix[1, 0] = 3000
    names = [f"${i} and a name that is far too long" for i in range(k)]
    figure = figures.confusion_matrix(matrix, names)
    axes = figure.axes[0]
    assert len(axes.texts) == (k * k if k <= 20 else 0)
    image = np.asarray(axes.images[0].get_array())
    assert image[1].tolist()[:2] == [0.75, 0.25] and (image[0] == 0).all()
    if k != 20:  # four hundred numbers take a while
        assert max(save(figure, tmp_path)) < 2000


@pytest.mark.parametrize("channels", [1, 3])
def test_wrong_predictions(tmp_path, channels):
    n = 40
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)
    targets, predictions = np.zeros(n, int), np.arange(n) % 3
    probabilities = np.tile(np.linspace(0, 1, n)[:, None], (1, 3))
    names = ["4", "9", "7"]
    figure = figures.wrong_predictions(images, targets, predictions, probabilities, names)
    titles = [axes.get_title() for axes in figure.axes]
    assert (
        titles[:2] == ["true 4, predicted 7 (0.97)", "true 4, predicted 9 (0.95)"]
        and len(titles) == 25
    )
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown.squeeze(), images[38].squeeze())
    save(figure, tmp_path)
    assert figures.wrong_predictions(images, targets, targets, probabilities, names) is None
    few = figures.wrong_predictions(
        images, targets, predictions, probabilities[:, 0], names, limit=2
    )
    assert len(few.axes) == 2


def test_counting_shows_a_bar_on_a_terminal_only(monkeypatch, capsys):
    with progress_bar("things", 2) as advance:
        advance(2)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("things", 2) as advance:
        advance(2)
    assert "things" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [
        (145_860.3, None, "145,860"), (-145_860.3, 54_000, "-145,860"), (0.97771, None, "0.9777"),
        (58.404, None, "58.40"), (0.00012344, None, "0.0001234"), (1.2344e-5, None, "1.234e-05"),
        (999e12, None, "999,000,000,000,000"), (1.5e17, None, "1.5e+17"), (None, None, ""),
        (120_000_005.314, 9.5, "120,000,005.314"), (120_000_005.314, 25, "120,000,005.31"),
        (31.26, 54_000, "31"), (-0.00001, 9.5, "0.000"), (float("nan"), 3, "nan"),
        (3.25e-6, 1e-6, "3.25e-06"), (2.0, 1e-17, "2.000000000000000"), (5.0, 0.0, "5.0000"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(value, scale, text):
    assert tables.number_text(value, scale) == text


def test_no_exponent_and_a_thousandth_of_the_spread():
    rng = np.random.default_rng(0)
    for value, scale in 10 ** rng.uniform(-4, 14.9, (500, 2)):
        for text in (tables.number_text(value), tables.number_text(value, scale)):
            assert "e" not in text
        error = abs(float(text.replace(",", "")) - value)
        assert error <= max(scale / 1000, value * 1e-15)
        error = abs(float(tables.number_text(value).replace(",", "")) - value)
        assert error <= max(6e-4 * value, 6e-5 * (value >= 1e-3))


def test_steps_of_a_series_can_be_told_apart():
    """Even where the spread of the whole series hides them."""
    rng = np.random.default_rng(0)
    for step in (10, 0.02, 3000):
        values = (1.2e8 + step * rng.normal(size=24)).tolist()
        for scale in (step, 3e7):
            spread = tables.scale_of_steps(values, scale)
            assert len({tables.number_text(value, spread) for value in values}) >= 23
    assert tables.scale_of_steps([5.0, 5.0], 3.0) == 3.0 == tables.scale_of_steps([], 3.0)
    assert tables.scale_of_steps([5.0, 5.0 + 1e-12], 3.0) == 3e-9  # no more than noise


def test_axes_have_no_exponents_and_no_offsets(tmp_path):
    values = 1.2e8 + 10 * np.sin(np.arange(30.0))
    points = values[:, None]
    drawn = [
        figures.predicted_against_true(points, points),
        figures.future_forecast(values, values[:5], None, [""] * 5),
        figures.forecast(values, {"model": [(0, values[:5])]}, {"model": values[:5]}),
    ]
    for figure in drawn:
        save(figure, tmp_path)
        ticks = [t.get_text() for axes in figure.axes for t in axes.get_yticklabels()]
        assert any(len(tick) > 10 and "120,000,0" in tick for tick in ticks)
        assert not any("e" in tick for tick in ticks)
        assert not any(axes.yaxis.get_offset_text().get_text() for axes in figure.axes)
