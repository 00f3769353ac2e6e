"""What the test outputs of a run say beyond the loss: more scores, pictures and tables.

One function a kind of task. All take what `run.run` has at its end and return (scores, figures,
tables): scores go into results.json, figures are name -> Figure, tables name -> rows, which become
CSV files.
"""

import functools

import jax
import numpy as np
from jax import lax

from dlflax import explain, figures, metrics, train
from dlflax.data import series


def classification(recipe, hparams, state, dataset, splits, sums, outputs):
    """Precision, recall and F1 per class, and the area under the ROC curve of two classes; the
    confusion matrix, the most confident mistakes, and where in a photograph the model looked."""
    del hparams
    class_names, test = dataset.class_names, splits.test
    inputs, targets = test["inputs"], test["targets"]
    table = metrics.per_class(sums["confusion"])
    scores = {
        "macro_precision": float(table["precision"].mean()),
        "macro_recall": float(table["recall"].mean()),
    }
    # the logits, not the probabilities, of which many are 1 to the last bit
    auc = metrics.roc_auc(targets, outputs[:, 1] - outputs[:, 0]) if len(class_names) == 2 else None
    scores |= {} if auc is None else {"roc_auc": auc}
    scores["per_class"] = {
        name: {key: column[i].item() for key, column in table.items()}
        for i, name in enumerate(class_names)
    }
    probabilities, predicted = np.asarray(jax.nn.softmax(outputs)), outputs.argmax(-1)
    confidence = probabilities.max(-1)
    wrong = np.flatnonzero(predicted != targets)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    pictures = {"confusion_matrix": figures.confusion_matrix(sums["confusion"], class_names)}
    if inputs.ndim == 4:
        pictures["wrong_predictions"] = figures.wrong_predictions(
            inputs, targets, predicted, confidence, class_names
        )
    if inputs.ndim == 4 and min(inputs.shape[1:3]) >= 32 and inputs.shape[3] == 3:
        right = np.flatnonzero(predicted == targets)
        # from all over the test examples, which may be in the order of their classes
        right = right[len(right) * np.arange(4) // 4] if len(right) > 4 else right
        shown = np.concatenate([wrong[:4], right])
        images, variables = inputs[shown], {"params": train.averaged(recipe, state)}
        maps = explain.grad_cam(
            recipe.model, {**variables, **state.collections}, train.floats(images)
        )
        if maps is not None:
            pictures["grad_cam"] = figures.heatmaps(
                images, maps, targets[shown], predicted[shown], confidence[shown], class_names
            )
    if "files" in dataset.test:
        key, names = "file", dataset.test["files"]
    elif inputs.ndim == 4:
        return {"test": scores}, pictures, {}
    else:
        key, names = "text", dataset.test["inputs"]
    rows = [
        {
            key: names[i],
            "true": class_names[targets[i]],
            "said": class_names[predicted[i]],
            "probability": round(float(confidence[i]), 4),
        }
        for i in wrong
    ]
    return {"test": scores}, pictures, {"wrong_predictions": rows}


def regression(recipe, hparams, state, dataset, splits, sums, outputs):
    """Forecasts against the naive and the seasonal-naive one, in the series' own unit."""
    del recipe, hparams, state, sums
    test, scale, period = splits.test, splits.info["scale"], splits.info["period"]
    horizon = outputs.shape[1]
    forecasts = {
        "model": outputs,
        "naive": series.naive(test["inputs"], horizon),
        "seasonal_naive": series.seasonal_naive(test["inputs"], horizon, period),
    }
    errors = {name: scale * (each - test["targets"]) for name, each in forecasts.items()}
    scores = {
        name: {"rmse": float(np.sqrt(np.mean(e**2))), "mae": float(np.mean(np.abs(e)))}
        for name, e in errors.items()
    }
    truth = dataset.test["inputs"]
    last = np.concatenate([dataset.train["inputs"][-1:], truth])
    starts = range(0, len(outputs), horizon)
    pieces = {
        name: [(start, last[start] + scale * forecasts[name][start]) for start in starts]
        for name in ("model", "seasonal_naive")
    }
    by_step = {name: np.sqrt(np.mean(e**2, 0)) for name, e in errors.items()}
    by_step = {name: by_step[name] for name in ("model", "seasonal_naive", "naive")}
    return {"forecasts": scores}, {"forecast": figures.forecast(truth, pieces, by_step)}, {}


def reconstruction(recipe, hparams, state, dataset, splits, sums, outputs):
    """How well a linear classifier does on the codes; reconstructions, samples, latent space."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    del sums
    codes, test_codes = (encode(recipe, state, part) for part in (splits.train, splits.test))
    targets = splits.test["targets"]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(codes, splits.train["targets"])
    accuracy = float(probe.score(test_codes, targets))

    shown = {name: splits.test[name][:12] for name in ("inputs", "targets")}
    batch = {**shown, "mask": np.ones(len(shown["targets"]), np.float32)}
    seen = jax.jit(train.augmented, static_argnums=0)(recipe, hparams, batch, jax.random.key(0))
    noisy = np.asarray(seen["inputs"]) if "noise" in recipe.augment else None
    if noisy is None:
        inputs, rebuilt = shown["inputs"] / 255.0, outputs[:12]
    else:
        inputs = np.asarray(seen["targets"])
        rebuilt = np.asarray(train.evaluate(recipe, state, {**shown, "inputs": noisy})[1])
    if recipe.model.variational:
        drawn = np.random.default_rng(0).normal(size=(50, codes.shape[1]))
    else:  # a plain autoencoder knows no distribution of codes: the normal one that fits them
        spread = np.atleast_2d(np.cov(codes.T))
        drawn = np.random.default_rng(0).multivariate_normal(codes.mean(0), spread, 50)
    samples = recipe.model.apply(
        {"params": train.averaged(recipe, state)}, np.float32(drawn), method="decode"
    )
    points, axes = _plane(test_codes[:5000])
    pictures = {
        "reconstructions": figures.reconstructions(inputs, rebuilt, noisy),
        "samples": figures.samples(np.asarray(samples)),
        "latent": figures.latent(points, targets[:5000], dataset.class_names, axes),
    }
    return {"test": {"linear_probe_accuracy": accuracy}}, pictures, {}


def encode(recipe, state, part) -> np.ndarray:
    """The codes of all inputs, float32 (n, code)."""
    return np.asarray(_encode(recipe, train.averaged(recipe, state), part["inputs"]))


@functools.partial(jax.jit, static_argnums=0)
def _encode(recipe, params, inputs):
    def one(x):
        return recipe.model.apply({"params": params}, train.floats(x[None]), method="encode")[0]

    return lax.map(one, inputs, batch_size=256)


def _plane(codes):
    """(codes as points (n, 2), what the axes are)."""
    if codes.shape[1] == 2:
        return codes, "the two numbers of the code"
    if codes.shape[1] == 1:
        return np.column_stack([codes, np.zeros(len(codes))]), "the number of the code"
    centred = codes - codes.mean(0)
    *_, axes = np.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T, f"the first two principal components of {codes.shape[1]}"


OF_LOSS = {
    "cross_entropy": classification,
    "mean_squared_error": regression,
    "reconstruction": reconstruction,
}
