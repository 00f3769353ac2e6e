"""The axis of a sweep's values, and a dot for each trial on it."""

from typing import NamedTuple

import numpy as np

from dlflax.report.figures import PLAIN
from dlflax.report.trials import outcome

KINDS = {  # of dots, in the order of drawing
    "pruned": dict(color="#b0b7bf"),
    "complete": dict(color="tab:blue"),
    "beyond the axis": dict(color="#7f96ad"),
    "diverged": dict(color="tab:red", marker="x", linewidths=1),
    "best": dict(color="tab:orange", s=64),
}


class Scale(NamedTuple):
    """The axis of the values."""

    low: float
    high: float
    kind: str  # linear or log
    label: str
    worst: float  # low or high


def scale_of(values, direction, objective) -> Scale:
    """Logarithmic for losses of different sizes. It ends where a few bad values would squash the
    others; the label then counts them."""
    values = np.array(values)
    minimize = direction == "minimize"
    positive = minimize and values.min() > 0
    bad = np.log(values) if positive else values if minimize else -values
    fence = np.median(bad) + 4 * (np.median(bad) - bad.min())
    kept = values[bad <= max(fence, np.quantile(bad, 0.8))]
    kind = "log" if positive and kept.max() > 4 * kept.min() else "linear"
    low, high = padded(kept.min(), kept.max(), kind)
    beyond = np.sum(values > high if minimize else values < low)
    label = objective + (f" ({beyond:,} beyond the axis)" if beyond else "")
    return Scale(low, high, kind, label, high if minimize else low)


def padded(low, high, kind) -> tuple[float, float]:
    """The ends of an axis: a twentieth further out."""
    if kind == "log":
        factor = (high / low) ** 0.05 if high > low else 1.5
        return low / factor, high * factor
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - pad, high + pad


def locator(low, high, kind):
    """The locator for an axis from low to high."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if kind == "linear":
        return MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    subs = [1] if high > 200 * low else [1, 2, 5] if high > 9 * low else [1, 1.5, 2, 3, 5, 7]
    return LogLocator(subs=subs)


def style_axes(axes, scale):
    from matplotlib.ticker import NullLocator

    axes.set(yscale=scale.kind, ylim=(scale.low, scale.high))
    axes.yaxis.set_major_locator(locator(*scale[:3]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PLAIN)  # 0.2, not 2 x 10^-1
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def finish(figure, axes, scale, xlabel):
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=xlabel, ylabel=scale.label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style_axes(axes, scale)
    legend(figure, axes)
    return figure


def legend(figure, axes):
    handles, labels = axes.get_legend_handles_labels()
    place = dict(loc="outside lower center", ncols=6, frameon=False)
    for handle in figure.legend(handles, labels, **place).legend_handles:
        handle.set_alpha(1)
        if hasattr(handle, "set_sizes"):  # a dot
            handle.set_sizes([36])


def dots(axes, rank, best, x, scale):
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
