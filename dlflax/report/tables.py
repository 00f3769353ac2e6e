"""Printed tables. rich is imported lazily: start-up time counts."""

import itertools
import math

MAX_COLUMNS = 30  # lines of the table of columns
SPLITS = {"train": "train", "val": "validation", "test": "test"}
VERBOSE_SCORES = ("macro_precision", "macro_recall", "average_precision", "calibration_error")
MAX_CLASSES = 12  # with a line each
TITLES = {
    "macro_precision": "precision", "macro_recall": "recall", "macro_f1": "macro F1",
    "calibration_error": "calib.\nerror",
    "micro_f1": "micro\nF1", "mean_average_precision": "mean avg.\nprecision",
    "exact_match": "exact\nmatch",
    "roc_auc": "ROC AUC", "average_precision": "average\nprecision",
    "linear_probe_accuracy": "linear probe", "r2": "R2",
}  # fmt: skip


def data_text(summary: dict) -> str:
    """Returns one line about `data.Splits.summary`."""
    counts = {name: row["train"] for name, row in summary.get("classes", {}).items()}
    if not counts:
        return summary["examples"]
    classes = f"{len(counts):,} classes of {min(counts.values()):,} to {max(counts.values()):,}"
    if len(counts) <= 3:
        classes = ", ".join(f"{name} ({count:,})" for name, count in counts.items())
    return f"{summary['examples']}; {classes} to train on"


def print_class_table(summary: dict) -> None:
    """Prints the number of examples of each class, unless there are too many."""
    classes = summary.get("classes", {})
    if 0 < len(classes) <= MAX_CLASSES:
        lines = [(name, *(f"{count:,}" for count in row.values())) for name, row in classes.items()]
        print_table(None, ("class", "train", "validation", "test"), lines)


def print_model_table(name: str, rows: list[tuple[str, tuple[int, ...], int]], total: int) -> None:
    """Prints one line per parameter: rows of (name, shape, count), and the total. Models with more
    than 60 parameters have one line per block."""
    lines = [(n, " x ".join(map(str, shape)), f"{count:,}") for n, shape, count in rows]
    if len(rows) > 60:
        counts: dict[str, int] = {}
        for path, _, count in rows:
            block = path.partition("/")[0].partition("_")[0]
            counts[block] = counts.get(block, 0) + count
        lines = [(f"{block}...", "", f"{count:,}") for block, count in counts.items()]
    print_table(name, ("parameter", "shape", "count"), [*lines, ("total", "", f"{total:,}")])


def number_text(value: float | None, scale: float | None = None) -> str:
    """Returns a legible number: 0.9777, 58.40, 145,860 or 1.234e-05. scale: the spread of such
    numbers, shown to a thousandth (120,000,005.31 for 9); default by magnitude."""
    if value is None or not math.isfinite(value):
        return "" if value is None else str(value)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    if scale and math.isfinite(scale):
        decimals = 3 - math.floor(math.log10(scale))
    else:
        decimals = 0 if magnitude > 2 else 2 if magnitude > 0 else 4
        decimals = decimals if -4 < magnitude < 15 else 3 - magnitude
    if magnitude >= 15 or magnitude < -4 and decimals > 7:
        return f"{value:,.{min(17, max(4, magnitude + decimals + 1))}g}"
    decimals = min(max(decimals, 0), 15 - max(magnitude, 0))  # of a float64
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # no -0


def scale_of_steps(values: list[float], scale: float) -> float:
    """Returns the scale for `number_text` that shows the difference between successive values of a
    series with this scale."""
    steps = sorted(abs(b - a) for a, b in itertools.pairwise(values) if a != b)
    return max(min(scale, 10 * steps[len(steps) // 2]), scale / 1e9) if steps else scale


def print_results(results: dict, verbose: bool = False) -> None:
    """Prints a table of the scores of all splits, baselines and forecasts. verbose: all scores, and
    the test scores of each class unless there are too many."""
    rows = {name: results[split] for split, name in SPLITS.items() if results.get(split)}
    many = len(results.get("test", {}).get("per_class", ())) > 2
    verbose_scores = (*VERBOSE_SCORES, "roc_auc") if many else VERBOSE_SCORES
    names = dict.fromkeys(
        name for scores in rows.values() for name, value in scores.items()
        if isinstance(value, (int, float)) and (verbose or name not in verbose_scores)
    )  # fmt: skip
    first = ("loss", "accuracy", "macro_precision", "macro_recall", "macro_f1")
    names = [n for n in first if n in names] + [n for n in names if n not in first]
    rows |= {f"test: {name}": scores for name, scores in results.get("baselines", {}).items()}
    for name, scores in results.get("forecasts", {}).items():
        if name != "model" and not (name == "seasonal_naive" and results.get("baselines")):
            rows[f"test: {name.replace('_', ' ')}"] = scores
    if names:
        lines = [(row, *(number_text(s.get(n)) for n in names)) for row, s in rows.items()]
        titles = [TITLES.get(name, name.replace("_", " ")) for name in names]
        print_table(None, ["", *titles], lines)
    per_class = results.get("test", {}).get("per_class", {})
    if verbose and 0 < len(per_class) <= MAX_CLASSES:
        lines = [
            (name, *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1")),
             f"{row['support']:,}")
            for name, row in per_class.items()
        ]  # fmt: skip
        print_table(None, ("test", "precision", "recall", "F1", "support"), lines)


def print_folds(results: dict) -> None:
    """Prints the mean and standard deviation of each test score over the folds, and the means of
    the baselines."""
    baselines = results.get("baselines", {})
    lines = [
        (TITLES.get(name, name.replace("_", " ")).replace("\n", " "), number_text(mean),
         number_text(results["spread"][name]),
         *(number_text(scores.get(name)) for scores in baselines.values()))
        for name, mean in results["test"].items()
    ]  # fmt: skip
    columns = (f"test, {results['folds']} folds", "mean", "deviation")
    print_table(None, (*columns, *(name.replace(" ", "\n") for name in baselines)), lines)


def print_columns(rows: list[dict], folder, verbose: bool) -> None:
    """Prints the inferred properties of each column of a table, in at most MAX_COLUMNS lines unless
    `verbose`. Equal neighbours share a line."""
    lines: list[tuple[str, ...]] = []
    cells = [[f"{value!s:.99}" for value in row.values()] for row in rows]
    for properties, group in itertools.groupby(cells, lambda row: row[1:]):
        names = [row[0] for row in group]
        if len(names) > 3 and not properties[-1]:  # without a note
            names = [f"{names[0]} ... {names[-1]} ({len(names):,} columns)"]
        lines += [(name, *properties) for name in names]
    count = len(lines) if verbose else MAX_COLUMNS
    print_table(None, tuple(rows[0]), lines[:count], notes=True)
    if count < len(lines):
        print(f"{len(lines) - count} more lines are in {folder / 'columns.csv'}.")


def print_table(title, columns, lines, notes: bool = False) -> None:
    """Prints a table, whose columns are aligned right but the first. notes: the last column has
    sentences, which wrap."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                  show_edge=False)  # fmt: skip
    words = [word for line in lines for word in str(line[0]).split()]
    # on narrow terminals names wrap between words, and numbers never
    min_width = min(20, max(map(len, words), default=1))
    table.add_column(columns[0], overflow="fold", min_width=min_width)
    for column in columns[1 : len(columns) - notes]:
        table.add_column(column, justify="right", no_wrap=True)
    if notes:
        table.add_column(columns[-1], overflow="fold")
    for line in lines:
        table.add_row(*line, style="bold" if line[0] == "total" else None)
    Console(markup=False, emoji=False, highlight=False).print(table)
