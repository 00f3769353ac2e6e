"""A population against its trials trained alone; traces counted; a diverged trial among others."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dlflax import train
from dlflax.models import CNN, MLP
from dlflax.train import Hparams, Recipe, population
from dlflax.train.layout import Layout, layout_for
from dlflax.train.population import Population

MLP_RECIPE = Recipe(model=MLP(features=(16,)), batch_size=64)
HPARAMS = [
    Hparams(learning_rate=rate, dropout=dropout, l2=l2)
    for rate, dropout, l2 in [
        (1e-3, 0.0, 0.0),
        (3e-3, 0.2, 1e-4),
        (1e-2, 0.5, 0.0),
        (2e-3, 0.1, 1e-3),
    ]
]
SEEDS = np.arange(4, dtype=np.uint32)[:, None]


@pytest.fixture(scope="module")
def digits():
    images, targets = load_digits(return_X_y=True)
    images = np.uint8(images.reshape(-1, 8, 8, 1) * 15)
    parts = slice(0, 500), slice(500, 700)
    return [{"inputs": images[p], "targets": np.int32(targets[p])} for p in parts]


def trained(recipe, hparams, seeds, digits, layout, epochs=3, **options):
    trials = Population(recipe, hparams, seeds, *digits, epochs=epochs, layout=layout, **options)
    trials.train(epochs)
    return trials


def losses(trials):
    return np.array([[[r["val_loss"] for r in h] for h in row] for row in trials.histories])


@pytest.mark.parametrize(
    ("recipe", "layouts"),
    [
        (MLP_RECIPE, [Layout("vmap", 2, 4), Layout("map", 1, 4)]),
        pytest.param(
            Recipe(
                model=CNN(features=(4,), dense=(8,)),
                schedule=train.Cosine(),
                batch_size=48,
                ema=True,
            ),
            [Layout("vmap", 2, 4)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_lane_is_the_trial_trained_alone(digits, recipe, layouts):
    alone = [
        train.fit(recipe, hparams, *digits, epochs=3, seed=int(seed), plateau_patience=1).history
        for hparams, (seed,) in zip(HPARAMS, SEEDS, strict=True)
    ]
    for layout in layouts:
        trials = trained(recipe, HPARAMS, SEEDS, digits, layout, plateau_patience=1)
        for (history,), expected in zip(trials.histories, alone, strict=True):
            for row, other in zip(history, expected, strict=True):
                # of 500 examples one or two may be a tie but for the last bit
                near = {name: 1e-5 if "loss" in name else 0.01 for name in row}
                expected_row = {
                    name: pytest.approx(other[name], rel=1e-4, abs=near[name]) for name in row
                }
                assert row == expected_row
                left_out = set(other) - set(row)
                assert left_out == {"learning_rate", "seconds", "examples_per_second"}


@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_a_diverged_trial_does_not_disturb_its_neighbours(digits, mode):
    layout = Layout(mode, 2, 4)
    bad = HPARAMS[1].replace(learning_rate=1e30)
    with_nan = trained(MLP_RECIPE, [HPARAMS[0], bad, *HPARAMS[2:]], SEEDS, digits, layout)
    without = trained(MLP_RECIPE, HPARAMS, SEEDS, digits, layout)
    assert without.divergence_steps == {} and set(with_nan.divergence_steps) == {1}
    assert 1 <= with_nan.divergence_steps[1] <= 16
    for i in (0, 2, 3):
        assert with_nan.histories[i] == without.histories[i]  # to the bit
    assert with_nan.scores("loss")[1] == np.inf and with_nan.scores("accuracy")[1] == -np.inf
    assert np.isfinite(with_nan.scores("loss")[[0, 2, 3]]).all()
    assert len(with_nan.histories[1][0]) == 1  # nothing is spent on it afterwards


def test_one_trace_for_all_numbers_seeds_and_epochs(digits):
    population.train_epoch.clear_cache()
    before = population.traces
    layout = Layout("map", 2, 4)
    for scale in (1, 2):
        hparams = [h.replace(learning_rate=h.learning_rate * scale, l2=0.1) for h in HPARAMS]
        trained(MLP_RECIPE, hparams, SEEDS + scale, digits, layout)
        trained(MLP_RECIPE, hparams[:3], SEEDS[:3], digits, layout)  # not full
    assert population.traces == before + 1


@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_survivors_continue_in_another_population(digits, mode):
    """A narrower one, as if none had left; a copy of a trial has a history of its own."""
    layout = Layout(mode, 2, 8)
    seeds = np.array([[1, 2], [3, 4], [5, 6], [7, 8]])
    whole = trained(MLP_RECIPE, HPARAMS, seeds, digits, layout, epochs=4, keep_best=True)
    halved = Population(
        MLP_RECIPE, HPARAMS, seeds, *digits, epochs=4, layout=layout, keep_best=True
    )
    halved.train(2)
    records, states = halved.records(), halved.states([0, 3])
    chosen, narrow = [0, 3, 3], Layout(mode, 2, 6)
    rest = Population(
        MLP_RECIPE, [HPARAMS[i] for i in chosen], seeds[chosen], *digits, epochs=4, layout=narrow,
        keep_best=True,
    )  # fmt: skip
    rest.resume([records[i] for i in chosen], {k: states[i] for k, i in enumerate(chosen)})
    rest.train(4)
    for k, i in enumerate(chosen):
        assert [[row["epoch"] for row in h] for h in rest.histories[k]] == [[1, 2, 3, 4]] * 2
        expected = [[r["val_loss"] for r in h] for h in whole.histories[i]]
        found = [[r["val_loss"] for r in h] for h in rest.histories[k]]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert [len(row[0]) for row in halved.histories] == [2] * 4, "theirs are not shared"
    (outputs, expected) = rest.best(50), whole.best(50)
    for k, i in enumerate(chosen):
        np.testing.assert_allclose(outputs[k, 1][1], expected[i, 1][1], rtol=1e-3, atol=1e-3)
    fresh = Population(MLP_RECIPE, HPARAMS[:2], seeds[:2], *digits, epochs=4, layout=narrow)
    fresh.resume([None, None], {})
    fresh.train(1)
    assert fresh.histories[0][0][0] == pytest.approx(whole.histories[0][0][0], rel=1e-4)


def test_the_rule_for_the_layout(digits):
    inputs = digits[0]["inputs"][:1]
    assert layout_for(MLP_RECIPE, Hparams(), inputs, 5) == Layout("vmap", 2, 6)
    large = Recipe(model=MLP(features=(512,)))
    assert layout_for(large, Hparams(), inputs, 1) == Layout("map", 1, 1)
    assert layout_for(large, Hparams(), inputs, 4, "vmap") == Layout("vmap", 2, 4)
