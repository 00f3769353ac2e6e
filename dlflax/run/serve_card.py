"""What a served model says of itself: its card, and the description of its interface."""

import contextlib
import re
from typing import Any

import dlflax
from dlflax.files import read_json
from dlflax.run.predict import Predictor
from dlflax.run.serve_inputs import most_inputs
from dlflax.transfer.weights import PUBLISHED

PICTURE = re.compile(r"[a-z0-9_]+\.png")  # that a run draws


def pictures(folder) -> list[str]:
    """Names of the pictures in a run's folder, the confusion matrix first. None of them is a link,
    which may lead to any file."""
    files = (path for path in folder.glob("*.png") if path.is_file() and not path.is_symlink())
    names = sorted(path.name for path in files if PICTURE.fullmatch(path.name))
    return sorted(names, key=lambda name: name != "confusion_matrix.png")


def card(predictor: Predictor) -> dict[str, Any]:
    """The model card (Mitchell et al. 2019) as JSON values: what it is, what it was trained on, how
    well it does, beside simple models; and what a page needs to ask it."""
    info, recipe = predictor.data, predictor.config.recipe
    results = {}
    with contextlib.suppress(OSError, ValueError):  # a run that is not finished has none
        results = read_json(predictor.folder / "results.json", follow=False)
    baselines, notes = _part(results, "baselines"), _part(_part(results, "data"), "notes", list)
    weights = [w for w in PUBLISHED if w.sha256 == info["weights_sha256"]]
    encoder, form = predictor.encoder, predictor.encoder.form
    return {
        "experiment": predictor.experiment, "run": predictor.folder.name,
        "model": type(recipe.model).__name__, "task": type(recipe.task).__name__,
        "parameters": _part(results, "parameters", int) or None,
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
        "test": _plain(_part(results, "test")),
        "baselines": {name: _plain(_part(baselines, name)) for name in baselines},
        "weights": [{"name": w.name, "licence": w.licence, "data": w.data} for w in weights],
        "pictures": pictures(predictor.folder),
    }  # fmt: skip


def _part(values, name: str, kind: type = dict):
    """values[name]; an empty one where a file that others may have written has none of its kind."""
    part = values.get(name) if isinstance(values, dict) else None
    return part if isinstance(part, kind) else kind()


def _plain(scores) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, int | float)}


def openapi(predictor: Predictor) -> dict[str, Any]:
    """The interface as OpenAPI 3.1."""
    form, most = predictor.encoder.form, most_inputs(predictor.encoder)
    key, item = form.key, dict(form.schema)
    body = {
        "type": "object", "required": [key], "additionalProperties": False,
        "properties": {key: {"type": "array", "items": item, "maxItems": most}},
    }  # fmt: skip
    content: dict[str, Any] = {"application/json": {"schema": body}}
    content |= {media: {"schema": {"type": "string"}} for media in form.media}
    error = {
        "description": "What was wrong, in one sentence.",
        "content": {"application/json": {"schema": {
            "type": "object", "properties": {"error": {"type": "string"}},
        }}},
    }  # fmt: skip

    def operation(summary, answer, asks=True):
        responses = {"200": {"description": answer, "content": {"application/json": {}}}}
        statuses = (400, 403, 408, 413, 415, 421, 422, 429, 503) if asks else (421,)
        refused = {str(status): error for status in statuses}
        asked = {"requestBody": {"required": True, "content": content}} if asks else {}
        return {"summary": summary, **asked, "responses": {**responses, **refused}}

    name = type(predictor.config.recipe.model).__name__
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{predictor.experiment}: {name}", "version": dlflax.__version__},
        "paths": {
            "/predict": {"post": operation("Answers for inputs", "An answer for each, in order.")},
            "/look": {"post": operation("Where in a picture the model looked",
                                        "The answer, and PNG files as data URIs.")},
            "/card": {"get": operation("The model card", "What it is and does.", False)},
            "/health": {"get": operation("Whether it answers", "ok", False)},
        },
    }  # fmt: skip
