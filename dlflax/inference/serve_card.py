"""Model card and OpenAPI description of a served model."""

import contextlib
import re
from typing import Any

import dlflax
from dlflax.files import read_json
from dlflax.inference.predict import Predictor
from dlflax.inference.serve_inputs import most_inputs
from dlflax.transfer.weights import PUBLISHED

FIGURE = re.compile(r"[a-z0-9_]+\.png")  # file names of a run's figures


def figures(folder) -> list[str]:
    """Returns file names of a run's figures, without symbolic links, the confusion matrix first."""
    files = (path for path in folder.glob("*.png") if path.is_file() and not path.is_symlink())
    names = (path.name for path in files if FIGURE.fullmatch(path.name))
    return sorted(names, key=lambda name: (name != "confusion_matrix.png", name))


def card(predictor: Predictor) -> dict[str, Any]:
    """Returns the model card (Mitchell et al. 2019) as JSON values: model, data, scores and
    baselines; and the form of inputs for the page."""
    info, recipe = predictor.data, predictor.config.recipe
    results = {}
    with contextlib.suppress(OSError, ValueError):  # an unfinished run has none
        results = read_json(predictor.folder / "results.json", follow=False)
    baselines, notes = _get(results, "baselines"), _get(_get(results, "data"), "notes", list)
    weights = [w for w in PUBLISHED if w.sha256 == info["weights_sha256"]]
    encoder, form = predictor.encoder, predictor.encoder.form
    return {
        "experiment": predictor.experiment, "run": predictor.folder.name,
        "model": type(recipe.model).__name__, "task": type(recipe.task).__name__,
        "parameters": _get(results, "parameters", int) or None,
        "takes": form.key, "widget": form.widget, "media": list(form.media),
        "base64": form.schema.get("contentEncoding") == "base64",
        "input_shape": list(predictor.example()["inputs"].shape[1:]),
        "classes": list(encoder.target.classes),
        "outlook": dict(encoder.outlook()),
        "scale": list(encoder.target.spread),
        "data": {
            "name": info["name"], "train": info["train"], "validation": info["validation"],
            "test": info["test"], "notes": [note for note in notes if isinstance(note, str)],
        },
        "test": _scalars(_get(results, "test")),
        "baselines": {name: _scalars(_get(baselines, name)) for name in baselines},
        "weights": [{"name": w.name, "licence": w.licence, "data": w.data} for w in weights],
        "figures": figures(predictor.folder),
    }  # fmt: skip


def _get(values, name: str, cls: type = dict):
    """Returns values[name], or cls() if a damaged file has no such value of that type."""
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, cls) else cls()


def _scalars(scores) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, int | float)}


def openapi(predictor: Predictor) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 description."""
    form, most = predictor.encoder.form, most_inputs(predictor.encoder)
    key, item = form.key, dict(form.schema)
    body = {
        "type": "object", "required": [key], "additionalProperties": False,
        "properties": {key: {"type": "array", "items": item, "maxItems": most}},
    }  # fmt: skip
    content: dict[str, Any] = {"application/json": {"schema": body}}
    content |= {media: {"schema": {"type": "string"}} for media in form.media}
    error = {
        "description": "The error, in one sentence.",
        "content": {"application/json": {"schema": {
            "type": "object", "properties": {"error": {"type": "string"}},
        }}},
    }  # fmt: skip

    def operation(summary, answer, has_body=True):
        responses = {"200": {"description": answer, "content": {"application/json": {}}}}
        statuses = (400, 403, 408, 413, 415, 421, 422, 429, 503) if has_body else (421,)
        errors = {str(status): error for status in statuses}
        request = {"requestBody": {"required": True, "content": content}} if has_body else {}
        return {"summary": summary, **request, "responses": {**responses, **errors}}

    name = type(predictor.config.recipe.model).__name__
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{predictor.experiment}: {name}", "version": dlflax.__version__},
        "paths": {
            "/predict": {"post": operation("Predictions", "One answer for each input, in order.")},
            "/look": {"post": operation("Prediction and heatmap of an image",
                                        "The answer, and PNG files as data URIs.")},
            "/card": {"get": operation("Model card", "Model, data and scores.", False)},
            "/health": {"get": operation("Health check", "ok", False)},
        },
    }  # fmt: skip
