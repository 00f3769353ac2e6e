"""A trained model as a file that runs without this package: ONNX, or StableHLO by `jax.export`.

What it is given is what a user has (bytes of a picture, numbers of tokens, a row, a window of a
series in its own unit), and what it gives are the task's predictions (probabilities, numbers in
their unit): what is done before and after the network is in the file.

jax.export, jax2onnx and onnxruntime are imported where they are used.
"""

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import dlflax
from dlflax import train
from dlflax.data import Spec
from dlflax.errors import InputError, RunError
from dlflax.files import replacing, write_json
from dlflax.models.platform import portable
from dlflax.models.protocols import Encoding, ReadingTokens
from dlflax.run.predict import Predictor
from dlflax.transfer.weights import PUBLISHED

Format = Literal["onnx", "stablehlo"]
TOLERANCE = 1e-4  # more than that between the file and the model is an error
BATCHES = (1, 7, 64)  # sizes that a file is tried with
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # that a StableHLO file runs on


def export(
    run: Path | Predictor, to: Format = "onnx", file: Path | None = None,
    log: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Writes the model of a run folder, or of a sweep's, and returns the file's path (default:
    model.onnx or model.stablehlo in the folder). What it takes and gives is in FILE.json, and in
    an ONNX file's metadata. The file is tried against the model on test examples first: RunError,
    and no file, for a difference above TOLERANCE (of probabilities; of numbers, a share of the
    largest one). InputError for a folder that cannot be used, or a model that cannot be exported.
    """
    predictor = run if isinstance(run, Predictor) else Predictor(run, log=log)
    file = Path(file or predictor.folder / f"model.{to}")
    function, spec = exported(predictor)
    log(f"translating a {type(predictor.config.recipe.model).__name__} to {to}")
    content, loaded = (_onnx if to == "onnx" else _stablehlo)(function, spec)
    inputs, what = _examples(predictor, spec)
    difference = _largest_difference(function, loaded(content), inputs)
    said = f"largest difference from the model on {len(inputs)} {what}: {difference:.1e}"
    if not difference <= TOLERANCE:  # NaN too
        raise RunError(f"{file} is not written: {said}, and {TOLERANCE:.0e} is allowed.")
    about = {**_about(predictor, spec, function), "format": to, "difference": difference}
    if to == "onnx":
        content = _with_metadata(content, about)
    try:
        with replacing(file) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}.") from error
    write_json(file.with_name(f"{file.name}.json"), about)
    here = Path.cwd()
    shown = file.relative_to(here) if file.is_relative_to(here) else file
    log(f"{shown}: {len(content) / 1e6:,.1f} MB; {said}")
    return file


def exported(predictor: Predictor) -> tuple[Callable[[Any], dict[str, Any]], Spec]:
    """Returns (raw arrays (n, ...) -> the task's predictions, traceable; what a raw array is). In
    float32, whatever the run was computed in."""
    config, encoder = predictor.config, predictor.encoder
    recipe = dataclasses.replace(config.recipe, compute_dtype="float32")
    state = predictor.state()
    numbers = train.as_traced(config.hparams.evaluation())

    def function(raw):
        batch = encoder.batch(raw, jnp)
        outputs = train.forward(recipe, state, numbers, batch["inputs"])
        made = recipe.task.predictions(outputs, batch, encoder.target, predictor.calibration)
        if isinstance(recipe.model, Encoding):
            seen = train.floats(batch["inputs"])
            variables = train.variables(recipe, state)
            made["code"] = recipe.model.apply(variables, seen, method="encode")
        return made

    return function, encoder.spec()


def _specification(spec) -> jax.ShapeDtypeStruct:
    """With a free batch size."""
    from jax import export

    sizes = export.symbolic_shape(",".join(["n", *map(str, spec.shape)]))
    return jax.ShapeDtypeStruct(sizes, np.dtype(spec.dtype))


def _stablehlo(function, spec):
    """(the serialized program, bytes -> function of inputs)."""
    from jax import export

    with portable():
        made = export.export(jax.jit(function), platforms=PLATFORMS)(_specification(spec))

    def loaded(content):
        program = export.deserialize(bytearray(content))
        return lambda inputs: {n: np.asarray(each) for n, each in program.call(inputs).items()}

    return bytes(made.serialize()), loaded


def _onnx(function, spec):
    """(the serialized model, bytes -> function of inputs). Outputs have the predictions' names."""
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "--to onnx needs jax2onnx and onnxruntime: pip install 'dlflax[export]'."
        ) from error
    names = list(jax.eval_shape(function, jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)))
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of values without a type
    try:
        with portable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what others do inside
            model = jax2onnx.to_onnx(
                lambda inputs: tuple(function(inputs)[name] for name in names),
                [_specification(spec)], input_names=["inputs"], output_names=names,
            )  # fmt: skip
        content = model.SerializeToString()
    except Exception as error:  # a model of one's own can have anything in it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"--to onnx: jax2onnx cannot translate the model ({reason}): use --to stablehlo."
        ) from error

    def loaded(content):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of what it optimizes
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda inputs: dict(zip(names, session.run(names, {"inputs": inputs}), strict=True))

    return content, loaded


def _examples(predictor, spec) -> tuple[np.ndarray, str]:
    """(raw arrays, what they are): of the run's test data, where those are still there."""
    config, size = predictor.config, max(BATCHES)
    try:
        dataset = config.data.load(lambda sentence: None)
        if dataset.checksum != predictor.data["sha256"]:
            raise InputError(f"{dataset.source} is other data than the run's.")
        rows = dataset.split.rows(dataset.examples, 0.0, 0, lambda sentence: None)["test"]
        raw = predictor.encoder.raw(dataset.examples.take(rows[:size]))
        return np.asarray(raw[:]).astype(spec.dtype), "test examples"
    except Exception:  # whatever became of the data: they are only the better examples
        generator, dtype = np.random.default_rng(0), np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.float32(generator.normal(size=(size, *spec.shape))), "random inputs"
    model = config.recipe.model
    tokens = model.vocabulary if isinstance(model, ReadingTokens) else 2
    most = 256 if dtype == np.uint8 else max(2, tokens)
    return generator.integers(0, most, (size, *spec.shape)).astype(dtype), "random inputs"


def _largest_difference(function, loaded, inputs) -> float:
    """Between what the model and the file make of batches of several sizes; of numbers other than
    probabilities as a share of the largest."""
    model, worst = jax.jit(function), 0.0
    for size in BATCHES:
        some = np.resize(inputs, (size, *inputs.shape[1:]))
        found, wanted = loaded(some), model(some)
        for name, expected in wanted.items():
            expected = np.asarray(expected)
            if expected.dtype == bool:  # follows from the probabilities
                continue
            largest = max(1.0, float(np.abs(expected).max(initial=0)))
            apart = np.abs(np.float64(found[name]) - expected).max(initial=0) / largest
            worst = max(worst, float(apart)) if np.isfinite(apart) else float("nan")
    return worst


def _about(predictor, spec, function) -> dict[str, Any]:
    """JSON values: what a user of the file has to know."""
    info, recipe, encoder = predictor.data, predictor.config.recipe, predictor.encoder
    outputs = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype))
    about = {
        "made_by": f"dlflax {dlflax.__version__}",
        "experiment": predictor.experiment,
        "data": info["name"],
        "model": type(recipe.model).__name__,
        "task": type(recipe.task).__name__,
        "inputs": {"shape": ["n", *spec.shape], "dtype": spec.dtype, "meaning": spec.meaning},
        "outputs": {
            name: {"shape": ["n", *each.shape[1:]], "dtype": str(each.dtype)}
            for name, each in outputs.items()
        },
        "classes": list(encoder.target.classes),
    }
    about |= {name: each for name, each in encoder.outlook().items() if name == "columns"}
    about |= predictor.calibration
    for published in PUBLISHED:
        if published.sha256 == info["weights_sha256"]:
            about["weights"] = {
                "name": published.name, "licence": published.licence, "data": published.data,
                "mean": published.mean, "std": published.std,
            }  # fmt: skip
    return about


def _with_metadata(content: bytes, about) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in about.items()}
    onnx.helper.set_model_props(model, texts)
    return model.SerializeToString()
