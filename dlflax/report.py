"""What a sweep leaves behind: trials.csv, pictures, report.html, the table of the best.

The pictures are drawn here: Optuna's own show complete trials only, name each one in a legend, let
one bad value squash the others, and switch the whole process to another style.
"""

import base64
import csv
import html
import math
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlflax import figures, logs

CAPTIONS = {
    "history": "Every trial in the order of its number; the line is the best so far.",
    "learning_curves": "Every trial after each epoch; pruned ones end in a dot. The large dot is "
    "the best epoch of the best trial.",
    "slice": "Each hyperparameter over its range: see where the good values gather, and whether "
    "that is at an end of the range. Choices are spread sideways a little.",
    "parallel_coordinates": "A line a trial, through its hyperparameters to its value on the "
    "right: the darker the better. Those that diverged are left out.",
    "importance": "How the hyperparameters share what each explains by itself (fANOVA, Hutter et "
    "al. 2014), after as many epochs as all trials reached, pruned ones too. What diverged counts "
    "as the worst. The shares add up to 100 % even where all is noise.",
}
KINDS = {  # of dots, in the order of drawing
    "pruned": dict(color="#b0b7bf"),
    "complete": dict(color="tab:blue"),
    "beyond the axis": dict(color="#7f96ad"),
    "diverged": dict(color="tab:red", marker="x", linewidths=1),
    "best": dict(color="tab:orange", s=64),
}


def outcome(trial: FrozenTrial) -> str:
    """complete, pruned, diverged, failed, or running for what is not finished."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return "failed" if trial.state.is_finished() else "running"
    value = math.nan if trial.value is None else trial.value
    if "diverged_at" in trial.user_attrs or not math.isfinite(value):
        return "diverged"
    return trial.state.name.lower()


def best_epoch(trial: FrozenTrial, direction: str) -> int | None:
    """From 1, the first on a tie; None where no epoch was finished."""
    best = min if direction == "minimize" else max
    return best(trial.intermediate_values, key=trial.intermediate_values.get, default=None)


def ranked(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """The best first: complete ones by value, then pruned ones by how far they came and value,
    then those that diverged; ties by number. Failed and unfinished ones are left out."""
    sign = 1 if direction == "minimize" else -1
    kinds = ["complete", "pruned", "diverged"]

    def key(trial):
        kind = outcome(trial)
        epochs = max(trial.intermediate_values, default=0) if kind == "pruned" else 0
        value = 0 if kind == "diverged" else sign * trial.value
        return kinds.index(kind), -epochs, value, trial.number

    return sorted((trial for trial in trials if outcome(trial) in kinds), key=key)


def write_trials_csv(
    path: str | Path, trials: list[FrozenTrial], direction: str, objective: str
) -> None:
    """One row a finished trial, by number. The same trials give the same bytes: no clock."""
    trials = [t for t in sorted(trials, key=lambda t: t.number) if outcome(t) != "running"]
    std = ["std"] if any("std" in trial.user_attrs for trial in trials) else []
    names = _names(trials)
    with logs.replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", "state", objective, *std, "best_epoch", *names])
        for trial in trials:
            row = [trial.number, outcome(trial), trial.value]
            row += [*map(trial.user_attrs.get, std), best_epoch(trial, direction)]
            writer.writerow(row + [*map(trial.params.get, names)])


def print_trials(trials, direction: str, objective: str, limit: int = 10) -> None:
    """Prints the best trials, `limit` of them, without the last hyperparameters where the terminal
    is too narrow."""
    from rich.console import Console

    best = ranked(trials, direction)[:limit]
    if not best:
        return
    pruned = [" pruned" * (outcome(trial) == "pruned") for trial in best]
    columns = [["trial", *(str(trial.number) for trial in best)]]
    columns += [[objective, *(_value(t) + p for t, p in zip(best, pruned, strict=True))]]
    columns += [[n, *(_text(t.params.get(n)) for t in best)] for n in _names(best)]

    def fitting():
        lines = [[line for cell in column for line in cell.split("\n")] for column in columns]
        widths = [max(map(len, column)) for column in lines]
        room = Console().width - np.cumsum(widths) - 3 * np.arange(len(widths))  # blanks between
        return max(2, int(np.sum(room >= 4)))

    if fitting() < len(columns):
        for column in columns[2:]:
            column[0] = _folded(column[0])
    fits = fitting()
    title = f"best of {len(trials):,} trials" + " (the rest: trials.csv)" * (fits < len(columns))
    heads, *lines = zip(*columns[:fits], strict=True)
    logs.print_table(title, heads, lines)


def _names(trials) -> list[str]:
    """All hyperparameters, in declared order."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def _folded(name: str) -> str:
    """On several lines, where there is little room."""
    return name.replace(".", ".\n").replace("_", "_\n")


def _text(value) -> str:
    """A number to four digits; a name as far as it fits in a column."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    return text if len(text) <= 24 else text[:23] + "…"


def _value(trial) -> str:
    """The trial's value with its spread over seeds, or why there is none."""
    if outcome(trial) not in ("complete", "pruned"):
        return outcome(trial)
    if (std := trial.user_attrs.get("std")) is None:
        return _digits(trial.value)
    # --rank cautious counts another value than the mean
    mean = float(np.mean(trial.user_attrs.get("values", trial.value)))
    return f"{_digits(mean)} ± {std:.2g}"


def _digits(value: float | None) -> str:
    """Four digits, zeros too, so that values under each other compare at sight."""
    return "" if value is None else f"{value:#.4g}".rstrip(".")


# Pictures. `rank` is always that of `ranked`, whose first is the best.


class Scale(NamedTuple):
    """The axis of the values."""

    low: float
    high: float
    kind: str  # linear or log
    label: str
    worst: float  # low or high


def pictures(
    folder: str | Path, trials: list[FrozenTrial], direction: str, objective: str
) -> dict[str, Path]:
    """Writes NAME.png for each of CAPTIONS that can be drawn honestly. Returns {name: path}."""
    rank = ranked(trials, direction)
    values = [trial.value for trial in rank if outcome(trial) != "diverged"]
    if not values:
        return {}
    scale = _scale(values, direction, objective)
    made = {
        "history": _history(rank, scale, direction),
        "learning_curves": _learning_curves(rank, direction, objective),
        "slice": _slice(rank, scale),
        "parallel_coordinates": _parallel_coordinates(rank, scale),
        "importance": _importance(rank, direction, objective),
    }
    paths = {name: Path(folder) / f"{name}.png" for name, figure in made.items() if figure}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a choice may have any name
        for name, path in paths.items():
            figures.save_figure(made[name], path)
    return paths


def _scale(values, direction, objective) -> Scale:
    """Logarithmic for losses of different sizes. It ends where a few bad values would squash the
    others; the label then counts them."""
    values = np.array(values)
    minimize = direction == "minimize"
    positive = minimize and values.min() > 0
    bad = np.log(values) if positive else values if minimize else -values
    fence = np.median(bad) + 4 * (np.median(bad) - bad.min())
    kept = values[bad <= max(fence, np.quantile(bad, 0.8))]
    kind = "log" if positive and kept.max() > 4 * kept.min() else "linear"
    low, high = _padded(kept.min(), kept.max(), kind)
    beyond = np.sum(values > high if minimize else values < low)
    label = objective + (f" ({beyond:,} beyond the axis)" if beyond else "")
    return Scale(low, high, kind, label, high if minimize else low)


def _padded(low, high, kind) -> tuple[float, float]:
    """The ends of an axis: a twentieth further out."""
    if kind == "log":
        factor = (high / low) ** 0.05 if high > low else 1.5
        return low / factor, high * factor
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - pad, high + pad


def _ticks(low, high, kind):
    """The locator for an axis from low to high."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if kind == "linear":
        return MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    subs = [1] if high > 200 * low else [1, 2, 5] if high > 9 * low else [1, 1.5, 2, 3, 5, 7]
    return LogLocator(subs=subs)


def _style(axes, scale):
    from matplotlib.ticker import NullLocator

    axes.set(yscale=scale.kind, ylim=(scale.low, scale.high))
    axes.yaxis.set_major_locator(_ticks(*scale[:3]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.6g}")  # 0.2, not 2 x 10^-1
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _finish(figure, axes, scale, xlabel):
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=xlabel, ylabel=scale.label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _style(axes, scale)
    _legend(figure, axes)
    return figure


def _legend(figure, axes):
    handles, labels = axes.get_legend_handles_labels()
    place = dict(loc="outside lower center", ncols=6, frameon=False)
    for handle in figure.legend(handles, labels, **place).legend_handles:
        handle.set_alpha(1)
        if hasattr(handle, "set_sizes"):  # a dot
            handle.set_sizes([36])


def _dots(axes, rank, best, x, scale):
    """A dot a trial at x; what diverged, or is beyond the axis, is at its bad end."""
    kinds = np.array(["best" if t is best else outcome(t) for t in rank], "<U20")
    y = np.array([t.value if outcome(t) != "diverged" else scale.worst for t in rank])
    kinds[(y < scale.low) | (y > scale.high)] = "beyond the axis"
    x, y = np.array(x), np.clip(y, scale.low, scale.high)
    size = np.clip(2500 / len(rank), 10, 36)
    for zorder, (kind, style) in enumerate(KINDS.items(), start=3):
        if not (chosen := kinds == kind).any():
            continue
        style = dict(s=size, marker="o", clip_on=False, zorder=zorder) | style
        style["label"] = f"best: trial {best.number}" if kind == "best" else kind
        if kind == "beyond the axis":
            style["marker"] = "^" if scale.worst == scale.high else "v"
        if kind != "diverged":
            style |= dict(edgecolors="white", linewidths=0.4)
        axes.scatter(x[chosen], y[chosen], **style)


def _history(rank, scale, direction):
    figure = figures.new_figure(8, 3.8)
    axes = figure.subplots()
    numbers = [trial.number for trial in rank]
    complete = sorted((t.number, t.value) for t in rank if outcome(t) == "complete")
    if complete:
        x, values = zip(*complete, strict=True)
        best = (np.minimum if direction == "minimize" else np.maximum).accumulate(values)
        x, best = [*x, max(numbers)], [*best, best[-1]]
        axes.step(x, best, "tab:orange", where="post", label="best so far")
    _dots(axes, rank, rank[0], numbers, scale)
    return _finish(figure, axes, scale, "trial")


def _learning_curves(rank, direction, objective):
    from matplotlib.collections import LineCollection

    curves = [sorted(trial.intermediate_values.items()) for trial in rank]
    curves = [[(e, v) for e, v in curve if math.isfinite(v)] for curve in curves]
    if max(map(len, curves)) < 2:
        return None
    scale = _scale([value for curve in curves for _, value in curve], direction, objective)
    figure = figures.new_figure(8, 3.8)
    axes = figure.subplots()
    alpha = float(np.clip(30 / len(rank), 0.15, 0.8))
    for kind in ("pruned", "complete", "diverged"):
        chosen = [c for c, t in zip(curves, rank, strict=True) if c and outcome(t) == kind]
        style = dict(color=KINDS[kind]["color"], alpha=alpha)
        if chosen:
            axes.add_collection(LineCollection(chosen, linewidths=1, label=kind, **style))
            ends = zip(*(curve[-1] for curve in chosen), strict=True)
            size = 0 if kind == "complete" else 12
            axes.scatter(*ends, size, marker=KINDS[kind].get("marker", "o"), **style)
    if curves[0]:
        label, style = f"best: trial {rank[0].number}", dict(color="tab:orange", zorder=4)
        axes.plot(*zip(*curves[0], strict=True), linewidth=2.5, label=label, **style)
        epoch = best_epoch(rank[0], direction)
        axes.plot(epoch, rank[0].intermediate_values[epoch], "o", **style)
    return _finish(figure, axes, scale, "epoch")


def _places(trials, name):
    """(places of the trials on a hyperparameter's axis, its ends, the names of its choices or None,
    linear or log)."""
    distribution = trials[0].distributions[name]
    values = [trial.params[name] for trial in trials]
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        width = min(0.5, len(trials) / 100)  # the golden ratio spreads them evenly
        spread = [width * (0.618 * trial.number % 1 - 0.5) for trial in trials]
        places = [choices.index(value) + s for value, s in zip(values, spread, strict=True)]
        return places, (-0.5, len(choices) - 0.5), [_text(choice) for choice in choices], "linear"
    kind = "log" if distribution.log else "linear"
    ends = _padded(min(distribution.low, *values), max(distribution.high, *values), kind)
    return values, ends, None, kind


def _slice(rank, scale):
    names = _names(rank)
    if not names:
        return None
    rows = math.ceil(len(names) / 4)
    columns = math.ceil(len(names) / rows)
    figure = figures.new_figure(max(4.5, 2.7 * columns), 2.9 * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        having = [trial for trial in rank if name in trial.params]
        places, ends, choices, kind = _places(having, name)
        _dots(axes, having, rank[0], places, scale)
        axes.set(xscale=kind, xlim=ends)
        axes.set_xlabel(name, parse_math=False)
        _style(axes, scale)
        if choices:
            turned = dict(rotation=35, ha="right", rotation_mode="anchor")
            style = turned if sum(map(len, choices)) > 20 else {}
            axes.set_xticks(range(len(choices)), choices, fontsize=9, parse_math=False, **style)
            axes.grid(visible=False, axis="x")
    for axes in grid[:, 0]:
        axes.set_ylabel(scale.label)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    _legend(figure, grid[0, 0])
    return figure


def _parallel_coordinates(rank, scale):
    from matplotlib.collections import LineCollection

    names = _names(rank)
    rank = [t for t in rank if outcome(t) != "diverged" and len(t.params) == len(names)]
    if len(names) < 2 or len(rank) < 2:
        return None
    figure = figures.new_figure(min(11.5, 2.2 + 1.5 * len(names)), 4.2)
    axes = figure.subplots()
    values = np.clip([trial.value for trial in rank], scale.low, scale.high)
    dimensions = [_places(rank, name) for name in names]
    dimensions.append((values, (scale.low, scale.high), None, scale.kind))
    box = dict(facecolor="white", alpha=0.8, linewidth=0, pad=0.6)
    style = dict(ha="right", va="center", fontsize=8, zorder=4, parse_math=False, bbox=box)
    heights = []
    for k, (places, ends, choices, kind) in enumerate(dimensions):
        warp = np.log if kind == "log" else np.asarray
        low, high = warp(ends)
        heights.append((warp(places) - low) / (high - low))
        ticks = range(len(choices)) if choices else _ticks(*ends, kind).tick_values(*ends)
        ticks = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
        for tick, label in zip(ticks, choices or map("{:.4g}".format, ticks), strict=True):
            axes.text(k - 0.03, (warp(tick) - low) / (high - low), label, **style)
    lines = np.stack([np.indices(np.shape(heights))[0], heights], axis=2).swapaxes(0, 1)
    worst_first = np.argsort(-values if scale.worst == scale.high else values, kind="stable")
    shade = np.linspace(0, 1, len(rank)) ** max(2, len(rank) / 50)  # of many, few are dark
    look = dict(cmap="Blues", clim=(-0.25, 1), linewidths=np.clip(80 / len(rank), 0.6, 1.8))
    axes.add_collection(LineCollection(lines[worst_first], array=shade, **look))
    axes.plot(*lines[0].T, "tab:orange", linewidth=2.5)
    axes.vlines(range(len(heights)), 0, 1, color="#888888", linewidth=1, zorder=3)
    axes.set(xlim=(-0.5, len(names) + 0.2), ylim=(-0.02, 1.02), yticks=[])
    labels = [*map(_folded, names), scale.label.replace(" (", "\n(")]
    size = 9 if len(names) < 9 else 7.5
    axes.set_xticks(range(len(heights)), labels, fontsize=size, parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _reached(rank) -> int:
    """The last epoch that all trials reached but those that diverged."""
    epochs = (max(t.intermediate_values, default=0) for t in rank if outcome(t) != "diverged")
    return min(epochs, default=0)


def importances(trials: list[FrozenTrial], direction: str = "minimize") -> dict[str, float]:
    """{hyperparameter: its share}, largest first, of what each explains by itself. It is taken at
    the last epoch that all trials reached, from the best value until then, so that pruned ones
    count too; what diverged, or is beyond the axis of the pictures, counts as its end. {} with
    fewer than two hyperparameters, four trials or two a hyperparameter, or when nothing varies."""
    rank, names = ranked(trials, direction), _names(trials)
    best, epoch = min if direction == "minimize" else max, _reached(rank)
    values = {}  # trial number -> value, finite
    for trial in rank:
        curve = [value for e, value in trial.intermediate_values.items() if e <= epoch]
        value = best(curve, default=trial.value)
        if outcome(trial) != "diverged" and math.isfinite(value):
            values[trial.number] = value
    varies = len(set(values.values())) > 1 or 0 < len(values) < len(rank)
    if len(names) < 2 or len(values) < max(4, 2 * len(names)) or not varies:
        return {}
    scale = _scale(list(values.values()), direction, "")
    study = optuna.create_study()
    for trial in rank:
        value = np.clip(values.get(trial.number, scale.worst), scale.low, scale.high)
        params, distributions = dict(trial.params), dict(trial.distributions)
        for name, distribution in trial.distributions.items():
            # fANOVA averages over the range evenly: over the logarithm's, where that is searched
            if getattr(distribution, "log", False):
                params[name] = math.log(params[name])
                ends = math.log(distribution.low), math.log(distribution.high)
                distributions[name] = FloatDistribution(*ends)
        study.add_trial(create_trial(params=params, distributions=distributions, value=value))
    # trees of this depth give the same shares as unlimited ones, ten times as fast
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0, max_depth=8)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _importance(rank, direction, objective):
    shares, epoch = importances(rank, direction), _reached(rank)
    if not shares:
        return None
    figure = figures.new_figure(8, 1 + 0.4 * len(shares))
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), list(shares.values()), color="tab:blue", height=0.6)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=4)
    axes.set_yticks(range(len(shares)), list(shares), parse_math=False)
    axes.invert_yaxis()
    after = f" after {epoch} epoch{'s' * (epoch > 1)}" if epoch else ""
    axes.set(xlabel=f"share of the explained variation of {objective}{after}", xlim=(0, 1.08))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# The page.

CSS = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2024; --soft: #60666e; --line: #d9dce0; --panel: #f4f5f7 }
@media screen and (prefers-color-scheme: dark) {
  :root { --back: #191919; --text: #e6e6e6; --soft: #a0a6ad; --line: #3a3d41; --panel: #26282a }
  img { filter: invert(.9) hue-rotate(180deg) }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1110px; margin: 2rem auto; padding: 0 1rem; background: var(--back); color: var(--text) }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
small, figcaption, dt { color: var(--soft); font-size: .87rem }
.best { font-size: 2rem; margin: 1rem 0 0 }
.scores { display: flex; flex-wrap: wrap; gap: 0 4rem }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: .4rem 0 1.2rem }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
pre { font: 13px/1.5 ui-monospace, monospace; background: var(--panel); padding: .6rem .8rem; margin: .2rem 0 .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
figure { margin: 0 }
img { max-width: 100%; height: auto; display: block }
.table { overflow: auto; max-height: 85vh }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { position: sticky; top: 0; background: var(--back); padding: 0 }
button { all: unset; padding: .4rem .7rem; cursor: pointer; font-weight: 600 }
button:focus-visible { outline: 2px solid }
[aria-sort=ascending] button::after { content: " \\2191" }
[aria-sort=descending] button::after { content: " \\2193" }
.pruned, .diverged, .failed, .running { color: var(--soft) }
@media print {
  body { margin: 0; max-width: none; font-size: 12px }
  h2 { break-after: avoid } figure, tr { break-inside: avoid }
  .table { max-height: none; overflow: visible } th { position: static } button { padding-left: 0 }
}
"""  # noqa: E501
SORT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentNode, up = head.ariaSort !== "ascending";
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = up ? "ascending" : "descending";
  const body = head.closest("table").tBodies[0], key = row => row.cells[head.cellIndex].dataset.v;
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (!x || !y) return !x - !y;  // what is missing comes last
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", {numeric: true}) : x - y;
    return up ? order : -order;
  }).forEach(row => body.append(row));
};
"""


def write_html(
    folder: str | Path,
    results: dict,
    trials: list[FrozenTrial],
    pictures: dict[str, Path],
    direction: str,
    objective: str,
) -> None:
    """report.html: one file that needs nothing else. results: those of the sweep; what is missing
    there, or not known here, is left out."""
    rank = ranked(trials, direction)
    title = _escaped(results.get("study") or "sweep")
    counts = Counter(map(outcome, trials)).most_common()
    about = [results[name] for name in ("experiment", "dataset") if results.get(name)]
    about += [f"{count:,} {kind}" for kind, count in counts]
    parts = [f"<h1>{title}</h1><small>{' · '.join(map(_escaped, about))}</small>"]
    if rank and outcome(rank[0]) != "diverged":
        epoch = best_epoch(rank[0], direction)
        where = f"trial {rank[0].number}" + (f", epoch {epoch}" if epoch else "")
        parts.append(
            f"<p class=best>{_escaped(objective)} <strong>{_escaped(_value(rank[0]))}</strong></p>"
        )
        parts.append(f"<small>the best: {where}</small>{_list(rank[0].params)}")
    parts.append("<div class=scores>")
    for name, split in (("val", "validation"), ("test", "test")):
        if scores := _list(results.get(name)):
            parts.append(f"<div><small>trained again, on the {split} data</small>{scores}</div>")
    parts.append("</div>")
    commands = results.get("commands")
    for name, command in commands.items() if isinstance(commands, dict) else ():
        parts.append(f"<small>{_escaped(name)}</small><pre>{_escaped(command)}</pre>")
    for name, path in pictures.items():
        data = Path(path).read_bytes()
        width = int.from_bytes(data[16:20], "big") * 4 // 5  # 120 dots an inch; a page has 96
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts.append(f"<h2>{_escaped(name.replace('_', ' ').capitalize())}</h2>")
        parts.append(f'<figure><img src="{source}" width="{width}" alt="{_escaped(name)}">')
        parts.append(f"<figcaption>{_escaped(CAPTIONS.get(name, ''))}</figcaption></figure>")
    unranked = [trial for trial in trials if outcome(trial) in ("failed", "running")]
    parts.append(f"<h2>Trials</h2>{_table([*rank, *unranked], direction, objective)}")
    facts = {name: value for name, value in results.items() if name != "seconds"}
    if isinstance(seconds := results.get("seconds"), int | float) and math.isfinite(seconds):
        facts["time"] = str(timedelta(seconds=round(seconds)))
    parts.append(f"<h2>The sweep</h2>{_list(facts)}")
    with logs.replacing(Path(folder) / "report.html") as temporary:
        temporary.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{CSS}</style>{''.join(parts)}<script>{SORT}</script></html>\n",
            encoding="utf-8",
        )


def _escaped(value) -> str:
    return html.escape(str(value))


def _list(facts) -> str:
    """The plain values of a dict under their names; "" when there are none."""
    items = [
        f"<div><dt>{_escaped(name).replace('_', ' ')}</dt><dd>{_escaped(_text(value))}</dd></div>"
        for name, value in (facts.items() if isinstance(facts, dict) else ())
        if isinstance(value, str | int | float)
    ]
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _table(trials, direction, objective) -> str:
    """In the order given. data-v is what a click on a column's head sorts by."""
    names, rows = _names(trials), []
    std = ["std"] if any("std" in trial.user_attrs for trial in trials) else []
    columns = ["trial", "state", objective, *std, "best epoch", *names]
    for trial in trials:
        kind = outcome(trial)
        value = trial.value if kind in ("complete", "pruned") else None
        keys = [trial.number, kind, value, *map(trial.user_attrs.get, std)]
        keys += [best_epoch(trial, direction), *map(trial.params.get, names)]
        texts = [_digits(value) if key is value else _text(key) for key in keys]
        cells = zip(("" if key is None else key for key in keys), texts, strict=True)
        row = "".join(f'<td data-v="{_escaped(key)}">{_escaped(text)}</td>' for key, text in cells)
        rows.append(f'<tr class="{kind}">{row}</tr>')
    head = "".join(f"<th><button>{_escaped(name)}</button></th>" for name in columns)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="table">{table}</div>'
