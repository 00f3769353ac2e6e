"""Matplotlib figures of data and results. Matplotlib is imported lazily: start-up time counts."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlflax.errors import first_line
from dlflax.files import atomic_write
from dlflax.report.tables import number_text

MAX_CLASSES = 60  # of a confusion matrix: larger ones are illegible, and take gigabytes
NUMBER_FORMAT = "{x:,.15g}"  # of ticks: 145,860, not 1.4586 x 10^5
FONTS = (  # Matplotlib takes a letter from the first installed font that has it
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC",
    "Hiragino Sans", "WenQuanYi Micro Hei", "Malgun Gothic", "Apple SD Gothic Neo",
    "Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai", "Leelawadee UI", "Arial Unicode MS",
    "Noto Emoji",
)  # fmt: skip


def new_figure(width: float, height: float, layout: str | None = "constrained"):
    """Returns an empty Figure of that size in inches."""
    from matplotlib.figure import Figure  # pyplot has global state, and takes a second to import

    return Figure(figsize=(width, height), layout=layout)


def _style(*all_axes, x=False, y=True):
    """Removes the upper and right spines. x, y: the axes whose ticks are plain numbers."""
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        for axis in [axes.xaxis] * x + [axes.yaxis] * y:
            axis.set_major_formatter(NUMBER_FORMAT)


def curves(history: list[dict[str, float]], score: str | None = None, best: int | None = None):
    """Figure: the loss, and a second score, against the epoch. history: rows of `train.history`;
    best: index of the epoch to mark."""
    from matplotlib.ticker import MaxNLocator

    columns = {k: np.array([row.get(k, math.nan) for row in history], float) for k in history[0]}
    epochs = columns["epoch"]
    names = [n for n in dict.fromkeys(("loss", score)) if {f"train_{n}", f"val_{n}"} & {*columns}]
    figure = new_figure(5 * len(names), 3.8)
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        for split, colour in (("train", "tab:blue"), ("val", "tab:orange")):
            if (values := columns.get(f"{split}_{name}")) is None:
                continue
            marker = "o" if len(epochs) <= 20 else None
            axes.plot(epochs, values, color=colour, marker=marker, markersize=4, label=split)
            if split == "val" and best is not None:
                label = f"best epoch {epochs[best]:.0f}: {number_text(values[best])}"
                ring = dict(markersize=10, markerfacecolor="none", markeredgewidth=1.5)
                axes.plot(epochs[best], values[best], "o", color=colour, label=label, **ring)
        axes.set(title=name.replace("_", " "), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _style(axes)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return figure


def predicted_against_true(targets, outputs):
    """Figure: a point per example, for up to six targets. Both float (n, targets)."""
    count = min(targets.shape[1], 6)
    figure = new_figure(3.6 * min(count, 3), 3.6 * math.ceil(count / 3))
    grid = figure.subplots(math.ceil(count / 3), min(count, 3), squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= count:
            axes.set_axis_off()
            continue
        axes.scatter(targets[:, i], outputs[:, i], s=8, alpha=0.5, linewidths=0)
        both = np.concatenate([targets[:, i], outputs[:, i]])
        ends = [both.min(), both.max()]
        axes.plot(ends, ends, color="#888888", linewidth=1)
        axes.set(xlabel="true", ylabel="predicted", title=f"number {i + 1}" if count > 1 else "")
        _style(axes, x=True)
        axes.tick_params("x", rotation=30 * (np.abs(ends).max() >= 1e4))
    return figure


def confusion_matrix(matrix: np.ndarray, class_names, title: str = ""):
    """Figure of a confusion matrix, int (k, k), rows true, columns predicted, k <= MAX_CLASSES.
    Colours are shares of the row; with up to 20 classes cells show counts. title: default the
    accuracy."""
    from matplotlib.colors import PowerNorm

    matrix, names = np.asarray(matrix), [_short(name, 24) for name in class_names]
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    title = title or f"{accuracy:.2%} of {matrix.sum():,} right"
    k = len(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cell = max(0.5, 3 / k) if k <= 20 else max(0.11, 9 / k)  # inches
    font = min(10, 54 * cell)  # points, three quarters of a cell
    figure = new_figure(cell * k + 2.2, cell * k + 1.2)
    axes = figure.subplots()
    # the square root: one mistake in a hundred is visible
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    rotation = 90 if max(map(len, names)) * font * 0.6 > 65 * cell else 0
    axes.set_xticks(range(k), names, rotation=rotation, fontsize=font, parse_math=False)
    axes.set_yticks(range(k), names, fontsize=font, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    bar = figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8, aspect=30)
    bar.outline.set_visible(False)
    for (i, j), count in np.ndenumerate(matrix) if k <= 20 else ():
        colour = "white" if share[i, j] > 0.4 else "black" if count else "#bbbbbb"
        size = min(10, 94 * cell / len(str(matrix.max())))
        axes.text(j, i, count, ha="center", va="center", color=colour, fontsize=size)
    return figure


def reliability(table):
    """Reliability diagram: accuracy against confidence, above the number of examples of each bin.
    table: as `metrics.calibration`."""
    count, width = table["count"], 1 / len(table["count"])
    figure = new_figure(4.4, 4.6)
    axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    centers, bins = (np.arange(len(count)) + 0.5) * width, count > 0
    accuracy, confidence = table["accuracy"][bins], table["confidence"][bins]
    label = "as sure as it should be"
    axes.plot((0, 1), (0, 1), color="#888888", linewidth=1, label=label, zorder=3)
    axes.bar(centers[bins], accuracy, 0.94 * width, color="tab:blue", label="right")
    axes.plot(confidence, accuracy, "o", color="black", markersize=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    axes.set_title(f"expected calibration error {table['error']:.2%}", fontsize=10)
    axes.legend(frameon=False, loc="upper left")
    below.bar(centers, count, 0.94 * width, color="#bbbbbb")
    below.set(xlabel="probability of the predicted class", ylabel="examples")
    _style(axes, below, y=False)
    return figure


def wrong_predictions(images, targets, predictions, probabilities, class_names, limit=25):
    """Figure of the most confident mistakes, or None if there are none.

    images: uint8 (n, h, w, c), c 1 or 3; only the mistakes are indexed. targets, predictions: int
    (n,). probabilities: float (n, k), or (n,) of the predicted class.
    """
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    probabilities = np.asarray(probabilities, np.float32)
    if probabilities.ndim == 2:
        probabilities = probabilities[np.arange(len(predictions)), predictions]
    wrong = np.flatnonzero(targets != predictions)
    wrong = wrong[np.argsort(-probabilities[wrong], kind="stable")][:limit]
    if not len(wrong):
        return None
    figure = _image_grid(
        targets[wrong], predictions[wrong], probabilities[wrong], class_names, columns=5, width=2
    )
    for i, axes in zip(wrong, figure.axes, strict=True):
        image = images[i][:, :, 0] if images.shape[-1] == 1 else images[i]
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    return figure


def heatmaps(images, maps, targets, predictions, probabilities, class_names):
    """Figure of images, each beside itself with its heatmap on top.

    images: uint8 (n, h, w, 3), n small; maps: float (n, h, w) in 0..1; targets, predictions: int
    (n,); probabilities: float (n,) of the predicted class.
    """
    _, h, w, _ = images.shape
    figure = _image_grid(targets, predictions, probabilities, class_names, columns=2, width=4)
    for image, heat, axes in zip(images, maps, figure.axes, strict=True):
        beside = dict(extent=(1.04 * w, 2.04 * w, h, 0), interpolation="nearest")
        axes.imshow(image, extent=(0, w, h, 0), interpolation="nearest")
        axes.imshow(image, **beside)
        axes.imshow(heat, cmap="turbo", vmin=0, vmax=1, alpha=0.5, **beside)
        axes.set(xlim=(0, 2.04 * w), ylim=(h, 0))
    return figure


def _image_grid(targets, predictions, probabilities, class_names, columns, width):
    """Figure with an empty Axes per example, `width` inches wide, under its target and prediction.
    All (n,)."""
    n, names = len(targets), [_short(name, 15) for name in class_names]
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    between = " " if width > 2 or max(map(len, names)) <= 4 else "\n"
    image_height = 0.86 if between == " " else 0.81  # the rest is the title
    # the constrained layout takes seconds for twenty-five titles
    figure = new_figure(width * columns, 1.9 / image_height * rows, layout=None)
    for i in range(n):
        left, bottom = i % columns + 0.025, rows - 1 - i // columns
        box = (left / columns, bottom / rows, 0.95 / columns, image_height / rows)
        axes = figure.add_axes(box, xticks=[], yticks=[], frame_on=False)
        title = f"true {names[targets[i]]},{between}predicted {names[predictions[i]]} "
        axes.set_title(f"{title}({probabilities[i]:.2f})", fontsize=9, parse_math=False)
    return figure


def augmentations(images, augmented):
    """Figure with a row per image: the image and its augmentations. images: float or uint8
    (n, h, w, c), c 1 or 3; augmented: float (draws, n, h, w, c), 0..1."""
    images = images / 255.0 if images.dtype == np.uint8 else images
    return _sheet(np.concatenate([images[None], augmented]).swapaxes(0, 1), "as it is | augmented")


def reconstructions(inputs, outputs, noisy=None):
    """Figure: rows of inputs, noisy inputs and reconstructions. All float (n, h, w, c), 0..1."""
    rows = {"input": inputs, "noisy": noisy, "reconstruction": outputs}
    rows = {name: images for name, images in rows.items() if images is not None}
    return _sheet(np.stack([*rows.values()]), " | ".join(rows) + " (rows)")


def samples(images, columns: int = 10):
    """Figure: a grid of images, float (n, h, w, c), 0..1, n a multiple of `columns`."""
    return _sheet(images.reshape(-1, columns, *images.shape[1:]), "drawn from the code")


def _sheet(images, title):
    """Figure of images, float (rows, columns, h, w, c), 0..1."""
    rows, columns, h, w, c = images.shape
    images = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    sheet = images.swapaxes(1, 2).reshape(rows * (h + 2), columns * (w + 2), c)
    figure = new_figure(0.9 * columns, 0.9 * rows + 0.3)
    axes = figure.subplots()
    sheet = np.clip(sheet[:, :, 0] if c == 1 else sheet, 0, 1)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    return figure


def latent(codes, targets, class_names, title):
    """Figure: a point per example. codes: float (n, 2); targets: int (n,)."""
    figure = new_figure(6.4, 5.2)
    axes = figure.subplots()
    for i, name in enumerate(class_names):
        style = dict(s=5, alpha=0.6, linewidths=0, label=_short(name, 15))
        axes.scatter(*codes[targets == i].T, **style)
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if len(class_names) <= 20:
        axes.legend(markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def forecast(truth, forecasts, horizon_errors, half_width=None):
    """Figure: the test tail with forecasts from several steps, and the error at each horizon.

    truth: float (n,), in the unit of the series; forecasts: name -> [(first step, values), ...];
    horizon_errors: name -> root mean squared error of each step ahead, (horizon,); half_width:
    of the interval around the forecasts of the first name, (horizon,).
    """
    figure = new_figure(11, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.plot(truth, color="black", linewidth=1, label="measured")
    colours = dict(zip(horizon_errors, ("tab:orange", "tab:gray", "tab:blue"), strict=False))
    for name, pieces in forecasts.items():
        for k, (start, values) in enumerate(pieces):
            steps = np.arange(start, start + len(values))
            left.plot(steps, values, color=colours[name], linewidth=1.2, label=None if k else name)
            if half_width is not None and name == next(iter(forecasts)):
                low, high = values - half_width, values + half_width
                style = dict(color=colours[name], alpha=0.2, linewidth=0)
                left.fill_between(steps, low, high, label=None if k else "interval", **style)
    left.set(title="forecasts of the test tail", xlabel="step of the tail")
    for name, errors in horizon_errors.items():
        right.plot(np.arange(1, len(errors) + 1), errors, color=colours[name], label=name)
    right.set(title="root mean squared error", xlabel="steps ahead", ylim=(0, None))
    _style(left, right)
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    return figure


def future_forecast(past, values, band, times):
    """Figure: the forecast after the end of a series. past (n,), values (horizon,), in its unit;
    band: (lows, highs), (horizon,) each, or None; times: of the steps ahead, or "" each."""
    figure = new_figure(8, 3.4)
    axes = figure.subplots()
    ahead = np.arange(1, len(values) + 1)
    axes.plot(np.arange(1 - len(past), 1), past, color="black", linewidth=1, label="so far")
    style = dict(linewidth=1.5, marker="." * (len(values) < 15), label="forecast")
    axes.plot(ahead, values, color="tab:orange", **style)
    if band is not None:
        style = dict(alpha=0.2, linewidth=0, label="interval")
        axes.fill_between(ahead, *band, color="tab:orange", **style)
    if times[0]:
        ticks = np.unique(np.linspace(1, len(times), min(3, len(times))).round().astype(int))
        axes.set_xticks(ticks, [times[k - 1] for k in ticks], fontsize=8)
    axes.set(xlabel="" if times[0] else "steps ahead")
    _style(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def comparison(rows):
    """Figure: score against training time, a point per run. rows: dicts with name, score (its
    name), mean, std or None, seconds and parameters."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for row in rows:
        point = row["seconds"], row["mean"]
        size = 30 + 40 * math.log10(max(row["parameters"], 10))
        axes.scatter(*point, s=size, alpha=0.7)
        if row["std"] is not None:
            axes.errorbar(*point, yerr=row["std"], color="#555555", capsize=3)
        axes.annotate(row["name"], point, (10, 6), textcoords="offset points")
    axes.set(xlabel="seconds of training", ylabel=f"test {rows[0]['score']}")
    _style(axes)
    axes.set_xlim(0, 1.25 * max(row["seconds"] for row in rows))
    axes.margins(y=0.2)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_title("the larger the point, the more parameters", fontsize=9)
    return figure


def importance(rows, score: str, limit: int = 20):
    """Figure: permutation importance of the columns, the most important first."""
    rows = rows[:limit]
    figure = new_figure(8, 1 + 0.3 * len(rows))
    axes = figure.subplots()
    names = [_short(row["column"], 30) for row in rows]
    values, errors = [row["importance"] for row in rows], [row["std"] for row in rows]
    axes.barh(range(len(rows)), values, xerr=errors, color="tab:blue", error_kw={"linewidth": 1})
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel=f"{score} gets worse by so much when the column is shuffled among the rows")
    _style(axes, x=True, y=False)
    return figure


def learning_rates(rates, losses, suggestion: float):
    """Figure: training loss after a few steps at each rate, float (n,); inf where it diverged."""
    figure = new_figure(6.4, 4)
    axes = figure.subplots()
    finite = np.isfinite(losses)
    axes.plot(rates[finite], losses[finite], "o-", markersize=4)
    low, high = losses[finite].min(), np.median(losses[finite])
    top = low + 2 * ((high - low) or abs(low) or 1)  # outliers would squash the others
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.set(xlim=(rates[0], rates[-1]), ylim=(low - 0.05 * (top - low), top))
    if not finite.all():
        style = dict(color="tab:red", clip_on=False, label="diverged")
        axes.plot(rates[~finite], np.full((~finite).sum(), top), "x", **style)
    axes.axvline(suggestion, color="tab:orange", label=f"suggestion: {suggestion:g}")
    axes.grid(color="#dddddd", linewidth=0.8)
    _style(axes, y=False)
    axes.legend(frameon=False)
    return figure


def _short(name, limit: int) -> str:
    return str(name) if len(str(name)) <= limit else str(name)[: limit - 1] + "…"


def save_figure(figure, path: str | Path) -> None:
    """Writes a PNG atomically."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def save_prediction(figure, folder: Path, name: str) -> Path | None:
    """Writes predictions/NAME.png, without the suffix of NAME, in a run folder. Returns its path,
    or None if the folder is not writable."""
    path = folder / "predictions" / f"{Path(name).stem}.png"
    try:
        path.parent.mkdir(exist_ok=True)
        save_figure(figure, path)
    except OSError:
        return None
    return path


def draw(
    drawings: dict[str, Callable[[], object]], folder: str | Path, log: Callable[[str], None]
) -> dict[str, Path]:
    """Saves NAME.png for each drawing that returns a Figure. Returns {name: path}. A failure is one
    warning to `log`: no figure stops a run."""
    import matplotlib
    from matplotlib import font_manager

    paths: dict[str, Path] = {}
    for name, drawing in drawings.items():
        path = Path(folder) / f"{name}.png"
        try:
            fonts = [f for f in FONTS if f in font_manager.get_font_names()]  # others warn
            with (
                matplotlib.rc_context({"font.family": fonts}),
                warnings.catch_warnings(record=True) as caught,
            ):
                warnings.filterwarnings("always", "Glyph")
                if (figure := drawing()) is not None:
                    save_figure(figure, path)
                    paths[name] = path
            for text in list(dict.fromkeys(first_line(w.message) for w in caught))[:3]:
                log(f"note: {path}: {text}")  # such as a letter that no font has
        except Exception as error:  # Matplotlib and tasks of users can raise anything
            log(f"warning: {path} could not be drawn ({type(error).__name__}: {first_line(error)})")
    return paths
