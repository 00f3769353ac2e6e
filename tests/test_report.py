"""Ranking, the table's bytes, and pictures and page of odd sweeps: no crash, no warning."""

import math
import os
import subprocess
import sys
import textwrap
from html.parser import HTMLParser

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from dlflax.report.sweep import html, trial_figures
from dlflax.report.sweep.findings import findings
from dlflax.report.sweep.trial_figures import clip_outliers
from dlflax.report.sweep.trials import print_trials, rank_trials, write_trials_csv

pytestmark = pytest.mark.figures

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
    pictures = trial_figures.draw(tmp_path, trials, direction, "val_loss")
    assert ("history" in pictures) == (name != "all diverged")
    for path in pictures.values():
        with Image.open(path) as picture:
            assert min(picture.size) >= 200 and max(picture.size) > 500
    results = {"study": "<b>", "best": {"number": 0}, "test": {"accuracy": 0.5, "per_class": {}}}
    html.write_html(tmp_path, results, trials, pictures, direction, "val_loss")
    page = (tmp_path / "report.html").read_text()
    assert "<script>x" not in page and "<b>" not in page
    assert "http:" not in page and "https:" not in page
    rows = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            rows.extend([tag] if tag == "tr" else [])

    Reader().feed(page)
    assert len(rows) > len(trials)
    print_trials(trials, direction, "val_loss")
    assert f"of {len(trials)} trials" in capsys.readouterr().out


def test_ranking():
    trials = [
        trial(0, 0.3), trial(1, math.inf, diverged_at=7), trial(2, 0.1, PRUNED, 1), trial(3, 0.2),
        trial(4, 0.4, PRUNED, 2), trial(5, 0.2), create_trial(state=TrialState.FAIL),
    ]  # fmt: skip
    assert [t.number for t in rank_trials(trials, "minimize")] == [3, 5, 0, 4, 2, 1]
    trials[1].value = -math.inf
    assert [t.number for t in rank_trials(trials, "maximize")] == [0, 3, 5, 4, 2, 1]


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
    write_trials_csv(tmp_path / "trials.csv", trials[::-1], "minimize", "val_loss")
    assert (tmp_path / "trials.csv").read_text() == (
        "number,state,val_loss,best_epoch,l2,ema\n"
        "0,complete,0.1,2,1e-07,True\n1,diverged,inf,1,0.1,False\n2,failed,,,,\n"
    )


def importances(trials, direction="minimize"):
    study = trial_figures.importance_study(rank_trials(trials, direction), direction)
    evaluator = trial_figures.importance_evaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator) if study else {}


def test_importance_is_of_the_first_epoch_and_counts_pruned_trials():
    trials = []
    for i in range(40):
        made = trial(i, 0.5, PRUNED if i % 3 else COMPLETE, 1 + (i % 3 == 0))
        made.intermediate_values = {1: made.params["dropout"], 2: made.params["learning_rate"]}
        if i % 3:
            del made.intermediate_values[2]
        trials.append(made)
    shares = importances(trials)
    assert next(iter(shares)) == "dropout" and shares["dropout"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(trials[:5]) == {}


def sweep(n, space, value, diverges=lambda params: False, seed=0):
    """n complete trials of `space`, ranges and choices drawn at random."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(n):
        params = {}
        for name, d in space.items():
            if isinstance(d, CategoricalDistribution):
                params[name] = d.choices[rng.integers(len(d.choices))]
            elif d.log:
                params[name] = float(np.exp(rng.uniform(np.log(d.low), np.log(d.high))))
            else:
                params[name] = float(rng.uniform(d.low, d.high))
        bad = diverges(params)
        made = create_trial(
            value=math.inf if bad else value(params), params=params, distributions=space,
            user_attrs={"diverged_at": 7} if bad else {},
        )  # fmt: skip
        made.number = number
        trials.append(made)
    return trials


def test_importance_is_over_the_range_that_was_searched():
    space = {name: SPACE[name] for name in ("learning_rate", "dropout")}
    # half of what is drawn, but a hundredth of the range without the logarithm
    trials = sweep(100, space, lambda p: (p["learning_rate"] < 1e-3) + p["dropout"])
    shares = importances(trials)
    assert 0.8 < shares["learning_rate"] < 0.98
    assert shares == importances(trials[::-1])


def test_importance_counts_what_diverged_as_the_worst():
    space = {name: SPACE[name] for name in ("learning_rate", "dropout")}
    for value, share in ((lambda p: 0.5, 0.9), (lambda p: p["dropout"] + 1, 0.3)):
        trials = sweep(60, space, value, lambda p: p["learning_rate"] > 1e-3)
        assert importances(trials)["learning_rate"] > share
    assert importances(sweep(60, space, lambda p: 0.5)) == {}

    for direction in ("minimize", "maximize"):
        study = trial_figures.importance_study(rank_trials(trials, direction), direction)
        finite = [t.value for t, made in zip(study.trials, trials, strict=True)
                  if math.isfinite(made.value)]  # fmt: skip
        worst = {t.value for t, made in zip(study.trials, trials, strict=True)
                 if not math.isfinite(made.value)}  # fmt: skip
        assert len(worst) == 1 and min(finite) < max(finite)
        assert max(worst) > max(finite) if direction == "minimize" else max(worst) < min(finite)


def test_one_bad_value_does_not_squash_the_others():
    def clip(values, direction="minimize", label="val_loss"):
        clipped, label, scale = clip_outliers(dict(enumerate(values)), direction, label)
        return list(clipped.values()), label, scale

    clipped, label, _ = clip([*values(30), 15.0])
    assert clipped[:30] == values(30) and max(values(30)) < clipped[30] < 0.3
    assert label == "val_loss\n(1 clipped)"
    clipped, label, _ = clip([*(1 - v for v in values(30)), 0.1], "maximize", "val_accuracy")
    assert 0.6 < clipped[30] < 0.8 and label == "val_accuracy\n(1 clipped)"
    spread = [0.05, 0.1, 0.3, 1.0, 2.3]
    assert clip(spread) == (spread, "val_loss", "log")
    assert clip([0.5, 0.5, 0.5]) == ([0.5, 0.5, 0.5], "val_loss", "linear")
    (*_, diverged), label, _ = clip([0.5, 0.5, math.inf])
    assert 0.5 < diverged < 1 and label == "val_loss\n(1 clipped)"


def test_choices_stay_distinct_when_their_labels_are_short():
    texts = [f"crop flip affine brightness {last}" for last in ("contrast", "cutout", "noise")]
    space = {"augment": CategoricalDistribution(texts), "dropout": SPACE["dropout"]}
    trials = sweep(40, space, lambda p: texts.index(p["augment"]) + 0.01 * p["dropout"])
    study = trial_figures.importance_study(trials, "minimize")
    assert len({t.params["augment"] for t in study.trials}) == 3
    assert importances(trials)["augment"] > 0.9


def test_the_best_learning_curve_is_named(monkeypatch):
    drawn = []
    monkeypatch.setattr(trial_figures.figures, "draw", lambda plots, *_: drawn.append(plots))
    trials = [trial(i, 1.0 - i / 9) for i in range(3)]
    for i, made in enumerate(trials):
        made.intermediate_values = {1: 2.0, 2: 1.0 - i / 9}
    trial_figures.draw("", trials, "minimize", "val_loss")
    (axes,) = drawn[0]["learning_curves"]().axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["best: trial 2"]
    assert axes.get_legend().get_lines()[0].get_color() == "black"


def test_drawing_leaves_the_backend_as_it_was(tmp_path):
    program = """
        import sys
        import matplotlib
        import optuna
        from dlflax.report.sweep import trial_figures
        space = {"x": optuna.distributions.FloatDistribution(0, 1)}
        make = optuna.trial.create_trial
        trials = [make(params={"x": x}, distributions=space, value=x) for x in (0.1, 0.2, 0.3)]
        for number, trial in enumerate(trials):
            trial.number = number
        assert trial_figures.draw(sys.argv[1], trials, "minimize", "val_loss")
        assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "MPLBACKEND": "svg"})


@pytest.mark.slow
def test_a_thousand_trials_of_ten_hyperparameters(tmp_path):
    import matplotlib

    numbers = {f"number_{k}": FloatDistribution(1e-5, 1, log=k % 2 == 0) for k in range(8)}
    choices = {
        f"choice_{k}": CategoricalDistribution(["a" * 60, r"$\x$", "漢字"]) for k in range(2)
    }
    trials = sweep(1000, numbers | choices, lambda p: p["number_1"], lambda p: p["number_0"] > 0.1)
    from matplotlib import pyplot

    settings, figure = dict(matplotlib.rcParams), pyplot.figure()
    pictures = trial_figures.draw(tmp_path, trials, "minimize", "val_loss")
    assert list(pictures) == ["history", "slice", "parallel_coordinates", "importance"]
    for path in pictures.values():
        with Image.open(path) as picture:
            assert 300 < picture.width < 1500 and picture.height > 300
            assert np.ptp(np.asarray(picture.convert("L"))) > 200
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == [figure.number]
    pyplot.close(figure)


def test_printed_table_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    space = {f"hyperparameter_{k}": FloatDistribution(0, 1) for k in range(10)}
    trials = sweep(12, space, lambda p: p["hyperparameter_0"])
    trials[3].user_attrs["std"] = 0.0123456
    trials[3].value = -1.0
    print_trials(trials, "minimize", "val_loss", limit=3)
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    assert "best of 12 trials (the rest: trials.csv)" in lines[0]
    assert lines[-3].split()[:4] == ["3", "-1.000", "±", "0.012"]
    print_trials([], "minimize", "val_loss")
    assert capsys.readouterr().out == ""


def test_table_has_spread_and_leaves_out_what_is_unfinished(tmp_path):
    space = {"model.features": CategoricalDistribution(["32", "32,64"])}
    made = create_trial(
        value=1 / 3, params={"model.features": "32,64"}, distributions=space,
        user_attrs={"std": 0.1, "values": [0.3, 0.4]}, intermediate_values={1: 1 / 3},
    )  # fmt: skip
    running = create_trial(state=TrialState.RUNNING)
    made.number, running.number = 0, 1
    write_trials_csv(tmp_path / "trials.csv", [running, made], "minimize", "val_loss")
    assert (tmp_path / "trials.csv").read_bytes() == (
        b"number,state,val_loss,std,best_epoch,model.features\n"
        b'0,complete,0.3333333333333333,0.1,1,"32,64"\n'
    )


def test_page(tmp_path):
    trials = SWEEPS["with spread"]
    pictures = trial_figures.draw(tmp_path, trials, "minimize", "val_loss")
    results = {
        "study": "a & <i>", "seconds": 3725.4, "trials_per_minute": None, "best": "?", "odd": [{}],
        "candidates": {"trained": {"test": {"accuracy": 0.98765, "per_class": {"0": 1}}}, "odd": 3},
        "model": "trained", "sampler": "<script>alert()",
        "commands": {"predict": "python -m experiments.predict 'a folder' <PICTURE>"},
    }  # fmt: skip
    html.write_html(tmp_path, results, trials, pictures, "minimize", "val_loss")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags, texts = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

        def handle_data(self, data):
            texts.append(data)

    Reader().feed(page)
    loaded = [
        attrs[name] for _, attrs in tags for name in ("src", "href", "srcset") if name in attrs
    ]
    assert len(loaded) == len(pictures) == 5
    assert all(source.startswith("data:image/png;base64,") for source in loaded)
    assert "url(" not in page and "@import" not in page
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert {"a & <i>", "<script>alert()", "0.9877", "1:02:05"} <= set(texts)
    assert "python -m experiments.predict 'a folder' <PICTURE>" in texts
    assert "trained (the best model); scores on the test split" in texts
    best = rank_trials(trials, "minimize")[0]
    assert f"{best.value:.4f} ± 0.01" in texts
    cells = [attrs["data-v"] for tag, attrs in tags if tag == "td"]
    assert cells[:4] == [str(best.number), "complete", str(best.value), "0.01"]
    assert len(cells) == len(trials) * 8
    html.write_html(tmp_path, {}, [], {}, "minimize", "val_loss")


def of_value(number, value, **more):
    made = trial(number, value, **more)
    made.params = {"learning_rate": 1e-3, "dropout": 0.2, "model.features": "32"}
    return made


def with_defaults(made):
    made.user_attrs["defaults"] = True
    return made


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gain", "trial 1, has val_loss 0.4000; the defaults, trial 0, have 0.5000: 20.0% better"),
        ("no gain", "No trial is better than the defaults, trial 0."),
        ("no defaults", "No trial has the experiment's defaults"),
        ("defaults diverged", "the defaults, trial 0, diverged."),
        ("chance", "standard error over the seeds is 0.14: the gain may be chance."),
        ("certain", "standard error over the seeds is 0.0014."),
    ],
)
def test_findings_state_the_gain_with_its_noise(name, expected):
    std = {"chance": 0.2, "certain": 0.002}.get(name)
    seeds = [{"std": std, "values": [v - std, v, v + std, v]} if std else {} for v in (0.5, 0.4)]
    start = of_value(0, math.inf if "diverged" in name else 0.5, **seeds[0])
    trials = [start if name == "no defaults" else with_defaults(start)]
    trials.append(of_value(1, 0.6 if name == "no gain" else 0.4, **seeds[1]))
    sentence, *_ = findings(trials, "minimize", "val_loss")
    assert expected in sentence
    if not std and name == "gain":
        assert "--num-seeds 3" in sentence


def test_findings_warn_of_ends_small_validation_and_few_trials():
    trials = [with_defaults(of_value(0, 0.5)), *(of_value(i, 0.6) for i in range(1, 9))]
    quiet = findings(trials * 4, "minimize", "val_loss", 6000)
    assert len(quiet) == 1
    best = of_value(9, 0.1)
    best.params |= {"learning_rate": 0.099, "dropout": 0.0}
    _, end, small, few = findings([*trials, best], "minimize", "val_loss", 144)
    assert "best learning_rate is at the high end of its range, 0.1" in end
    assert "--space.learning-rate" in end and "144 examples" in small
    assert "10 complete trials for 3 hyperparameters" in few
    assert findings([], "minimize", "val_loss") == []
    assert findings([trial(0, math.inf, diverged_at=3)], "minimize", "val_loss") == []
    _, *more = findings([of_value(i, 0.9) for i in range(40)] + [best], "maximize", "val_accuracy")
    assert more == []
