"""What a served model says of itself: its card, and the description of its interface."""

import re
from typing import Any

import dlflax
from dlflax.files import read_json
from dlflax.run.predict import Predictor
from dlflax.run.serve_inputs import KEYS, MOST_INPUTS
from dlflax.transfer.weights import PUBLISHED

PICTURE = re.compile(r"[a-z0-9_]+\.png")  # that a run draws


def pictures(folder) -> list[str]:
    """Names of the pictures in a run's folder, the confusion matrix first."""
    found = sorted(path.name for path in folder.glob("*.png") if PICTURE.fullmatch(path.name))
    return sorted(found, key=lambda name: name != "confusion_matrix.png")


def card(predictor: Predictor) -> dict[str, Any]:
    """The model card (Mitchell et al. 2019) as JSON values: what it is, what it was trained on, how
    well it does, beside simple models; and what a page needs to ask it."""
    info, recipe = predictor.data, predictor.config.recipe
    try:
        results = read_json(predictor.folder / "results.json")
    except (OSError, ValueError):  # of a run that is not finished
        results = {}
    weights = [w for w in PUBLISHED if w.sha256 == info.get("weights_sha256")]
    columns = [
        {name: column.get(name) for name in ("name", "kind", "median", "levels")}
        for column in info.get("columns", ())
    ]
    return {
        "experiment": predictor.experiment, "run": predictor.folder.name,
        "model": type(recipe.model).__name__, "task": type(recipe.task).__name__,
        "parameters": results.get("parameters"),
        "takes": KEYS[predictor.kind], "kind": predictor.kind,
        "draw": bool(info.get("light_on_dark")),
        "input_shape": info["input_shape"], "columns": columns, "classes": info["class_names"],
        "series": info.get("last_window", [])[-104:],
        "data": {
            "name": info["name"], "train": info["train"], "validation": info["validation"],
            "test": info["test"], "notes": results.get("data", {}).get("notes", []),
        },
        "test": _plain(results.get("test", {})),
        "baselines": {n: _plain(each) for n, each in results.get("baselines", {}).items()},
        "findings": results.get("findings", []),
        "weights": [{"name": w.name, "licence": w.licence, "data": w.data} for w in weights],
        "pictures": pictures(predictor.folder),
    }  # fmt: skip


def _plain(scores) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, int | float)}


def openapi(predictor: Predictor) -> dict[str, Any]:
    """The interface as OpenAPI 3.1."""
    key = KEYS[predictor.kind]
    item: dict[str, Any] = {
        "pictures": {"type": "string", "contentEncoding": "base64"},
        "texts": {"type": "string"},
        "rows": {"type": "object"},
        "inputs": {"type": "array"},
    }[key]
    body = {
        "type": "object", "required": [key], "additionalProperties": False,
        "properties": {key: {"type": "array", "items": item, "maxItems": MOST_INPUTS}},
    }  # fmt: skip
    content: dict[str, Any] = {"application/json": {"schema": body}}
    whole = {"picture": "image/*", "text": "text/plain", "table": "text/csv", "series": "text/csv"}
    if predictor.kind in whole:
        content[whole[predictor.kind]] = {"schema": {"type": "string"}}
    error = {
        "description": "What was wrong, in one sentence.",
        "content": {"application/json": {"schema": {
            "type": "object", "properties": {"error": {"type": "string"}},
        }}},
    }  # fmt: skip

    def operation(summary, answer, asks=True):
        responses = {"200": {"description": answer, "content": {"application/json": {}}}}
        refused = {str(n): error for n in (400, 408, 413, 415, 422, 429)} if asks else {}
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
