"""Ranking, the table's bytes, and pictures and page of odd sweeps: no crash, no warning."""

import math
from html.parser import HTMLParser

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from dlflax import report

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0, 0.5),
    "model.features": CategoricalDistribution(["32", "<script>x</script>", "a" * 40]),
}
COMPLETE, PRUNED = TrialState.COMPLETE, TrialState.PRUNED


def trial(number, value, state=COMPLETE, epochs=3, **attrs):
    rng = np.random.default_rng(number)
    params = {
        "learning_rate": float(10 ** rng.uniform(-5, -1)),
        "dropout": float(rng.uniform(0, 0.5)),
        "model.features": SPACE["model.features"].choices[number % 3],
    }
    curve = {epoch: value + 1 / epoch - 1 / epochs for epoch in range(1, epochs + 1)}
    made = create_trial(
        state=state, value=value, params=params, distributions=SPACE, user_attrs=attrs,
        intermediate_values=curve,
    )  # fmt: skip
    made.number = number
    return made


def values(n):
    return np.random.default_rng(0).uniform(0.1, 0.2, n).tolist()


SWEEPS = {
    "one": [trial(0, 0.5)],
    "all diverged": [trial(i, math.inf, diverged_at=3) for i in range(4)],
    "all but one pruned": [trial(0, 0.5), *(trial(i, 0.6, PRUNED, 1) for i in range(1, 12))],
    "constant": [trial(i, 0.5) for i in range(20)],
    "an outlier": [trial(i, v) for i, v in enumerate([*values(20), 50.0, -1.0])],
    "with spread": [trial(i, v, std=0.01, values=[v, v]) for i, v in enumerate(values(12))],
    "large": [trial(i, v, epochs=9) for i, v in enumerate(values(100))],
    "one epoch": [trial(i, v, epochs=1) for i, v in enumerate(values(10))],
}


@pytest.mark.parametrize(
    ("name", "direction"),
    [*((name, "minimize") for name in SWEEPS), ("an outlier", "maximize")],
)
def test_odd_sweeps(tmp_path, name, direction, capsys):
    trials = SWEEPS[name]
    pictures = report.pictures(tmp_path, trials, direction, "val_loss")
    assert ("history" in pictures) == (name != "all diverged")
    for path in pictures.values():
        with Image.open(path) as picture:
            assert min(picture.size) >= 200 and max(picture.size) > 500
    results = {"study": "<b>", "best": {"number": 0}, "test": {"accuracy": 0.5, "per_class": {}}}
    report.write_html(tmp_path, results, trials, pictures, direction, "val_loss")
    page = (tmp_path / "report.html").read_text()
    assert "<script>x" not in page and "<b>" not in page
    assert "http:" not in page and "https:" not in page
    rows = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            rows.extend([tag] if tag == "tr" else [])

    Reader().feed(page)
    assert len(rows) > len(trials)
    report.print_trials(trials, direction, "val_loss")
    assert f"of {len(trials)} trials" in capsys.readouterr().out


def test_ranking():
    trials = [
        trial(0, 0.3), trial(1, math.inf, diverged_at=7), trial(2, 0.1, PRUNED, 1), trial(3, 0.2),
        trial(4, 0.4, PRUNED, 2), trial(5, 0.2), create_trial(state=TrialState.FAIL),
    ]  # fmt: skip
    assert [t.number for t in report.ranked(trials, "minimize")] == [3, 5, 0, 4, 2, 1]
    trials[1].value = -math.inf
    assert [t.number for t in report.ranked(trials, "maximize")] == [0, 3, 5, 4, 2, 1]


def test_the_table_has_these_bytes(tmp_path):
    space = {"l2": FloatDistribution(0, 1), "ema": CategoricalDistribution([True, False])}
    trials = [
        create_trial(value=0.1, params={"l2": 1e-7, "ema": True}, distributions=space,
                     intermediate_values={1: 0.3, 2: 0.1}),
        create_trial(value=math.inf, params={"l2": 0.1, "ema": False}, distributions=space,
                     intermediate_values={1: math.inf}, user_attrs={"diverged_at": 3}),
        create_trial(state=TrialState.FAIL),
    ]  # fmt: skip
    for number, each in enumerate(trials):
        each.number = number
    report.write_trials_csv(tmp_path / "trials.csv", trials[::-1], "minimize", "val_loss")
    assert (tmp_path / "trials.csv").read_text() == (
        "number,state,val_loss,best_epoch,l2,ema\n"
        "0,complete,0.1,2,1e-07,True\n1,diverged,inf,1,0.1,False\n2,failed,,,,\n"
    )


def test_importance_is_of_the_first_epoch_and_counts_pruned_trials():
    trials = []
    for i in range(40):
        made = trial(i, 0.5, PRUNED if i % 3 else COMPLETE, 1 + (i % 3 == 0))
        made.intermediate_values = {1: made.params["dropout"], 2: made.params["learning_rate"]}
        if i % 3:
            del made.intermediate_values[2]
        trials.append(made)
    shares = report.importances(trials)
    assert next(iter(shares)) == "dropout" and shares["dropout"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert report.importances(trials[:5]) == {}
