"""When trials are enough: the gain in the values' own unit, and what stops and does not."""

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

import experiments
from dlflax.tune import sweep_command
from dlflax.tune.suggest import gaussian_process, stopping
from dlflax.tune.suggest.encoding import Encoding, sobol

SPACE = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
ENCODING = Encoding(SPACE)


def bowl(count, noise=0.0, scale=1.0, shift=0.0, near=0):
    """Points all over the space and some near the least value, at (0.3, 0.3)."""
    rng = np.random.default_rng(0)
    points = [sobol(ENCODING, 0, index) for index in range(count)]
    points += [{"a": 0.3 + x, "b": 0.3 + y} for x, y in 0.02 * rng.standard_normal((near, 2))]
    values = [1 + (p["a"] - 0.3) ** 2 + (p["b"] - 0.3) ** 2 for p in points]
    values = shift + scale * (np.array(values) + noise * rng.standard_normal(len(values)))
    return list(zip(points, values, strict=True))


def trials(pairs, **attrs):
    return [
        create_trial(params=p, distributions=SPACE, value=float(v), user_attrs=attrs)
        for p, v in pairs
    ]


def test_the_gain_has_the_unit_of_the_values():
    gain, noise = gaussian_process.expected_gain(ENCODING, bowl(24, 0.02), 0)
    for scale, shift in ((10.0, 0.0), (0.01, 5.0)):
        other = gaussian_process.expected_gain(ENCODING, bowl(24, 0.02, scale, shift), 0)
        assert other == pytest.approx((scale * gain, scale * noise), rel=0.05)
    # of the right size: the deviation of the noise, and no more than all there is to gain
    assert 0.005 < noise < 0.06 and 0 < gain < 0.2


def test_the_gain_shrinks_when_the_least_value_is_found():
    early, _ = gaussian_process.expected_gain(ENCODING, bowl(12), 0)
    late, _ = gaussian_process.expected_gain(ENCODING, bowl(32, near=16), 0)
    assert late < early / 10


def enough(pairs, direction="minimize", min_improvement=0.01, **attrs):
    return stopping.reason_to_stop(ENCODING, direction, 0, min_improvement, trials(pairs, **attrs))


def test_what_is_enough():
    found = enough(bowl(32, near=16))
    assert found.startswith("enough after 48 trials: the next one is expected to gain ")
    assert "less than 1.00% of the best" in found
    assert enough([(p, -v) for p, v in bowl(32, near=16)], "maximize")
    assert enough(bowl(10)) is None, "too few to know"
    assert enough(bowl(32, near=16), min_improvement=0.0, std=1e-9, values=[1.0, 1.0]) is None
    noisy = enough(bowl(20), min_improvement=0.0, std=5.0, values=[1.0, 1.0])
    assert "less than the noise between seeds, 3.536" in noisy


def test_values_that_tell_nothing():
    assert enough([(p, np.inf) for p, _ in bowl(32)]) is None
    assert enough([(p, 1.0) for p, _ in bowl(32)]), "all the same"
    some = [(p, np.inf if i % 2 else v) for i, (p, v) in enumerate(bowl(48, near=16))]
    assert enough(some)


@pytest.mark.usefixtures("place")
@pytest.mark.slow
def test_a_sweep_stops_by_itself_and_goes_on_the_same_way(capsys, monkeypatch):
    monkeypatch.setattr(stopping, "LEAST", 4)
    flags = ["--model", "mlp", "--model.features", "32", "--epochs", "1"]
    flags += ["--trials", "auto", "--min-improvement", "0.9", "--population-size", "4"]
    flags += ["--ensemble-size", "0"]
    for _ in range(2):
        sweep_command.main("bayes_opt", experiments, ("gp", "tpe", "cmaes"), ["mnist", *flags], "")
        out = capsys.readouterr().out
        assert "enough after 4 trials: the next one is expected to gain" in out
        assert "best of 4 trials" in out


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--min-improvement", "0.1"], "--min-improvement is for --trials auto"),
        (["--trials", "auto", "--min-improvement", "1"], "--min-improvement 1 must be from 0"),
        (["--trials", "auto", "--search", "freeze-thaw"], "--trials auto is for complete trials"),
        (["--trials", "auto", "--search", "halving"], "--trials auto is for complete trials"),
        (["--trials", "many"], "auto"),
    ],
)
def test_what_makes_no_sense(flags, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        sweep_command.main("bayes_opt", experiments, ("gp", "tpe", "cmaes"), ["mnist", *flags], "")
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err
