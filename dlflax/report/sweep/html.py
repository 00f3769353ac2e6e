"""Report of a sweep: one page, in one file."""

import base64
import html
import math
from collections import Counter
from datetime import timedelta
from pathlib import Path

from optuna.trial import FrozenTrial

from dlflax.files import atomic_write
from dlflax.report.sweep.trial_figures import CAPTIONS
from dlflax.report.sweep.trials import (
    COSTS,
    best_epoch_number,
    cost_text,
    digits,
    extra_columns,
    outcome,
    param_names,
    rank_trials,
    short_text,
    value_text,
)

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
ul { margin: .4rem 0 1.2rem; padding-left: 1.2rem }
img { max-width: 100%; height: auto; display: block }
@media screen and (max-width: 700px) { figure { overflow-x: auto } img { max-width: none; zoom: .82 } }
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
    if (!x || !y) return !x - !y;  // missing values last
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", {numeric: true}) : x - y;
    return up ? order : -order;
  }).forEach(row => body.append(row));
};
"""


def write_html(
    folder: str | Path,
    results: dict,
    trials: list[FrozenTrial],
    figures: dict[str, Path],
    direction: str,
    objective: str,
) -> None:
    """Writes report.html, which loads no other file. results: of the sweep; missing entries are
    skipped."""
    rank = rank_trials(trials, direction)
    title = _escape(results.get("study") or "sweep")
    counts = Counter(map(outcome, trials)).most_common()
    subtitle = [results[name] for name in ("experiment", "dataset") if results.get(name)]
    subtitle += [f"{count:,} {state}" for state, count in counts]
    parts = [f"<h1>{title}</h1><small>{' · '.join(map(_escape, subtitle))}</small>"]
    if rank and outcome(rank[0]) != "diverged":
        epoch = best_epoch_number(rank[0], direction)
        best = f"trial {rank[0].number}" + (f", epoch {epoch}" if epoch else "")
        value = f"<strong>{_escape(value_text(rank[0]))}</strong>"
        parts.append(f"<p class=best>{_escape(objective)} {value}</p>")
        parts.append(f"<small>the best: {best}</small>{_list(rank[0].params)}")
    if sentences := [*results.get("verdict", ()), *results.get("findings", ())]:
        items = "".join(f"<li>{_escape(sentence)}</li>" for sentence in sentences)
        parts.append(f"<ul>{items}</ul>")
    parts.append("<div class=scores>")
    for name, candidate in _dict(results, "candidates").items():
        best = " (the best model)" if name == results.get("model") else ""
        for key, split in (("val", "validation"), ("test", "test")):
            if isinstance(candidate, dict) and (scores := _list(candidate.get(key))):
                heading = f"{_escape(name)}{best}; scores on the {split} split"
                parts.append(f"<div><small>{heading}</small>{scores}</div>")
    for name, scores in _dict(results, "baselines").items():
        heading = f"{_escape(name)}; scores on the test split"
        parts.append(f"<div><small>{heading}</small>{_list(scores)}</div>")
    parts.append("</div>")
    for name, command in _dict(results, "commands").items():
        parts.append(f"<small>{_escape(name)}</small><pre>{_escape(command)}</pre>")
    for name, path in figures.items():
        data = Path(path).read_bytes()
        width = int.from_bytes(data[16:20], "big") * 4 // 5  # of 120 dpi, on a page of 96
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts.append(f"<h2>{_escape(name.replace('_', ' ').capitalize())}</h2>")
        parts.append(f'<figure><img src="{source}" width="{width}" alt="{_escape(name)}">')
        parts.append(f"<figcaption>{_escape(CAPTIONS.get(name, ''))}</figcaption></figure>")
    unranked = [trial for trial in trials if outcome(trial) in ("failed", "running")]
    parts.append(f"<h2>Trials</h2>{_table([*rank, *unranked], direction, objective)}")
    facts = {name: value for name, value in results.items() if name != "seconds"}
    if isinstance(seconds := results.get("seconds"), int | float) and math.isfinite(seconds):
        facts["time"] = str(timedelta(seconds=round(seconds)))
    parts.append(f"<h2>The sweep</h2>{_list(facts)}")
    with atomic_write(Path(folder) / "report.html") as temporary:
        temporary.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{CSS}</style>{''.join(parts)}<script>{SORT}</script></html>\n",
            encoding="utf-8",
        )


def _escape(value) -> str:
    return html.escape(str(value))


def _dict(results, name) -> dict:
    return results[name] if isinstance(results.get(name), dict) else {}


def _list(facts) -> str:
    """Returns the strings and numbers of a dict under their names; "" without any."""
    items = [
        f"<div><dt>{_escape(name).replace('_', ' ')}</dt><dd>{_escape(short_text(value))}</dd></div>"
        for name, value in (facts.items() if isinstance(facts, dict) else ())
        if isinstance(value, str | int | float)
    ]
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _table(trials, direction, objective) -> str:
    """Returns a table of the trials in this order. data-v: the key to sort a cell by."""
    names, extras, rows = param_names(trials), extra_columns(trials), []
    columns = ["trial", "state", objective, *extras, "best epoch", *names]
    for trial in trials:
        state = outcome(trial)
        value = trial.value if state in ("complete", "pruned") else None
        keys = [trial.number, state, value, *map(trial.user_attrs.get, extras)]
        keys += [best_epoch_number(trial, direction), *map(trial.params.get, names)]
        texts = [digits(value) if key is value else short_text(key) for key in keys]
        for i, name in enumerate(extras, 3):
            texts[i] = cost_text(keys[i]) if name in COSTS else texts[i]
        cells = zip(("" if key is None else key for key in keys), texts, strict=True)
        row = "".join(f'<td data-v="{_escape(key)}">{_escape(text)}</td>' for key, text in cells)
        rows.append(f'<tr class="{state}">{row}</tr>')
    head = "".join(f"<th><button>{_escape(name)}</button></th>" for name in columns)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="table">{table}</div>'
