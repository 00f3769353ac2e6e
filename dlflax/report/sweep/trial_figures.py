"""Figures of a sweep: Optuna's own Matplotlib plots, imported where they are used."""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlflax.report import figures
from dlflax.report.sweep.pareto import cost_name
from dlflax.report.sweep.trials import outcome, param_names, rank_trials, short_text

CAPTIONS = {
    "history": "Complete trials by number; the line is the best value so far.",
    "learning_curves": "Every trial after each epoch; pruned trials end early.",
    "slice": "Each hyperparameter over its range: see where the good values gather, and whether "
    "that is at an end of the range. Trials are compared after as many epochs as all reached; the "
    "darker, the later.",
    "parallel_coordinates": "A line per complete trial, from its value on the left through its "
    "hyperparameters: the darker, the better.",
    "importance": "The share of the variation that each hyperparameter explains by itself (fANOVA, "
    "Hutter et al. 2014), after as many epochs as all trials reached, pruned ones too. Diverged "
    "trials count as the worst. The shares add up to 1 even where all is noise.",
    "pareto_front": "Two objectives: of the red trials no other one is better in both. The "
    "lowest on the left are cheap and good.",
    "reliability_of_the_best": "Accuracy of the retrained best model at each predicted "
    "probability: bars on the line mean that its probabilities are calibrated.",
}


def draw(
    folder: str | Path,
    trials: list[FrozenTrial],
    direction: str,
    objective: str,
    log: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Writes NAME.png for each figure for which the trials suffice. Returns {name: path}. A figure
    that fails is one warning to `log`."""
    trials = rank_trials(trials, direction)
    if not trials or outcome(trials[0]) == "diverged":
        return {}
    plots = (_history, _learning_curves, _slice, _parallel_coordinates, _importance, _pareto_front)
    with _isolated_pyplot():
        return figures.draw({
            plot.__name__[1:]: functools.partial(plot, trials, direction, objective)
            for plot in plots
        }, folder, log)  # fmt: skip


@contextlib.contextmanager
def _isolated_pyplot():
    """Context in which pyplot, which Optuna uses, has no windows: they fail in a thread."""
    import matplotlib

    backend = dict.__getitem__(matplotlib.rcParams, "backend")  # get_backend() would choose one
    # 0.01 rather than a power
    settings = {"axes.formatter.min_exponent": 4, "figure.constrained_layout.use": True}
    with matplotlib.rc_context(settings):
        _switch_backend("agg")
        try:
            yield
        finally:
            _switch_backend(backend)


def _switch_backend(name: str) -> None:
    from matplotlib import pyplot

    with contextlib.suppress(Exception):  # no display, or a notebook's hooks: no figure is worth it
        pyplot.switch_backend(name)


def clip_outliers(values: dict, direction: str, label: str) -> tuple[dict, str, str]:
    """Clips NaN, and the few bad values that would squash the others, to the end of the axis.
    Returns (values, label with their number, scale): log for losses of different sizes."""
    minimize = direction == "minimize"
    finite = np.array([value for value in values.values() if math.isfinite(value)])
    positive = minimize and finite.min() > 0
    badness = np.log(finite) if positive else finite if minimize else -finite
    fence = np.median(badness) + 4 * (np.median(badness) - badness.min())
    inliers = finite[badness <= max(fence, np.quantile(badness, 0.8))]
    low, high = float(inliers.min()), float(inliers.max())
    pad = 0.05 * (high - low or abs(high) or 1)
    clip, end = (min, high + pad) if minimize else (max, low - pad)
    clipped = {k: clip(v, end) if math.isfinite(v) else end for k, v in values.items()}
    count = sum(clipped[key] != value for key, value in values.items())
    scale = "log" if positive and high > 4 * low else "linear"
    return clipped, label + f"\n({count:,} clipped)" * (count > 0), scale


def complete_values(trials, direction, objective) -> tuple[dict, str, str]:
    """Returns the values of the complete trials, as `clip_outliers`."""
    values = {trial.number: trial.value for trial in trials if outcome(trial) == "complete"}
    return clip_outliers(values, direction, objective)


def comparable_values(trials, direction, objective) -> tuple[dict, str, str]:
    """Returns the best value of each trial until the last epoch that all trials reached, as
    `clip_outliers`. Diverged trials count as the worst."""
    epochs = [max(t.intermediate_values, default=0) for t in trials if outcome(t) != "diverged"]
    epoch, best = min(epochs), min if direction == "minimize" else max
    values = {}
    for trial in trials:
        curve = [value for e, value in trial.intermediate_values.items() if e <= epoch]
        diverged = outcome(trial) == "diverged"
        values[trial.number] = math.nan if diverged else best(curve, default=trial.value)
    label = f"{objective} after {epoch} epoch{'s' * (epoch > 1)}" if epoch else objective
    return clip_outliers(values, direction, label)


def make_study(trials, direction, values, curves=None, log_params=False) -> optuna.Study:
    """Returns an Optuna study of the trials under their numbers; trials without a value are pruned.
    curves: number -> intermediate values. log_params: replaces hyperparameters on a logarithmic
    scale by their logarithms."""
    study, by_number = optuna.create_study(direction=direction), {t.number: t for t in trials}
    missing = create_trial(state=TrialState.FAIL)
    for number in range(max(by_number) + 1):
        params, distributions = {}, {}
        for name, value in by_number.get(number, missing).params.items():
            distribution = by_number[number].distributions[name]
            if isinstance(distribution, CategoricalDistribution):
                labels = _choice_labels(distribution.choices)
                value = labels[int(distribution.to_internal_repr(value))]
                distribution = CategoricalDistribution(labels)
            elif log_params and distribution.log:
                value = math.log(value)
                ends = math.log(distribution.low), math.log(distribution.high)
                distribution = FloatDistribution(*ends)
            params[name], distributions[name] = value, distribution
        study.add_trial(create_trial(
            state=TrialState.COMPLETE if number in values else TrialState.PRUNED,
            value=values.get(number), params=params, distributions=distributions,
            intermediate_values=(curves or {}).get(number),
        ))  # fmt: skip
    return study


def _choice_labels(choices) -> list:
    """Returns the choices, texts shortened but distinct."""
    labels: list = []
    for index, choice in enumerate(choices):
        label = short_text(choice).replace("$", r"\$") if isinstance(choice, str) else choice
        labels.append(f"{label} ({index})" if label in labels and label != choice else label)
    return labels


def _plot(name, study, width, height, **options):
    """Returns the figure of Optuna's plot NAME."""
    import matplotlib
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    # the plots are experimental, and some set a style
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        axes = getattr(plots, f"plot_{name}")(study, **options)
    figure = np.ravel(axes)[0].figure
    pyplot.close(figure)
    figure.set_size_inches(width, height)
    return figure


def _history(trials, direction, objective):
    if trials[0].state != TrialState.COMPLETE:
        return None
    values, label, scale = complete_values(trials, direction, objective)
    study = make_study(trials, direction, values)
    figure = _plot("optimization_history", study, 8, 3.8, target_name=label)
    figure.axes[0].set_yscale(scale)
    figure.axes[0].legend()
    return figure


def _learning_curves(trials, direction, objective):
    from matplotlib.ticker import MaxNLocator

    if max(len(trial.intermediate_values) for trial in trials) < 2:
        return None
    values = {(t.number, e): v for t in trials for e, v in t.intermediate_values.items()}
    values, label, scale = clip_outliers(values, direction, objective)
    curves = {t.number: {e: values[t.number, e] for e in t.intermediate_values} for t in trials}
    figure = _plot("intermediate_values", make_study(trials, direction, {}, curves), 8, 3.8)
    axes, best = figure.axes[0], trials[0].number
    for line in axes.lines:
        if line.get_label() == f"Trial{best}":
            line.set(color="black", linewidth=2.5, zorder=3)
            axes.legend([line], [f"best: trial {best}"])
    axes.set(xlabel="Epoch", ylabel=label, yscale=scale)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _slice(trials, direction, objective):
    if not (names := param_names(trials)):
        return None
    values, label, scale = comparable_values(trials, direction, objective)
    rows = math.ceil(len(names) / 4)
    columns = math.ceil(len(names) / rows)
    study = make_study(trials, direction, values)
    figure = _plot("slice", study, max(4.5, 2.7 * columns), 3.4 * rows, params=names)
    figure.axes[len(names) - 1].collections[0].colorbar.remove()
    for axes, cell in zip(figure.axes, figure.add_gridspec(rows, columns), strict=False):
        axes.set_subplotspec(cell)  # Optuna has all in one row
        axes.set(ylabel=label if cell.is_first_col() else "", yscale=scale)
        axes.tick_params("y", labelleft=cell.is_first_col())
        _drop_minor_labels(axes.xaxis)
        for tick in axes.get_xticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")
    return figure


def _drop_minor_labels(axis) -> None:
    """Labels a log axis at powers of ten alone, if it has one: others overlap in a narrow panel."""
    from matplotlib.ticker import NullFormatter

    low, high = axis.get_view_interval()
    if axis.get_scale() == "log" and math.ceil(math.log10(low)) <= math.log10(high):
        axis.set_minor_formatter(NullFormatter())


def _parallel_coordinates(trials, direction, objective):
    names = param_names(trials)
    drawn = [t for t in trials if outcome(t) == "complete" and len(t.params) == len(names)]
    if len(drawn) < 2 or len(names) < 2:
        return None
    values, label, _ = complete_values(drawn, direction, objective)
    study, width = make_study(trials, direction, values), min(11.5, 3 + 1.5 * len(names))
    figure = _plot("parallel_coordinate", study, width, 4.2, target_name=label)
    lines = figure.axes[0].collections[0]  # the best in front of the others
    colors, segments = lines.get_array(), lines.get_segments()
    order = np.argsort(-colors if direction == "minimize" else colors, kind="stable")
    lines.set(segments=[segments[i] for i in order], array=colors[order])
    return figure


def importance_study(trials, direction) -> optuna.Study | None:
    """Returns the study to compute importances of; None with fewer than two hyperparameters, four
    trials or two per hyperparameter, or where nothing varies."""
    names, (clipped, *_) = param_names(trials), comparable_values(trials, direction, "")
    finite = sum(outcome(trial) != "diverged" for trial in trials)
    if len(names) < 2 or finite < max(4, 2 * len(names)) or len({*clipped.values()}) < 2:
        return None
    # fANOVA averages over the range evenly: over the logarithm's, where that is searched
    return make_study(trials, direction, clipped, log_params=True)


def importance_evaluator() -> "optuna.importance.FanovaImportanceEvaluator":
    """Returns fANOVA by trees that give the same shares as unlimited ones, ten times as fast."""
    # Optuna imports this module, and scikit-learn, when it is used: that takes 0.9 s
    return optuna.importance.FanovaImportanceEvaluator(seed=0, max_depth=8)


def _importance(trials, direction, objective):
    if (study := importance_study(trials, direction)) is None:
        return None
    evaluator = importance_evaluator()
    label = comparable_values(trials, direction, objective)[1]
    height = 1 + 0.4 * len(param_names(trials))
    return _plot("param_importances", study, 8, height, evaluator=evaluator, target_name=label)


def _pareto_front(trials, direction, objective):
    if (name := cost_name(trials)) is None:
        return None
    study = optuna.create_study(directions=["minimize", direction])
    for trial in trials:
        if outcome(trial) == "complete":
            study.add_trial(create_trial(values=[trial.user_attrs[name], trial.value]))
    figure = _plot("pareto_front", study, 8, 3.8, target_names=[name, objective])
    figure.axes[0].set_xscale("log")
    return figure
