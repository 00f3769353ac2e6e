"""Export of a trained model to a file that runs without this package: ONNX or StableHLO.

The file contains preprocessing and postprocessing. Its input is raw (uint8 pixels, token ids, a
row or a window of a series in its own unit), its outputs are the task's predictions
(probabilities, numbers in their unit).

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
from dlflax.files import atomic_write, write_json
from dlflax.inference.predict import Predictor
from dlflax.models.protocols import Encoding, ReadingTokens
from dlflax.ops.platform import portable
from dlflax.train.tasks.reconstruction import encode
from dlflax.transfer.weights import PUBLISHED

Format = Literal["onnx", "stablehlo"]
Stage = Callable[[dict[str, Any]], dict[str, Any]]  # arrays (n, ...) -> further arrays
TOLERANCE = 1e-4  # largest difference between the file and predict
BATCHES = (1, 7, 64)  # batch sizes of the comparison with predict
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # of a StableHLO file


def export(
    run: Path | Predictor, to: Format = "onnx", file: Path | None = None,
    log: Callable[[str], None] = print, experiment: str | None = None,
) -> Path:  # fmt: skip
    """Writes the model of a run folder or a sweep, and returns the file's path (default:
    model.onnx or model.stablehlo in the folder). experiment: as in `dlflax.load`.

    FILE.json, and an ONNX file's metadata, describe inputs and outputs. The file is first compared
    with `predict` on test examples. Raises InputError, and writes no file, for a difference above
    TOLERANCE (of probabilities; of numbers in units of the target's deviation, or of the largest
    output if that is more), for an unusable folder, and for a model that cannot be exported.
    """
    predictor = run if isinstance(run, Predictor) else Predictor(run, None, experiment, log)
    predictor, compute_dtype = _in_float32(predictor), predictor.config.recipe.compute_dtype
    file = Path(file or predictor.folder / f"model.{to}")
    stages, spec = export_stages(predictor)
    if to == "stablehlo" and spec.dtype == "float64":
        spec = dataclasses.replace(spec, dtype="float32")  # JAX's default for floats
    log(f"translating a {type(predictor.config.recipe.model).__name__} to {to}")
    content, load = (_onnx if to == "onnx" else _stablehlo)(stages, spec)
    raw, source = _examples(predictor, spec)
    program = load(content)
    difference = _largest_difference(*_predictions(predictor, raw), program, raw.astype(spec.dtype))
    comparison = f"largest difference from predict on {len(raw)} {source}: {difference:.1e}"
    if not difference <= TOLERANCE:  # NaN too
        other = "stablehlo" if to == "onnx" else "onnx"
        is_narrow = raw.dtype != spec.dtype
        reason = f"; the file takes {spec.dtype}, which cannot hold these numbers" * is_narrow
        raise InputError(
            f"{file} is not written: {comparison}, and {TOLERANCE:.0e} is allowed{reason}: try "
            f"--to {other}."
        )
    if compute_dtype != "float32":
        log(f"predict computes in {compute_dtype}; the file computes, and was compared, in float32")
    description = _describe(predictor, spec, program(raw[:1].astype(spec.dtype)))
    description |= {"format": to, "difference": difference}
    if to == "onnx":
        content = _add_metadata(content, description)
    try:
        with atomic_write(file) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}.") from error
    write_json(file.with_name(f"{file.name}.json"), description)
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    log(f"{shown}: {len(content) / 1e6:,.1f} MB; {comparison}")
    return file


def _in_float32(predictor: Predictor) -> Predictor:
    """Returns a copy of the predictor that computes in float32, without test-time augmentation."""
    predictor, config = copy.copy(predictor), predictor.config
    recipe = dataclasses.replace(config.recipe, compute_dtype="float32")
    predictor.config, predictor.tta = dataclasses.replace(config, recipe=recipe), 0
    return predictor


def export_stages(predictor: Predictor) -> tuple[list[Stage], Spec]:
    """Returns ([encoder, network, predictions], all traceable; Spec of the raw inputs)."""
    recipe, encoder = predictor.config.recipe, predictor.encoder
    state = predictor.state()
    hparams = train.as_float32(predictor.config.hparams.evaluation())

    def encode(arrays):
        return encoder.batch(arrays["inputs"], jnp)

    def network(arrays):
        outputs = {"outputs": train.forward(recipe, state, hparams, arrays["inputs"])}
        if isinstance(recipe.model, Encoding):
            inputs, variables = train.floats(arrays["inputs"]), train.variables(recipe, state)
            outputs["code"] = recipe.model.apply(variables, inputs, method="encode")
        return outputs

    def predict(arrays):
        batch = {name: x for name, x in arrays.items() if name not in ("outputs", "code")}
        target, calibration = encoder.target, predictor.calibration
        predictions = recipe.task.predictions(arrays["outputs"], batch, target, calibration)
        return predictions | {name: arrays[name] for name in ("code",) if name in arrays}

    return [encode, network, predict], encoder.spec()


def join_stages(stages) -> Stage:
    """Returns the composition of the stages."""

    def join(arrays):
        for stage in stages:
            outputs = stage(arrays)
            arrays = arrays | outputs
        return outputs

    return join


def _shapes(arrays, size, double: bool = False):
    """Returns the shapes of arrays (size, ...), with floats as float64 or float32."""
    floats = np.dtype(np.float64 if double else np.float32)
    return {
        name: jax.ShapeDtypeStruct(
            (size, *x.shape[1:]), floats if x.dtype in (np.float32, np.float64) else x.dtype
        )
        for name, x in arrays.items()
    }


def _stablehlo(stages, spec):
    """Returns (the serialized program, bytes -> function of inputs)."""
    from jax import export

    (n,) = export.symbolic_shape("n")
    stage, inputs = join_stages(stages), jax.ShapeDtypeStruct((n, *spec.shape), spec.dtype)
    with portable():
        function = jax.jit(lambda inputs: stage({"inputs": inputs}))
        program = export.export(function, platforms=PLATFORMS)(inputs)

    def load(content):
        program = export.deserialize(bytearray(content))
        return lambda inputs: {n: np.asarray(x) for n, x in program.call(inputs).items()}

    return bytes(program.serialize()), load


def _onnx(stages, spec):
    """Returns (the serialized model, bytes -> function of inputs)."""
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "--to onnx needs jax2onnx and onnxruntime: pip install 'dlflax[export]'."
        ) from error
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns about values without a type

    def load(content):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns about its optimizations
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda inputs: dict(zip(names, session.run(names, {"inputs": inputs}), strict=True))

    # jax2onnx translates a program to one float type: float64 inputs need three programs, since
    # the network is float32
    programs = [(join_stages(stages), False)]
    if spec.dtype == "float64":
        programs = list(zip(stages, (True, False, True), strict=True))
    arrays, models = {"inputs": jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)}, []
    try:
        with portable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of jax2onnx
            for stage, double in programs:
                outputs, model = _translate(stage, arrays, double)
                arrays, names = arrays | outputs, list(outputs)
                models.append((model, names))
        content = _merge_models(models).SerializeToString()
        load(content)
    except Exception as error:  # a user's model can have any operation
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"--to onnx: jax2onnx cannot translate the model ({reason}): use --to stablehlo."
        ) from error
    return content, load


def _translate(stage, arrays, double: bool):
    """Returns (shapes of a stage's outputs; the stage as an ONNX model, whose inputs have the names
    of the arrays). double: floats are float64 instead of float32."""
    import jax2onnx
    from jax import export

    (n,), names = export.symbolic_shape("n"), list(arrays)
    with jax.enable_x64(double):
        outputs = dict(jax.eval_shape(stage, _shapes(arrays, 1, double)))

    def function(*values):
        values = stage(dict(zip(names, values, strict=True)))
        return tuple(values[name] for name in outputs)  # eval_shape sorts the names

    model = jax2onnx.to_onnx(
        function, list(_shapes(arrays, n, double).values()), input_names=names,
        output_names=[f"made_{name}" for name in outputs], enable_double_precision=double,
    )  # fmt: skip
    return outputs, model


def _merge_models(models):
    """Returns one ONNX model of several, (model, output names), each fed by the earlier ones."""
    from onnx import compose, helper

    values, nodes, constants, functions = {"inputs": "inputs"}, [], [], []
    inputs, opsets = models[0][0].graph.input, {}
    for i, (model, names) in enumerate(models):
        input_names = [value.name for value in model.graph.input]
        model = compose.add_prefix(model, f"{i}/")
        for name, value in zip(input_names, model.graph.input, strict=True):
            dtype = value.type.tensor_type.elem_type
            nodes.append(helper.make_node("Cast", [values[name]], [value.name], to=dtype))
        nodes += model.graph.node
        constants += model.graph.initializer
        functions += model.functions
        opsets |= {opset.domain: opset for opset in model.opset_import}
        values |= dict(zip(names, (value.name for value in model.graph.output), strict=True))
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
    """Returns (raw inputs, their source): of test examples if they still exist, else random."""
    config, encoder, size = predictor.config, predictor.encoder, max(BATCHES)
    try:
        dataset = config.data.load(lambda sentence: None)
        if dataset.checksum != predictor.data["sha256"]:
            raise InputError(f"{dataset.source} differs from the run's data.")
        rows = dataset.split.rows(dataset.examples, 0.0, 0, lambda sentence: None)["test"]
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, size).astype(int))]
        return np.asarray(encoder.raw(dataset.examples.take(rows))[:]), "test examples"
    except Exception:  # missing or damaged data: random examples are used instead
        generator, dtype = np.random.default_rng(0), np.dtype(spec.dtype)
    columns = encoder.outlook().get("columns", ())
    rows = [{c["name"]: _random_cell(c, generator) for c in columns} for _ in range(size)]
    try:
        raw = np.asarray(encoder.raw(encoder.parse(rows if columns else None))[:])
        return raw, "random rows" if columns else "example of the run"
    except Exception:  # a table without medians and levels, or data without an example
        pass
    if dtype.kind == "f":
        return np.float32(generator.normal(size=(size, *spec.shape))), "random inputs"
    model = config.recipe.model
    tokens = model.vocabulary if isinstance(model, ReadingTokens) else 2
    most = 256 if dtype == np.uint8 else max(2, tokens)
    return generator.integers(0, most, (size, *spec.shape)).astype(dtype), "random inputs"


def _random_cell(column, generator):
    """Returns a random value for a column of `Encoder.outlook`; None without median and levels."""
    if "median" in column:
        return column["median"] + generator.normal()
    return generator.choice(column["levels"]).item() if column.get("levels") else None


def _predictions(predictor, raw) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns (predictions for raw examples, (n, ...) each; scales that divide differences from
    them). A scale is an output of 1, or the largest one, in a prediction's unit."""
    recipe, target = predictor.config.recipe, predictor.encoder.target
    batch = predictor.encoder.batch(raw)
    outputs, predictions = predictor.outputs(batch["inputs"]), predictor.predictions(batch)

    def predict(outputs):
        return recipe.task.predictions(outputs, batch, target, predictor.calibration)

    one, zero = predict(np.ones_like(outputs)), predict(np.zeros_like(outputs))
    scales = {}
    for name in predictions:
        if predictions[name].dtype != bool:  # these follow from probabilities
            unit, largest = (np.abs(x[name] - zero[name]).max(0) for x in (one, predictions))
            scale = np.maximum(np.maximum(unit, largest), 1.0 if target.classes else 0.0)
            scales[name] = np.where(scale > 0, scale, 1.0)
    if isinstance(recipe.model, Encoding):
        variables = train.variables(recipe, predictor.state())
        predictions["code"] = encode(recipe, variables, batch["inputs"])
        scales["code"] = np.maximum(1.0, np.abs(predictions["code"]).max())
    return predictions, scales


def _largest_difference(expected, scales, program, inputs) -> float:
    """Returns the largest scaled difference from the expected outputs; NaN if one is not finite."""
    worst = 0.0
    for size in BATCHES:
        outputs = program(np.resize(inputs, (size, *inputs.shape[1:])))
        for name, scale in scales.items():
            values = np.resize(expected[name], (size, *expected[name].shape[1:]))
            difference = np.abs(np.float64(outputs[name]) - values) / scale
            worst = np.maximum(worst, difference.max(initial=0))  # keeps NaN
    return float(worst) if np.isfinite(worst) else float("nan")


def _describe(predictor, spec, outputs) -> dict[str, Any]:
    """Returns a description of the file, as JSON values. outputs: the file's for some inputs."""
    info, recipe, encoder = predictor.data, predictor.config.recipe, predictor.encoder
    description = {
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
    description |= {name: v for name, v in encoder.outlook().items() if name == "columns"}
    description |= predictor.calibration
    for published in PUBLISHED:
        if published.sha256 == info["weights_sha256"]:
            description["weights"] = {
                "name": published.name, "licence": published.licence, "data": published.data,
                "mean": published.mean, "std": published.std,
            }  # fmt: skip
    return description


def _add_metadata(content: bytes, description) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in description.items()}
    onnx.helper.set_model_props(model, texts)
    return model.SerializeToString()
