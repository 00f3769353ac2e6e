"""A trained model as a file that runs without this package: ONNX, or StableHLO by `jax.export`.

What it is given is what a user has (bytes of a picture, numbers of tokens, a row, a window of a
series in its own unit), and what it gives are the task's predictions (probabilities, numbers in
their unit): what is done before and after the network is in the file.

jax.export, jax2onnx and onnxruntime are imported where they are used.
"""

import copy
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
from dlflax.errors import InputError
from dlflax.files import replacing, write_json
from dlflax.models.platform import portable
from dlflax.models.protocols import Encoding, ReadingTokens
from dlflax.run.predict import Predictor
from dlflax.train.tasks.reconstruction import encode
from dlflax.transfer.weights import PUBLISHED

Format = Literal["onnx", "stablehlo"]
Stage = Callable[[dict[str, Any]], dict[str, Any]]  # arrays (n, ...) so far -> more of them
TOLERANCE = 1e-4  # more than that between the file and predict is an error
BATCHES = (1, 7, 64)  # sizes that a file is tried with
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # that a StableHLO file runs on


def export(
    run: Path | Predictor, to: Format = "onnx", file: Path | None = None,
    log: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Writes the model of a run folder, or of a sweep's, and returns the file's path (default:
    model.onnx or model.stablehlo in the folder). What it takes and gives is in FILE.json, and in
    an ONNX file's metadata. The file is compared with `predict` on test examples first, as they
    were read. Raises InputError, and writes no file, for a difference above TOLERANCE (of
    probabilities; of numbers, a share of the target's deviation, or of the largest output if that
    is more), for a folder that cannot be used, and for a model that cannot be exported.
    """
    predictor = run if isinstance(run, Predictor) else Predictor(run, log=log)
    predictor, computed = _in_float32(predictor), predictor.config.recipe.compute_dtype
    file = Path(file or predictor.folder / f"model.{to}")
    stages, spec = exported(predictor)
    if to == "stablehlo" and spec.dtype == "float64":
        spec = dataclasses.replace(spec, dtype="float32")  # of JAX, unless its caller changes that
    log(f"translating a {type(predictor.config.recipe.model).__name__} to {to}")
    content, loaded = (_onnx if to == "onnx" else _stablehlo)(stages, spec)
    raw, source = _examples(predictor, spec)
    answer = loaded(content)
    difference = _largest_difference(*_predictions(predictor, raw), answer, raw.astype(spec.dtype))
    said = f"largest difference from predict on {len(raw)} {source}: {difference:.1e}"
    if not difference <= TOLERANCE:  # NaN too
        other = "stablehlo" if to == "onnx" else "onnx"
        narrow = raw.dtype != spec.dtype
        why = f"; the file would take {spec.dtype}, which cannot hold these numbers" * narrow
        raise InputError(
            f"{file} is not written: {said}, and {TOLERANCE:.0e} is allowed{why}: try --to {other}."
        )
    if computed != "float32":
        log(f"predict computes in {computed}, the file in float32, with which it was compared.")
    about = _about(predictor, spec, answer(raw[:1].astype(spec.dtype)))
    about |= {"format": to, "difference": difference}
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


def _in_float32(predictor: Predictor) -> Predictor:
    """Returns a predictor of the same model that computes in float32, without views of inputs."""
    plain, config = copy.copy(predictor), predictor.config
    recipe = dataclasses.replace(config.recipe, compute_dtype="float32")
    plain.config, plain.tta = dataclasses.replace(config, recipe=recipe), 0
    return plain


def exported(predictor: Predictor) -> tuple[list[Stage], Spec]:
    """Returns (encoder, network and the task's predictions, traceable; the spec of raw arrays)."""
    recipe, encoder = predictor.config.recipe, predictor.encoder
    state = predictor.state()
    numbers = train.as_float32(predictor.config.hparams.evaluation())

    def encode(arrays):
        return encoder.batch(arrays["inputs"], jnp)

    def network(arrays):
        made = {"outputs": train.forward(recipe, state, numbers, arrays["inputs"])}
        if isinstance(recipe.model, Encoding):
            seen, variables = train.floats(arrays["inputs"]), train.variables(recipe, state)
            made["code"] = recipe.model.apply(variables, seen, method="encode")
        return made

    def predictions(arrays):
        batch = {name: x for name, x in arrays.items() if name not in ("outputs", "code")}
        target, calibration = encoder.target, predictor.calibration
        made = recipe.task.predictions(arrays["outputs"], batch, target, calibration)
        return made | {name: arrays[name] for name in ("code",) if name in arrays}

    return [encode, network, predictions], encoder.spec()


def join_stages(stages) -> Stage:
    """Returns one stage that does all of them."""

    def join(arrays):
        for stage in stages:
            made = stage(arrays)
            arrays = arrays | made
        return made

    return join


def _shapes(arrays, size, double: bool = False):
    """Returns the shapes of arrays (size, ...), floats as float64 or as float32."""
    floats = np.dtype(np.float64 if double else np.float32)
    return {
        name: jax.ShapeDtypeStruct(
            (size, *x.shape[1:]), floats if x.dtype in (np.float32, np.float64) else x.dtype
        )
        for name, x in arrays.items()
    }


def _stablehlo(stages, spec):
    """(the serialized program, bytes -> function of inputs)."""
    from jax import export

    (n,) = export.symbolic_shape("n")
    stage, given = join_stages(stages), jax.ShapeDtypeStruct((n, *spec.shape), spec.dtype)
    with portable():
        function = jax.jit(lambda inputs: stage({"inputs": inputs}))
        made = export.export(function, platforms=PLATFORMS)(given)

    def loaded(content):
        program = export.deserialize(bytearray(content))
        return lambda inputs: {n: np.asarray(x) for n, x in program.call(inputs).items()}

    return bytes(made.serialize()), loaded


def _onnx(stages, spec):
    """(the serialized model, bytes -> function of inputs). Outputs have the predictions' names."""
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "--to onnx needs jax2onnx and onnxruntime: pip install 'dlflax[export]'."
        ) from error
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of values without a type

    def loaded(content):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of what it optimizes
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda inputs: dict(zip(names, session.run(names, {"inputs": inputs}), strict=True))

    # jax2onnx translates to float64 all or nothing: the network alone stays in float32
    pieces = [(join_stages(stages), False)]
    if spec.dtype == "float64":
        pieces = list(zip(stages, (True, False, True), strict=True))
    arrays, models = {"inputs": jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)}, []
    try:
        with portable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what others do inside
            for stage, double in pieces:
                made, model = _translate(stage, arrays, double)
                arrays, names = arrays | made, list(made)
                models.append((model, names))
        content = _chain(models).SerializeToString()
        loaded(content)
    except Exception as error:  # a model of one's own can have anything in it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"--to onnx: jax2onnx cannot translate the model ({reason}): use --to stablehlo."
        ) from error
    return content, loaded


def _translate(stage, arrays, double: bool):
    """Returns (a stage's outputs, (1, ...), of arrays; the stage as an ONNX model). All floats are
    float64, or float32. The model's inputs have the names of the arrays."""
    import jax2onnx
    from jax import export

    (n,), names = export.symbolic_shape("n"), list(arrays)
    with jax.enable_x64(double):
        made = dict(jax.eval_shape(stage, _shapes(arrays, 1, double)))

    def function(*given):
        values = stage(dict(zip(names, given, strict=True)))
        return tuple(values[name] for name in made)  # in another order than they are in there

    model = jax2onnx.to_onnx(
        function, list(_shapes(arrays, n, double).values()), input_names=names,
        output_names=[f"made_{name}" for name in made], enable_double_precision=double,
    )  # fmt: skip
    return made, model


def _chain(models):
    """Returns one ONNX model of several, (model, names of its outputs). Every model is given the
    outputs of those before it, cast to its own types; the last one's outputs are the result."""
    from onnx import compose, helper

    known, nodes, constants, functions = {"inputs": "inputs"}, [], [], []
    inputs, opsets = models[0][0].graph.input, {}
    for i, (model, names) in enumerate(models):
        takes = [value.name for value in model.graph.input]
        model = compose.add_prefix(model, f"{i}/")
        for name, value in zip(takes, model.graph.input, strict=True):
            kind = value.type.tensor_type.elem_type
            nodes.append(helper.make_node("Cast", [known[name]], [value.name], to=kind))
        nodes += model.graph.node
        constants += model.graph.initializer
        functions += model.functions
        opsets |= {opset.domain: opset for opset in model.opset_import}
        known |= dict(zip(names, (value.name for value in model.graph.output), strict=True))
    outputs = list(model.graph.output)
    for name, value in zip(names, outputs, strict=True):
        nodes.append(helper.make_node("Identity", [value.name], [name]))
        value.name = name
    graph = helper.make_graph(nodes, "model", inputs, outputs, constants)
    return helper.make_model(
        graph, opset_imports=list(opsets.values()), functions=functions,
        ir_version=model.ir_version,
    )  # fmt: skip


def _examples(predictor, spec) -> tuple[np.ndarray, str]:
    """Returns (raw arrays as `predict` has them, their source, in words): of the run's test data,
    where those still exist."""
    config, encoder, size = predictor.config, predictor.encoder, max(BATCHES)
    try:
        dataset = config.data.load(lambda sentence: None)
        if dataset.checksum != predictor.data["sha256"]:
            raise InputError(f"{dataset.source} is other data than the run's.")
        rows = dataset.split.rows(dataset.examples, 0.0, 0, lambda sentence: None)["test"]
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, size).astype(int))]
        return np.asarray(encoder.raw(dataset.examples.take(rows))[:]), "test examples"
    except Exception:  # whatever became of the data: they are only the better examples
        generator, dtype = np.random.default_rng(0), np.dtype(spec.dtype)
    columns = encoder.outlook().get("columns", ())
    rows = [{c["name"]: _any_cell(c, generator) for c in columns} for _ in range(size)]
    try:
        raw = np.asarray(encoder.raw(encoder.parse(rows if columns else None))[:])
        return raw, "random rows" if columns else "example of the run"
    except Exception:  # a table of another kind, or no series, which alone has an example
        pass
    if dtype.kind == "f":
        return np.float32(generator.normal(size=(size, *spec.shape))), "random inputs"
    model = config.recipe.model
    tokens = model.vocabulary if isinstance(model, ReadingTokens) else 2
    most = 256 if dtype == np.uint8 else max(2, tokens)
    return generator.integers(0, most, (size, *spec.shape)).astype(dtype), "random inputs"


def _any_cell(column, generator):
    """Returns a value for a column of `Encoder.outlook`; None without a median or levels."""
    if "median" in column:
        return column["median"] + generator.normal()
    return generator.choice(column["levels"]).item() if column.get("levels") else None


def _predictions(predictor, raw) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns (the predictions of `predict` for raw examples, (n, ...) each; their scales).
    Differences are divided by a scale: an output of 1, or the largest one, in a prediction's unit.
    """
    recipe, target = predictor.config.recipe, predictor.encoder.target
    batch = predictor.encoder.batch(raw)
    outputs, made = predictor.outputs(batch["inputs"]), predictor.predictions(batch)

    def meaning(outputs):
        return recipe.task.predictions(outputs, batch, target, predictor.calibration)

    one, zero = meaning(np.ones_like(outputs)), meaning(np.zeros_like(outputs))
    scales = {}
    for name in made:
        if made[name].dtype != bool:  # that follows from probabilities
            worth, largest = (np.abs(x[name] - zero[name]).max(0) for x in (one, made))
            scale = np.maximum(np.maximum(worth, largest), 1.0 if target.classes else 0.0)
            scales[name] = np.where(scale > 0, scale, 1.0)
    if isinstance(recipe.model, Encoding):
        variables = train.variables(recipe, predictor.state())
        made["code"] = encode(recipe, variables, batch["inputs"])
        scales["code"] = np.maximum(1.0, np.abs(made["code"]).max())
    return made, scales


def _largest_difference(wanted, scales, answer, inputs) -> float:
    """Returns the largest difference of answers from the wanted ones, divided by its scale. inputs
    are given in batches of several sizes; NaN where an answer is not finite."""
    worst = 0.0
    for size in BATCHES:
        answers = answer(np.resize(inputs, (size, *inputs.shape[1:])))
        for name, scale in scales.items():
            expected = np.resize(wanted[name], (size, *wanted[name].shape[1:]))
            apart = float((np.abs(np.float64(answers[name]) - expected) / scale).max(initial=0))
            worst = max(worst, apart) if np.isfinite(apart) else float("nan")
    return worst


def _about(predictor, spec, outputs) -> dict[str, Any]:
    """Returns JSON values for users of the file. outputs: some that it gave."""
    info, recipe, encoder = predictor.data, predictor.config.recipe, predictor.encoder
    about = {
        "made_by": f"dlflax {dlflax.__version__}",
        "experiment": predictor.experiment,
        "data": info["name"],
        "model": type(recipe.model).__name__,
        "task": type(recipe.task).__name__,
        "inputs": {"shape": ["n", *spec.shape], "dtype": spec.dtype, "meaning": spec.meaning},
        "outputs": {
            name: {"shape": ["n", *x.shape[1:]], "dtype": str(x.dtype)}
            for name, x in outputs.items()
        },
        "classes": list(encoder.target.classes),
    }
    about |= {name: v for name, v in encoder.outlook().items() if name == "columns"}
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
