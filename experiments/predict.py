"""What a finished (or running) run says of new inputs: pictures, texts, or a series.

python -m experiments.predict runs/mnist/2026-01-31_12-00-00 digit.png photo.jpg

python -m experiments.predict runs/sentiment/2026-01-31_12-00-00 "a gorgeous mess" "dull"

python -m experiments.predict runs/forecast/2026-01-31_12-00-00

python -m experiments.predict runs/autoencoder/2026-01-31_12-00-00 digit.png
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from dlflax import figures, run, tasks, train, transfer
from dlflax.checkpoint import Checkpoints
from dlflax.data import series, text
from dlflax.data.picture import read_picture
from dlflax.errors import InputError


class Predictor:
    """The model of a run folder, or of a sweep's: the checkpoint with the lowest validation loss,
    or the last one without validation. InputError for a folder that cannot be used, RunError for a
    damaged checkpoint."""

    def __init__(self, run_dir: Path):
        run_dir = Path(run_dir)
        if (run_dir / "best" / "config.json").exists():  # the folder of a sweep
            run_dir = run_dir / "best"
        saved = run.load_config(run_dir)
        self.folder, self.data = run_dir, saved["data"]
        self.config = run.config_from_json(saved["config"], run_dir)
        self.kind = type(self.config.data).__name__
        self._state = None

    def state(self, inputs) -> train.State:
        """inputs: a batch of what is to be predicted."""
        if self._state is None:
            config, model = self.config, self.config.recipe.model
            sha256 = self.data.get("weights_sha256")
            shape = inputs.shape[1:]
            backbone = transfer.backbone(config.transfer, model, shape, sha256, _to_stderr)
            seen = transfer.head_inputs(model, shape) if backbone else inputs[:1]
            abstract = train.abstract(transfer.trained(config.transfer, config.recipe),
                                      config.hparams, seen)  # fmt: skip
            checkpoints = Checkpoints(self.folder / "checkpoints", _to_stderr)
            self._state = transfer.whole(checkpoints.restore_best(abstract), backbone)
        return self._state

    def outputs(self, inputs) -> np.ndarray:
        """The model's outputs, float32 (n, ...)."""
        targets = np.zeros(len(inputs), np.int32)
        if self.config.recipe.loss == "mean_squared_error":
            targets = np.zeros((len(inputs), self.config.recipe.model.num_outputs), np.float32)
        data = {"inputs": inputs, "targets": targets}
        return np.asarray(train.evaluate(self.config.recipe, self.state(inputs), data)[1])

    def pictures(self, paths) -> np.ndarray:
        """uint8 (n, h, w, c), as the model wants them. InputError for one that cannot be used."""
        shape = tuple(self.data["input_shape"])
        return np.stack([read_picture(path, shape, self.data["light_on_dark"]) for path in paths])

    def tokens(self, texts) -> np.ndarray:
        """int32 (n, length), by the run's own tokenizer."""
        path = self.folder / "tokenizer.json"
        try:
            tokenizer = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        return text.encode(tokenizer, list(texts), self.data["length"])


def predict(run_dir: Path, inputs: list) -> tuple[list[str], np.ndarray]:
    """Class names and the probability of each, float32 (n, classes). inputs: picture files or
    texts, whatever the run was trained on. InputError and RunError as for `Predictor`."""
    predictor = Predictor(run_dir)
    read = predictor.tokens if predictor.kind == "Text" else predictor.pictures
    logits = predictor.outputs(read(inputs))
    return predictor.data["class_names"], np.asarray(jax.nn.softmax(logits))


def classes(predictor, inputs) -> list[tuple[str, dict]]:
    names, probabilities = predict(predictor.folder, inputs)
    key = "text" if predictor.kind == "Text" else "file"
    answers = []
    for each, p in zip(inputs, probabilities, strict=True):
        name, best = names[p.argmax()], float(p.max())
        every = {n: float(q) for n, q in zip(names, p, strict=True)}
        answer = {key: each, "class": name, "probability": best, "probabilities": every}
        answers.append((f"{each}: {name} ({best:.1%})", answer))
    return answers


def reconstructions(predictor, paths) -> list[tuple[str, dict]]:
    pictures = predictor.pictures(paths)
    outputs, folder = predictor.outputs(pictures), predictor.folder / "predictions"
    codes = tasks.encode(predictor.config.recipe, predictor.state(pictures), {"inputs": pictures})
    folder.mkdir(exist_ok=True)
    answers = []
    for path, picture, output, code in zip(paths, pictures / 255.0, outputs, codes, strict=True):
        error = float(np.mean((picture - output) ** 2))
        made = folder / f"{Path(path).stem}.png"
        figures.save_figure(figures.reconstructions(picture[None], output[None]), made)
        answer = {"file": path, "mean_squared_error": error, "picture": str(made)}
        words = f"{path}: mean squared error {error:.4f}, reconstruction in {made}"
        answers.append((words, {**answer, "code": code.tolist()}))
    return answers


def forecasts(predictor, paths) -> list[tuple[str, dict]]:
    config, scale = predictor.config.data, predictor.data["scale"]
    windows = {path: series.read(path, config.column)[-config.window :] for path in paths}
    windows = windows or {"the series": np.array(predictor.data["last_window"])}
    answers = []
    for path, window in windows.items():
        if len(window) < config.window:
            raise InputError(
                f"{path} has {len(window)} values: the model looks at the last {config.window}."
            )
        inputs = np.float32((window - window[-1]) / scale)[None, :, None]
        values = (window[-1] + scale * predictor.outputs(inputs)[0]).tolist()
        words = f"after {path}: {' '.join(f'{value:.4g}' for value in values)}"
        answers.append((words, {"file": path, "forecast": values}))
    return answers


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def command(
    run_dir: tyro.conf.Positional[Path],
    inputs: tyro.conf.Positional[tuple[str, ...]] = (),
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Prints a line for each input.

    Args:
        run_dir: Folder of a run, runs/EXPERIMENT/NAME, or of a sweep.
        inputs: Picture files, texts, or CSV files of a series (none: what comes after the run's).
        json_output: One JSON object a line, with every probability, code or value.
    """
    predictor = Predictor(run_dir)
    if not inputs and predictor.kind != "Series":
        what = "texts, in quotes," if predictor.kind == "Text" else "picture files"
        raise InputError(f"name one or more {what} after the run folder.")
    kinds = {"reconstruction": reconstructions, "mean_squared_error": forecasts}
    answer: Any = kinds.get(predictor.config.recipe.loss, classes)
    for words, values in answer(predictor, list(inputs)):
        print(json.dumps(values) if json_output else words)


if __name__ == "__main__":
    run.with_exit_codes(
        lambda: tyro.cli(
            command,
            prog="python -m experiments.predict",
            description=__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    )
