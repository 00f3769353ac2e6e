"""Model card and OpenAPI description of a served model."""

import contextlib
import re
from typing import Any

import dlflax
from dlflax.files import read_json
from dlflax.inference.predict import Predictor
from dlflax.inference.serve_inputs import most_inputs, takes_base64
from dlflax.transfer.weights import PUBLISHED

TEXT = {"type": "string"}
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
        "base64": takes_base64(form),
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
    encoder, form = predictor.encoder, predictor.encoder.form
    most, least = most_inputs(encoder), 0 if form.together else 1
    inputs = {"type": "array", "items": _item(encoder), "minItems": least, "maxItems": most}
    file = {"type": "string", **({"format": "binary"} if takes_base64(form) else {})}
    content = _json("", **{form.key: inputs})["content"]
    content["application/json"]["schema"]["additionalProperties"] = False
    content |= {media: {"schema": file} for media in form.media}

    def operation(method, summary, **answer):
        error, statuses, request = _json("The error, in one sentence.", error=TEXT), (421,), {}
        if method == "post":
            statuses = (400, 403, 408, 413, 415, 421, 422, 429, 500, 503)
            request = {"requestBody": {"required": True, "content": content}}
        responses = {"200": _json(summary, **answer), **{str(s): error for s in statuses}}
        return {method: {"summary": summary, **request, "responses": responses}}

    answer, summary = {"type": "object"}, "Predictions, one for each input, in order"
    paths = {
        "/predict": operation("post", summary, answers={"type": "array", "items": answer}),
        "/card": operation("get", "Model card: model, data and scores"),
        "/health": operation("get", "Health check", status=TEXT),
    }
    if encoder.image(predictor.example()["inputs"], 0) is not None:
        summary, looked = "Prediction and heatmap of an image", {"type": ["string", "null"]}
        paths["/look"] = operation("post", summary, answer=answer, seen=TEXT, looked=looked)
    title = f"{predictor.experiment}: {type(predictor.config.recipe.model).__name__}"
    info = {"title": title, "version": dlflax.__version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _json(description: str, **properties) -> dict[str, Any]:
    """Returns the OpenAPI description of JSON with these keys; with any keys if there are none."""
    schema = {"type": "object", "required": [*properties], "properties": properties}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _item(encoder) -> dict[str, Any]:
    """Returns the schema of one input; of a row with the columns of the table."""
    item, columns = dict(encoder.form.schema), encoder.outlook().get("columns", ())
    row = {c["name"]: c.get("median", (c.get("levels") or [""])[0]) for c in columns}
    if item.get("type") == "object":
        item["additionalProperties"] = {"type": ["number", "string", "boolean", "null"]}
    return item | ({"required": [*row], "examples": [row]} if row else {})
