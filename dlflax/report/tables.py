"""Tables on the screen. rich is imported where it is used: start-up time counts."""

SPLITS = ("train", "val", "test")
MOST_ROWS = 12  # classes of which each gets a line
TITLES = {
    "macro_precision": "precision", "macro_recall": "recall", "macro_f1": "macro F1",
    "calibration_error": "calib.\nerror",
    "micro_f1": "micro\nF1", "mean_average_precision": "mean avg.\nprecision",
    "exact_match": "exact\nmatch",
    "roc_auc": "ROC AUC", "linear_probe_accuracy": "linear probe", "r2": "R2",
}  # fmt: skip


def print_data_table(summary: dict) -> None:
    """Prints what the data were taken for, `data.Splits.summary`: a line a class unless they are
    many."""
    shape = " x ".join(map(str, summary["input_shape"])) or "one number"
    classes = summary.get("classes", {})
    title = f"taken for: {summary['kind']}, {shape}, {summary['input_type']}"
    if 0 < len(classes) <= MOST_ROWS:
        lines = [(name, *(f"{count:,}" for count in row.values())) for name, row in classes.items()]
        print_table(title, ("class", "train", "validation", "test"), lines)
        return
    if classes:
        counts = [row["train"] for row in classes.values()]
        title += f", {len(classes):,} classes of {min(counts):,} to {max(counts):,} to train on"
    print(title)


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


def print_results(results: dict) -> None:
    """Prints the scores in results["train"], ["val"] and ["test"], whichever are there, those of
    each test class unless they are many, and the forecasts."""
    splits = {split: results[split] for split in SPLITS if results.get(split)}
    have = dict.fromkeys(
        name for scores in splits.values() for name, value in scores.items()
        if isinstance(value, (int, float))
    )  # fmt: skip
    # the order of a table that is read often; others follow
    first = ("loss", "accuracy", "macro_precision", "macro_recall", "macro_f1")
    have = [n for n in first if n in have] + [n for n in have if n not in first]
    lines = []
    for split, scores in splits.items():
        values = [scores.get(name) for name in have]
        lines.append([split, *("" if value is None else f"{value:.4f}" for value in values)])
    if have:
        titles = [TITLES.get(name, name.replace("_", " ")) for name in have]
        print_table(None, ["", *titles], lines)
    per_class = results.get("test", {}).get("per_class", {})
    if 0 < len(per_class) <= MOST_ROWS:
        lines = [
            (name, *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1")),
             f"{row['support']:,}")
            for name, row in per_class.items()
        ]  # fmt: skip
        print_table(None, ("test", "precision", "recall", "F1", "support"), lines)
    print_baselines(results)
    if forecasts := results.get("forecasts"):
        lines = [
            (name.replace("_", " "), f"{row['rmse']:.4g}", f"{row['mae']:.4g}")
            for name, row in forecasts.items()
        ]
        columns = ("test, in the series' unit", "rmse", "mae")
        print_table(None, columns, lines)


def print_baselines(results: dict) -> None:
    """Prints the test scores of simple models under those of the network."""
    found = results.get("baselines")
    if not found:
        return
    rows = {results.get("model", "the network"): results["test"], **found}
    names = [n for n in results["test"] if any(n in scores for scores in found.values())]
    lines = [
        (who, *("" if scores.get(n) is None else f"{scores[n]:.4f}" for n in names))
        for who, scores in rows.items()
    ]
    titles = [TITLES.get(name, name.replace("_", " ")) for name in names]
    print_table(None, ("test, simple models beside it", *titles), lines)


def print_folds(results: dict) -> None:
    """Prints the mean of each test score over the folds, its standard deviation, and the means of
    simple models."""
    beside = results.get("baselines", {})
    lines = [
        (TITLES.get(name, name.replace("_", " ")).replace("\n", " "), f"{mean:.4f}",
         f"{results['spread'][name]:.4f}",
         *(f"{scores[name]:.4f}" if name in scores else "" for scores in beside.values()))
        for name, mean in results["test"].items()
    ]  # fmt: skip
    columns = (f"test, {results['folds']} folds", "mean", "deviation")
    print_table(None, (*columns, *(name.replace(" ", "\n") for name in beside)), lines)


def print_table(title, columns, lines) -> None:
    """Prints lines of words under columns; all but the first are aligned right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    words = [word for line in lines for word in str(line[0]).split()]
    # narrow terminals: names fold, between words where there are some; numbers never
    widest = min(20, max(map(len, words), default=1))
    table.add_column(columns[0], overflow="fold", min_width=widest)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line, style="bold" if line[0] == "total" else None)
    Console(markup=False, emoji=False, highlight=False).print(table)
