"""Classes and probabilities of picture files, from a finished (or running) run.

python -m experiments.predict runs/mnist/2026-01-31_12-00-00 digit.png photo.jpg
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from dlflax import run, train
from dlflax.checkpoint import Checkpoints
from dlflax.data.picture import read_picture
from dlflax.errors import InputError


def predict(run_dir: Path, pictures: list[Path]) -> tuple[list[str], np.ndarray]:
    """Class names and the probability of each, float32 (pictures, classes), by the checkpoint with
    the lowest validation loss, or the last one without validation. InputError for a folder or
    picture that cannot be used, RunError for a damaged checkpoint."""
    if (Path(run_dir) / "best" / "config.json").exists():  # the folder of a sweep
        run_dir = Path(run_dir) / "best"
    saved = run.load_config(run_dir)
    config, data = run.config_from_json(saved["config"], run_dir), saved["data"]
    shape = tuple(data["input_shape"])
    inputs = np.stack([read_picture(path, shape, data["light_on_dark"]) for path in pictures])
    abstract = train.abstract(config.recipe, config.hparams, inputs[:1])
    state = Checkpoints(Path(run_dir) / "checkpoints", _to_stderr).restore_best(abstract)
    targets = np.zeros(len(inputs), np.int32)
    _, logits = train.evaluate(config.recipe, state, {"inputs": inputs, "targets": targets})
    return data["class_names"], np.asarray(jax.nn.softmax(logits))


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def command(
    run_dir: tyro.conf.Positional[Path],
    pictures: tyro.conf.Positional[list[Path]],
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Prints the class and its probability for each picture.

    Args:
        run_dir: Folder of a run, runs/EXPERIMENT/NAME, or of a sweep.
        pictures: Picture files of any size and mode.
        json_output: One JSON object a line, with the probability of every class.
    """
    if not pictures:
        raise InputError("name one or more picture files after the run folder.")
    class_names, probabilities = predict(run_dir, pictures)
    for path, p in zip(pictures, probabilities, strict=True):
        name, best = class_names[p.argmax()], float(p.max())
        if json_output:
            each = {n: float(q) for n, q in zip(class_names, p, strict=True)}
            answer = {"file": str(path), "class": name, "probability": best, "probabilities": each}
            print(json.dumps(answer))
        else:
            print(f"{path}: {name} ({best:.1%})")


if __name__ == "__main__":
    run.with_exit_codes(
        lambda: tyro.cli(
            command,
            prog="python -m experiments.predict",
            description=__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    )
