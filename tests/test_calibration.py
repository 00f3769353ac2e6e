"""What is fitted on validation outputs, beside SciPy's and a search over all thresholds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from sklearn.metrics import f1_score

from dlflax import run
from dlflax.config.run_folder import load_calibration
from dlflax.data import Images
from dlflax.errors import InputError
from dlflax.models import MLP, calibration
from dlflax.train import Recipe, losses
from dlflax.train.hparams import Hparams
from dlflax.train.tasks import Classification
from experiments import mnist


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_temperature(scale):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 500)
    logits = np.float32(scale * (2 * np.eye(4)[truth] + rng.normal(size=(500, 4))))

    def loss(log_t):
        log_p = scipy.special.log_softmax(logits * np.exp(-log_t), 1)
        return -log_p[np.arange(500), truth].mean()

    def posterior(log_t):
        return loss(log_t) - scipy.stats.norm(0, 0.5).logpdf(log_t) / 500

    expected = scipy.optimize.minimize_scalar(posterior, bounds=(-3, 3), method="bounded")
    found, lowest = calibration.temperature(
        losses.CrossEntropy(), Hparams(), logits, {"targets": np.int32(truth)}
    )
    assert found == pytest.approx(np.exp(expected.x), rel=2e-3)
    assert lowest == pytest.approx(loss(np.log(found)), rel=1e-5)


def test_few_examples_without_an_error_are_no_certainty():
    """The likeliest temperature is 0 without a prior: the first error costs its whole margin."""
    truth = np.arange(60) % 3
    logits = np.float32(4 * np.eye(3)[truth])
    fitted, _ = calibration.temperature(
        losses.CrossEntropy(), Hparams(), logits, {"targets": np.int32(truth)}
    )
    assert 0.5 < fitted < 1


def test_thresholds():
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 4)) < [0.5, 0.1, 0.3, 0.005]).astype(int)
    logits = 2 * truth + rng.normal(size=truth.shape) - 3
    found = calibration.thresholds(truth, logits)
    assert found[3] == 0  # too few to say
    for label in range(3):
        best = max(f1_score(truth[:, label], logits[:, label] >= t) for t in logits[:, label])
        assert f1_score(truth[:, label], logits[:, label] > found[label]) == pytest.approx(best)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"thresholds": "x"}',
        '{"a": {"b": 1}}',
        '{"a": [""]}',
        '{"temperature": [1]}',
        '{"coverage": NaN}',
    ],
)
def test_damaged_files(tmp_path, text):
    assert load_calibration(tmp_path) == {}
    Path(tmp_path, "calibration.json").write_text(text)
    with pytest.raises(InputError, match="calibration.json is damaged"):
        load_calibration(tmp_path)
    Path(tmp_path, "calibration.json").write_text(json.dumps({"a": 1, "b": [1, 2.5]}))
    assert load_calibration(tmp_path) == {"a": 1, "b": [1, 2.5]}


@pytest.mark.parametrize("wrong", [0.0, -1.0, 1e300])
def test_temperatures_that_are_none(wrong):
    with pytest.raises(InputError, match="calibration.json is damaged"):
        Classification().predictions(np.zeros((0, 2)), {}, {}, {"temperature": wrong})


def test_a_calibration_that_fails_stops_nothing(place, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such numbers")

    monkeypatch.setattr(Classification, "calibrate", fails)
    config = dataclasses.replace(
        mnist.PRESETS["default"], recipe=Recipe(MLP((32,))), data=Images("digits"), epochs=1,
        run_dir=Path("run"), baseline="none",
    )  # fmt: skip
    said = []
    results = run.run("digits", config, said.append)
    assert "calibrate failed (RuntimeError: no such numbers)" in " ".join(said)
    assert results["calibration"]["temperature"] == 1 and load_calibration(Path("run")) == {}
