"""Tables on the screen. rich is imported where it is used: start-up time counts."""

import itertools
import math

COLUMNS = 30  # lines of the table of columns
SPLITS = {"train": "train", "val": "validation", "test": "test"}
# scores that not everyone looks at
LESS = ("macro_precision", "macro_recall", "average_precision", "calibration_error")
MOST_ROWS = 12  # classes of which each gets a line
TITLES = {
    "macro_precision": "precision", "macro_recall": "recall", "macro_f1": "macro F1",
    "calibration_error": "calib.\nerror",
    "micro_f1": "micro\nF1", "mean_average_precision": "mean avg.\nprecision",
    "exact_match": "exact\nmatch",
    "roc_auc": "ROC AUC", "average_precision": "average\nprecision",
    "linear_probe_accuracy": "linear probe", "r2": "R2",
}  # fmt: skip


def data_text(summary: dict) -> str:
    """Returns `data.Splits.summary` in words, in one line."""
    what, classes = summary["examples"], summary.get("classes", {})
    counts = [row["train"] for row in classes.values()]
    few = ", ".join(f"{name} ({count:,})" for name, count in zip(classes, counts, strict=False))
    several = f"{len(counts):,} classes of {min(counts, default=0):,} to {max(counts, default=0):,}"
    return what + (f"; {few if len(counts) <= 3 else several} to train on" if classes else "")


def print_class_table(summary: dict) -> None:
    """Prints the number of examples of each class, unless the classes are many."""
    classes = summary.get("classes", {})
    if 0 < len(classes) <= MOST_ROWS:
        lines = [(name, *(f"{count:,}" for count in row.values())) for name, row in classes.items()]
        print_table(None, ("class", "train", "validation", "test"), lines)


def print_model_table(name: str, rows: list[tuple[str, tuple[int, ...], int]], total: int) -> None:
    """Prints one line a parameter, (name, shape, number of values), and their total; of a deep
    model, with more than 60 parameters, one line for those that belong together."""
    lines = [(n, " x ".join(map(str, shape)), f"{count:,}") for n, shape, count in rows]
    if len(rows) > 60:
        counts: dict[str, int] = {}
        for path, _, count in rows:
            part = path.partition("/")[0].partition("_")[0]
            counts[part] = counts.get(part, 0) + count
        lines = [(f"{part}...", "", f"{count:,}") for part, count in counts.items()]
    print_table(name, ("parameter", "shape", "count"), [*lines, ("total", "", f"{total:,}")])


def number_text(value: float | None, scale: float | None = None) -> str:
    """Returns a number as people read it: 0.9777, 58.40, 145,860, and 1.234e-05. scale: the spread
    of such numbers, of which a thousandth must show (120,000,005.31 of 9); default by its size."""
    if value is None or not math.isfinite(value):
        return "" if value is None else str(value)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    if scale and math.isfinite(scale):
        decimals = 3 - math.floor(math.log10(scale))
    else:
        usual = 0 if magnitude > 2 else 2 if magnitude > 0 else 4
        decimals = usual if -4 < magnitude < 15 else 3 - magnitude
    if magnitude >= 15 or magnitude < -4 and decimals > 7:
        return f"{value:,.{min(17, max(4, magnitude + decimals + 1))}g}"
    decimals = min(max(decimals, 0), 15 - max(magnitude, 0))  # those that a float64 has
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # no -0


def scale_of_steps(values: list[float], scale: float) -> float:
    """Returns the scale for `number_text` by which values that follow each other, of a series with
    this scale, can be told apart."""
    steps = sorted(abs(b - a) for a, b in itertools.pairwise(values) if a != b)
    return max(min(scale, 10 * steps[len(steps) // 2]), scale / 1e9) if steps else scale


def print_results(results: dict, verbose: bool = False) -> None:
    """Prints one table of the scores in results["train"], ["val"] and ["test"], whichever are
    there, with those of simple models under them, and the forecasts. verbose: all scores, and those
    of each test class unless they are many."""
    rows = {name: results[split] for split, name in SPLITS.items() if results.get(split)}
    many = len(results.get("test", {}).get("per_class", ())) > 2
    less = (*LESS, "roc_auc") if many else LESS
    have = dict.fromkeys(
        name for scores in rows.values() for name, value in scores.items()
        if isinstance(value, (int, float)) and (verbose or name not in less)
    )  # fmt: skip
    # the order of a table that is read often; others follow
    first = ("loss", "accuracy", "macro_precision", "macro_recall", "macro_f1")
    have = [n for n in first if n in have] + [n for n in have if n not in first]
    rows |= {f"test: {name}": scores for name, scores in results.get("baselines", {}).items()}
    for name, scores in results.get("forecasts", {}).items():
        if name != "model" and not (name == "seasonal_naive" and results.get("baselines")):
            rows[f"test: {name.replace('_', ' ')}"] = scores
    if have:
        lines = [
            (name, *(number_text(scores.get(n)) for n in have)) for name, scores in rows.items()
        ]
        titles = [TITLES.get(name, name.replace("_", " ")) for name in have]
        print_table(None, ["", *titles], lines)
    per_class = results.get("test", {}).get("per_class", {})
    if verbose and 0 < len(per_class) <= MOST_ROWS:
        lines = [
            (name, *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1")),
             f"{row['support']:,}")
            for name, row in per_class.items()
        ]  # fmt: skip
        print_table(None, ("test", "precision", "recall", "F1", "support"), lines)


def print_folds(results: dict) -> None:
    """Prints the mean of each test score over the folds, its standard deviation, and the means of
    simple models."""
    beside = results.get("baselines", {})
    lines = [
        (TITLES.get(name, name.replace("_", " ")).replace("\n", " "), number_text(mean),
         number_text(results["spread"][name]),
         *(number_text(scores.get(name)) for scores in beside.values()))
        for name, mean in results["test"].items()
    ]  # fmt: skip
    columns = (f"test, {results['folds']} folds", "mean", "deviation")
    print_table(None, (*columns, *(name.replace(" ", "\n") for name in beside)), lines)


def print_columns(rows: list[dict], folder, verbose: bool) -> None:
    """Prints what was inferred of each column of a table, of COLUMNS without `verbose`. Neighbours
    of which the same was inferred share a line."""
    lines: list[tuple[str, ...]] = []
    cells = [[f"{value!s:.99}" for value in row.values()] for row in rows]
    for about, group in itertools.groupby(cells, lambda row: row[1:]):
        names = [row[0] for row in group]
        if len(names) > 3 and not about[-1]:  # without a note
            names = [f"{names[0]} ... {names[-1]} ({len(names):,} columns)"]
        lines += [(name, *about) for name in names]
    shown = lines if verbose else lines[:COLUMNS]
    print_table(None, tuple(rows[0]), shown, notes=True)
    if len(shown) < len(lines):
        print(f"{len(lines) - len(shown)} more lines are in {folder / 'columns.csv'}.")


def print_table(title, columns, lines, notes: bool = False) -> None:
    """Prints lines of words under columns; all but the first are aligned right. notes: the last
    column has sentences, which fold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                  show_edge=False)  # fmt: skip
    words = [word for line in lines for word in str(line[0]).split()]
    # narrow terminals: names fold, between words where there are some; numbers never
    widest = min(20, max(map(len, words), default=1))
    table.add_column(columns[0], overflow="fold", min_width=widest)
    for column in columns[1 : len(columns) - notes]:
        table.add_column(column, justify="right", no_wrap=True)
    if notes:
        table.add_column(columns[-1], overflow="fold")
    for line in lines:
        table.add_row(*line, style="bold" if line[0] == "total" else None)
    Console(markup=False, emoji=False, highlight=False).print(table)
