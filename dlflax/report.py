"""What a sweep leaves behind: trials.csv, pictures, report.html, the table of the best.

The pictures are drawn here: Optuna's own list every trial in a legend, change matplotlib's global
style, and know no outliers.
"""

import base64
import csv
import html
import json
import math
import warnings
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlflax import logs

CAPTIONS = {
    "history": "Every trial in the order of its number; the line is the best so far.",
    "learning_curves": "Every trial after each epoch; the best is drawn thick.",
    "slice": "Each hyperparameter against the value; darker trials came later.",
    "parallel_coordinates": "A line a trial, from hyperparameter to hyperparameter; the darker the "
    "better.",
    "importance": "How much of the variation after the first epochs each hyperparameter explains "
    "(fANOVA; Hutter et al. 2014).",
}


def outcome(trial: FrozenTrial) -> str:
    """complete, pruned, diverged, failed, or running for what is not finished."""
    if "diverged_at" in trial.user_attrs:
        return "diverged"
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    return states.get(trial.state, "failed" if trial.state.is_finished() else "running")


def best_epoch(trial: FrozenTrial, direction: str) -> int | None:
    """From 1, the first on a tie; None where no epoch was finished."""
    best = min if direction == "minimize" else max
    return best(trial.intermediate_values, key=trial.intermediate_values.get, default=None)


def ranked(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """The best first: complete ones by value, then pruned ones by how far they came and value,
    then those that diverged; ties by number. Failed and unfinished ones are left out."""
    sign = 1 if direction == "minimize" else -1
    rank = {"complete": 0, "pruned": 1, "diverged": 2}

    def key(trial):
        kind = outcome(trial)
        epochs = len(trial.intermediate_values) if kind == "pruned" else 0
        return rank[kind], -epochs, sign * trial.value, trial.number

    return sorted((trial for trial in trials if outcome(trial) in rank), key=key)


def write_trials_csv(
    path: str | Path, trials: list[FrozenTrial], direction: str, objective: str
) -> None:
    """One row a trial, by number. The same trials give the same bytes: no clock, no duration."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    std = ["std"] if any("std" in trial.user_attrs for trial in trials) else []
    columns = ["number", "state", objective, *std, "best_epoch", *names]
    with logs.replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for trial in sorted(trials, key=lambda trial: trial.number):
            row = {
                "number": trial.number,
                "state": outcome(trial),
                objective: trial.value,
                "std": trial.user_attrs.get("std"),
                "best_epoch": best_epoch(trial, direction),
                **trial.params,
            }
            writer.writerow({name: row.get(name) for name in columns})


def print_trials(trials, direction: str, objective: str, limit: int = 10) -> None:
    """Prints the best trials, `limit` of them."""
    best = ranked(trials, direction)[:limit]
    names = list(dict.fromkeys(name for trial in best for name in trial.params))
    lines = [
        [str(t.number), _value(t), *(_number(t.params.get(name)) for name in names)] for t in best
    ]
    logs.print_table(f"best of {len(trials)} trials", ["trial", objective, *names], lines)


def _value(trial) -> str:
    """The value with its spread over seeds."""
    if outcome(trial) == "diverged":
        return "diverged"
    text = _number(trial.value, 4)
    if "std" in trial.user_attrs:
        text += f" ± {_number(trial.user_attrs['std'], 2)}"
    return text + (" (pruned)" if outcome(trial) == "pruned" else "")


def _number(value, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


# Pictures. All of them leave out what has no finite value.


def pictures(
    folder: str | Path, trials: list[FrozenTrial], direction: str, objective: str
) -> dict[str, Path]:
    """Writes NAME.png for each of CAPTIONS that can be drawn honestly. Returns {name: path}."""
    shown = [t for t in trials if outcome(t) in ("complete", "pruned") and math.isfinite(t.value)]
    drawings = {
        "history": _history,
        "learning_curves": _learning_curves,
        "slice": _slice,
        "parallel_coordinates": _parallel_coordinates,
        "importance": _importance,
    }
    paths = {}
    for name, draw in drawings.items():
        figure = draw(shown, direction, objective) if shown else None
        if figure is not None:
            paths[name] = Path(folder) / f"{name}.png"
            logs.save_figure(figure, paths[name])
    return paths


def _limits(values, direction):
    """(low, high, scale, note) of the axis of the values. Positive losses of different sizes get a
    logarithmic one; else it ends where a few bad trials do not squash the rest, which note says."""
    values = np.sort(np.asarray(values, float))
    low, high = values[0], values[-1]
    if direction == "minimize" and low > 0 and high > 3 * low:
        return low / 1.1, high * 1.1, "log", ""
    q1, q3 = np.quantile(values, [0.25, 0.75])
    beyond = values > q3 + 4 * (q3 - q1) if direction == "minimize" else values < q1 - 4 * (q3 - q1)
    if q3 > q1 and beyond.any():
        low, high = values[~beyond][[0, -1]]
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    note = f", {beyond.sum()} beyond the axis" if q3 > q1 and beyond.any() else ""
    return low - margin, high + margin, "linear", note


def _tidy(axes):
    from matplotlib.ticker import LogLocator, NullLocator

    if axes.get_yscale() == "log":  # 0.2, not 2 x 10^-1
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _history(trials, direction, objective):
    figure = logs.new_figure(7, 3.8)
    axes = figure.subplots()
    best, line = None, []
    for trial in trials:
        if outcome(trial) == "complete":
            better = min if direction == "minimize" else max
            best = trial.value if best is None else better(best, trial.value)
            line.append((trial.number, best))
    low, high, scale, note = _limits([t.value for t in trials], direction)
    size = float(np.clip(1500 / len(trials), 6, 40))
    for kind, style in (("complete", {}), ("pruned", {"facecolors": "none"})):
        points = [(t.number, t.value) for t in trials if outcome(t) == kind]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, size, edgecolors="tab:blue", label=f"{kind} trial", **style)
    if line:
        axes.step(*zip(*line, strict=True), where="post", color="tab:orange", label="best so far")
    axes.set(xlabel="trial", ylabel=objective + note, yscale=scale, ylim=(low, high))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    _tidy(axes)
    return figure


def _learning_curves(trials, direction, objective):
    curves = [t for t in trials if len(t.intermediate_values) > 1]
    if not curves:
        return None
    figure = logs.new_figure(7, 3.8)
    axes = figure.subplots()
    ends = [v for t in curves for v in t.intermediate_values.values() if math.isfinite(v)]
    low, high, scale, note = _limits(ends, direction)
    alpha = float(np.clip(20 / len(curves), 0.08, 0.6))
    best = ranked(curves, direction)[0]
    for trial in curves:
        epochs, values = zip(*sorted(trial.intermediate_values.items()), strict=True)
        if trial is best:
            style = dict(color="tab:orange", linewidth=2.5, zorder=3, label=f"trial {best.number}")
        else:
            style = dict(color="tab:blue", linewidth=1, alpha=alpha)
        axes.plot(epochs, values, **style)
        if outcome(trial) == "pruned":
            axes.plot(epochs[-1], values[-1], "x", color="tab:blue", markersize=4, alpha=alpha)
    axes.set(xlabel="epoch", ylabel=objective + note, yscale=scale, ylim=(low, high))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper right")
    _tidy(axes)
    return figure


def _axis(trials, name):
    """(positions, tick positions or None, tick labels, whether logarithmic) of a parameter."""
    having = [t for t in trials if name in t.params]
    distribution = having[0].distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        places = [choices.index(t.params[name]) for t in having]
        return having, places, range(len(choices)), [_number(c)[:24] for c in choices], False
    return having, [t.params[name] for t in having], None, None, distribution.log


def _names(trials):
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def _slice(trials, direction, objective):
    names = _names(trials)
    if not names:
        return None
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = logs.new_figure(max(4.0, 2.8 * columns), 3.0 * rows)
    low, high, scale, note = _limits([t.value for t in trials], direction)
    size = float(np.clip(1500 / len(trials), 6, 40))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        having, x, ticks, labels, log = _axis(trials, name)
        numbers = [t.number for t in having]
        values = [t.value for t in having]
        axes.scatter(x, values, size, c=numbers, cmap="Blues", vmin=-0.5 * max(numbers or [1]),
                     edgecolors="#555555", linewidths=0.4)  # fmt: skip
        if ticks is not None:
            axes.set_xticks(ticks, labels, rotation=30 if max(map(len, labels)) > 5 else 0)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        elif log:
            axes.set_xscale("log")
        axes.set(xlabel=name, yscale=scale, ylim=(low, high))
        _tidy(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel(objective + note)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    return figure


def _parallel_coordinates(trials, direction, objective):
    from matplotlib.collections import LineCollection

    names = _names(trials)
    trials = [t for t in trials if all(name in t.params for name in names)]
    if len(names) < 2 or len(trials) < 2:
        return None
    figure = logs.new_figure(max(6.0, 1.7 * (len(names) + 1)), 4.2)
    axes = figure.subplots()
    low, high, scale, note = _limits([t.value for t in trials], direction)
    values = np.clip([t.value for t in trials], low, high)
    if scale == "log":
        low, high, values = np.log10(low), np.log10(high), np.log10(values)
    columns = [(values - low) / (high - low)]
    for k, name in enumerate(names, start=1):
        _, x, ticks, labels, log = _axis(trials, name)
        x = np.log10(x) if log else np.asarray(x, float)
        ends = (0, len(labels) - 1) if ticks is not None else (x.min(), x.max())
        span = ends[1] - ends[0] or 1
        columns.append(0.04 + 0.92 * (x - ends[0]) / span)
        if ticks is None:
            ticks = np.linspace(*ends, 5)
            labels = [f"{10**tick if log else tick:.2g}" for tick in ticks]
        for tick, label in zip(ticks, labels, strict=True):
            y = 0.04 + 0.92 * (tick - ends[0]) / span
            axes.text(k + 0.03, y, label, fontsize=8, va="center", zorder=4, parse_math=False,
                      bbox=dict(facecolor="white", alpha=0.75, linewidth=0, pad=0.6))  # fmt: skip
    for tick in np.linspace(low, high, 5):
        label = f"{10**tick if scale == 'log' else tick:.3g}"
        axes.text(-0.03, (tick - low) / (high - low), label, fontsize=8, ha="right", va="center")
    # the best are drawn last, and darkest
    good = (values - low) / (high - low)
    good = 1 - good if direction == "minimize" else good
    order = np.argsort(good, kind="stable")
    table = np.stack(columns, axis=1)[order]
    lines = [np.column_stack([np.arange(table.shape[1]), row]) for row in table]
    width = float(np.clip(60 / len(trials), 0.6, 2))
    axes.add_collection(
        LineCollection(
            lines,
            array=good[order] ** 2,
            cmap="Blues",
            linewidths=width,
            clim=(-0.25, 1),
            alpha=0.9,
        )  # fmt: skip
    )
    axes.set_xlim(-0.35, len(names) + 0.45)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks(range(len(names) + 1), [objective + note, *names], fontsize=9)
    axes.set_yticks([])
    axes.vlines(range(len(names) + 1), 0, 1, color="#999999", linewidth=1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def importances(trials: list[FrozenTrial]) -> dict[str, float]:
    """Share of each hyperparameter, largest first, from the values at the first epoch that all
    trials reached, so that pruned ones count too; {} when there are too few to say. Trials whose
    value was not finite there are left out."""
    first = max((min(t.intermediate_values, default=0) for t in trials), default=0)
    names = _names(trials)
    study = optuna.create_study()
    for trial in trials:
        value = trial.intermediate_values.get(first, trial.value)
        if math.isfinite(value) and set(trial.params) == set(names):
            study.add_trial(
                create_trial(params=trial.params, distributions=trial.distributions, value=value)
            )
    values = {trial.value for trial in study.get_trials(deepcopy=False)}
    if len(names) < 2 or len(study.trials) < 8 or len(values) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about odd columns
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _importance(trials, direction, objective):
    shares = importances(trials)
    if not shares:
        return None
    figure = logs.new_figure(6, 1 + 0.42 * len(shares))
    axes = figure.subplots()
    bars = axes.barh(list(shares), list(shares.values()), color="tab:blue", height=0.6)
    axes.bar_label(bars, [f"{share:.2f}" for share in shares.values()], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel=f"share of the variation of {objective} after the first epoch", xlim=(0, 1.08))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# The page.

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.best { font-size: 1.15rem } code, pre { font: 13px/1.5 ui-monospace, monospace }
pre { background: var(--soft); padding: .7rem; overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap }
th:first-child, td:first-child { text-align: left } thead th { cursor: pointer }
figure { margin: 1.2rem 0 } figcaption { color: GrayText }
img { max-width: 100%; background: white; border-radius: 4px }
tr.diverged, tr.failed, tr.pruned { color: GrayText }
@media print { thead th { cursor: auto } figure, tr { break-inside: avoid } }
"""
SORT = """
for (const table of document.querySelectorAll("table.sortable"))
  table.tHead.rows[0].querySelectorAll("th").forEach((head, k) => head.addEventListener("click", () => {
    const up = head.dataset.up = head.dataset.up === "1" ? "" : "1", body = table.tBodies[0];
    const key = row => row.cells[k].dataset.v ?? row.cells[k].textContent;
    [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)], [p, q] = [parseFloat(x), parseFloat(y)];
      const order = isNaN(p) || isNaN(q) ? x.localeCompare(y) : p - q;
      return up ? order : -order;
    }).forEach(row => body.append(row));
  }));
"""  # noqa: E501


def write_html(
    folder: str | Path,
    results: dict,
    trials: list[FrozenTrial],
    pictures: dict[str, Path],
    direction: str,
    objective: str,
) -> None:
    """report.html: one file that needs nothing else, for a browser."""
    text = html.escape
    best = results.get("best") or {}
    number = best.get("number")
    chosen = next((t for t in trials if t.number == number), None)
    parts = [f"<h1>{text(str(results.get('study')))}</h1>"]
    if chosen is not None:
        params = ", ".join(f"{name} {_number(value)}" for name, value in chosen.params.items())
        parts.append(
            f"<p class=best>Best: trial {number}, {text(objective)} {text(_value(chosen))}<br>"
            f"{text(params)}</p>"
        )
    test = {name: value for name, value in (results.get("test") or {}).items() if _plain(value)}
    if test:
        scores = ", ".join(f"{name} {_number(value, 4)}" for name, value in test.items())
        parts.append(f"<p>Retrained, on the test data: {text(scores)}</p>")
    if commands := results.get("commands"):
        parts.append("<pre>" + text("\n".join(commands.values())) + "</pre>")
    parts.append("<h2>Pictures</h2>" if pictures else "")
    for name, path in pictures.items():
        data = base64.b64encode(Path(path).read_bytes()).decode()
        parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{text(name)}">'
            f"<figcaption>{text(CAPTIONS[name])}</figcaption></figure>"
        )
    parts += ["<h2>Trials</h2>", _trials_table(trials, direction, objective)]
    facts = "".join(
        f"<tr><th>{text(name)}</th><td>{text(_number(value, 4))}</td></tr>"
        for name, value in results.items()
        if _plain(value)
    )
    parts.append(f"<h2>The sweep</h2><table>{facts}</table>")
    title = text(f"{results.get('study')}: {len(trials)} trials")
    with logs.replacing(Path(folder) / "report.html") as temporary:
        temporary.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width">'
            f"<style>{STYLE}</style>{''.join(parts)}<script>{SORT}</script></html>\n"
        )


def _plain(value) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _trials_table(trials, direction, objective):
    text, names = html.escape, _names(trials)
    left_out = [t for t in trials if outcome(t) in ("failed", "running")]
    rows = []
    for trial in [*ranked(trials, direction), *left_out]:
        value = "" if trial.value is None else json.dumps(trial.value)
        cells = [f"<td>{trial.number}</td>", f'<td data-v="{value}">{text(_value_or(trial))}</td>']
        cells.append(f"<td>{best_epoch(trial, direction) or ''}</td>")
        for name in names:
            value = trial.params.get(name)
            cells.append(f'<td data-v="{text(str(value))}">{text(_number(value))}</td>')
        rows.append(f'<tr class="{outcome(trial)}">{"".join(cells)}</tr>')
    heads = "".join(f"<th>{text(n)}</th>" for n in ("trial", objective, "best epoch", *names))
    return (
        f'<div class=wide><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _value_or(trial) -> str:
    return outcome(trial) if trial.value is None else _value(trial)
