"""Pictures of a sweep: its history, learning curves, slices, parallel coordinates, importances.

They are drawn here: Optuna's own show complete trials only, name each one in a legend, let one bad
value squash the others, and switch the whole process to another style. `rank` is always that of
`trials.ranked`, whose first is the best.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from dlflax.report import figures
from dlflax.report.pareto import cost_name, front
from dlflax.report.trial_axes import (
    KINDS,
    dots,
    finish,
    legend,
    locator,
    padded,
    scale_of,
    style_axes,
)
from dlflax.report.trials import best_epoch, folded, names_of, outcome, ranked, short_text

CAPTIONS = {
    "history": "Every trial in the order of its number; the line is the best so far.",
    "pareto_front": "Two objectives: of the trials on the line no other one is better in both. The "
    "lowest on the left are cheap and good.",
    "learning_curves": "Every trial after each epoch; pruned ones end in a dot. The large dot is "
    "the best epoch of the best trial. Colours are those of the choice that matters most.",
    "slice": "Each hyperparameter over its range: see where the good values gather, and whether "
    "that is at an end of the range. Choices are spread sideways a little.",
    "parallel_coordinates": "A line a trial, through its hyperparameters to its value on the "
    "right: the darker the better. Those that diverged are left out.",
    "importance": "How the hyperparameters share what each explains by itself (fANOVA, Hutter et "
    "al. 2014), after as many epochs as all trials reached, pruned ones too. What diverged counts "
    "as the worst. The shares add up to 100 % even where all is noise.",
    "reliability_of_the_best": "How often the retrained best is right where it is so sure: bars on "
    "the line mean that its probabilities can be believed.",
    "reliability_of_the_ensemble": "The same of the ensemble.",
}
FEW = ("tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:cyan")  # choices have a colour


def draw(
    folder: str | Path,
    trials: list[FrozenTrial],
    direction: str,
    objective: str,
    log: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Writes NAME.png for each picture of the trials that can be drawn honestly. Returns {name:
    path}. What fails is one warning to `log`."""
    rank = ranked(trials, direction)
    values = [trial.value for trial in rank if outcome(trial) != "diverged"]
    if not values:
        return {}
    scale = scale_of(values, direction, objective)
    drawings = {
        "history": lambda: _history(rank, scale, direction),
        "learning_curves": lambda: _learning_curves(rank, direction, objective),
        "slice": lambda: _slice(rank, scale),
        "parallel_coordinates": lambda: _parallel_coordinates(rank, scale),
        "importance": lambda: _importance(rank, direction, objective),
    }
    if cost_name(trials):
        drawings["pareto_front"] = lambda: _pareto_front(rank, scale, direction)
    return figures.draw(drawings, folder, log)


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
    dots(axes, rank, rank[0], numbers, scale)
    return finish(figure, axes, scale, "trial")


def _pareto_front(rank, scale, direction):
    name, found = cost_name(rank), front(rank, direction)
    figure = figures.new_figure(8, 3.8)
    axes = figure.subplots()
    x, y = [t.user_attrs[name] for t in found], [t.value for t in found]
    axes.step(x, y, "tab:orange", where="post", label="front")
    for trial in found:
        at = trial.user_attrs[name], trial.value
        axes.annotate(f"{trial.number}", at, (4, 6), textcoords="offset points")
    there = [trial for trial in rank if name in trial.user_attrs]
    dots(axes, there, rank[0], [trial.user_attrs[name] for trial in there], scale)
    figure = finish(figure, axes, scale, name)
    axes.set_xscale("log")
    return figure


def _learning_curves(rank, direction, objective):
    from matplotlib.collections import LineCollection

    curves = [sorted(trial.intermediate_values.items()) for trial in rank]
    curves = [[(e, v) for e, v in curve if math.isfinite(v)] for curve in curves]
    if max(map(len, curves)) < 2:
        return None
    scale = scale_of([value for curve in curves for _, value in curve], direction, objective)
    figure = figures.new_figure(8, 3.8)
    axes = figure.subplots()
    alpha = float(np.clip(30 / len(rank), 0.15, 0.8))
    for label, (kind, color, chosen) in _curve_groups(rank).items():
        lines = [curves[place] for place in chosen if curves[place]]
        style = dict(color=color, alpha=alpha)
        if lines:
            axes.add_collection(LineCollection(lines, linewidths=1, label=label, **style))
            ends = zip(*(line[-1] for line in lines), strict=True)
            size = 0 if kind == "complete" else 12
            axes.scatter(*ends, size, marker=KINDS[kind].get("marker", "o"), **style)
    if curves[0]:
        label, style = f"best: trial {rank[0].number}", dict(color="tab:orange", zorder=4)
        axes.plot(*zip(*curves[0], strict=True), linewidth=2.5, label=label, **style)
        epoch = best_epoch(rank[0], direction)
        axes.plot(epoch, rank[0].intermediate_values[epoch], "o", **style)
    return finish(figure, axes, scale, "epoch")


def _curve_groups(rank):
    """{label: (kind, colour, places in rank)}: by kind, and the complete ones by their choice."""
    places = {kind: [i for i, trial in enumerate(rank) if outcome(trial) == kind]
              for kind in ("pruned", "complete", "diverged")}  # fmt: skip
    groups = {kind: (kind, KINDS[kind]["color"], chosen) for kind, chosen in places.items()}
    name = _telling_choice([rank[i] for i in places["complete"]])
    if name:
        of_choice: dict[str, list[int]] = {}
        for choice in rank[0].distributions[name].choices:
            chosen = [i for i in places["complete"] if rank[i].params.get(name) == choice]
            of_choice[f"{name} {short_text(choice)}"] = chosen
        del groups["complete"]
        groups |= {label: ("complete", color, chosen) for (label, chosen), color in
                   zip(of_choice.items(), FEW, strict=False)}  # fmt: skip
    return groups


def _telling_choice(complete):
    """The hyperparameter with few choices whose choices differ most in the places of their trials,
    the best first; None where there is none."""
    spreads = {}
    for name, distribution in (complete[0].distributions if complete else {}).items():
        if isinstance(distribution, CategoricalDistribution) and len(distribution.choices) > 1:
            groups = [
                [i for i, trial in enumerate(complete) if trial.params.get(name) == choice]
                for choice in distribution.choices
            ]
            if len(groups) <= len(FEW) and all(groups):
                spreads[name] = np.ptp([np.mean(group) for group in groups])
    return max(spreads, key=spreads.get, default=None)


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
        return (
            places,
            (-0.5, len(choices) - 0.5),
            [short_text(choice) for choice in choices],
            "linear",
        )
    kind = "log" if distribution.log else "linear"
    ends = padded(min(distribution.low, *values), max(distribution.high, *values), kind)
    return values, ends, None, kind


def _slice(rank, scale):
    names = names_of(rank)
    if not names:
        return None
    rows = math.ceil(len(names) / 4)
    columns = math.ceil(len(names) / rows)
    figure = figures.new_figure(max(4.5, 2.7 * columns), 2.9 * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        having = [trial for trial in rank if name in trial.params]
        places, ends, choices, kind = _places(having, name)
        dots(axes, having, rank[0], places, scale)
        axes.set(xscale=kind, xlim=ends)
        axes.set_xlabel(name, parse_math=False)
        style_axes(axes, scale)
        if choices:
            turned = dict(rotation=35, ha="right", rotation_mode="anchor")
            style = turned if sum(map(len, choices)) > 20 else {}
            axes.set_xticks(range(len(choices)), choices, fontsize=9, parse_math=False, **style)
            axes.grid(visible=False, axis="x")
    for axes in grid[:, 0]:
        axes.set_ylabel(scale.label)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    legend(figure, grid[0, 0])
    return figure


def _parallel_coordinates(rank, scale):
    from matplotlib.collections import LineCollection

    names = names_of(rank)
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
        ticks = range(len(choices)) if choices else locator(*ends, kind).tick_values(*ends)
        ticks = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
        for tick, label in zip(ticks, choices or map(short_text, ticks), strict=True):
            axes.text(k - 0.03, (warp(tick) - low) / (high - low), label, **style)
    lines = np.stack([np.indices(np.shape(heights))[0], heights], axis=2).swapaxes(0, 1)
    worst_first = np.argsort(-values if scale.worst == scale.high else values, kind="stable")
    shade = np.linspace(0, 1, len(rank)) ** max(2, len(rank) / 50)  # of many, few are dark
    look = dict(cmap="Blues", clim=(-0.25, 1), linewidths=np.clip(80 / len(rank), 0.6, 1.8))
    axes.add_collection(LineCollection(lines[worst_first], array=shade, **look))
    axes.plot(*lines[0].T, "tab:orange", linewidth=2.5)
    axes.vlines(range(len(heights)), 0, 1, color="#888888", linewidth=1, zorder=3)
    axes.set(xlim=(-0.5, len(names) + 0.2), ylim=(-0.02, 1.02), yticks=[])
    labels = [*map(folded, names), scale.label.replace(" (", "\n(")]
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
    rank, names = ranked(trials, direction), names_of(trials)
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
    scale = scale_of(list(values.values()), direction, "")
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
