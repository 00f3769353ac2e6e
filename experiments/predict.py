"""Predictions of a finished or running run for new images, texts, rows, series or arrays.

python -m experiments.predict runs/mnist/2026-01-31_12-00-00 digit.png photo.jpg

python -m experiments.predict runs/image_folder/2026-01-31_12-00-00 photos --csv answers.csv

python -m experiments.predict runs/sentiment/2026-01-31_12-00-00 "a gorgeous mess" "dull"

python -m experiments.predict runs/forecast/2026-01-31_12-00-00

python -m experiments.predict runs/autoencoder/2026-01-31_12-00-00 digit.png
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

import experiments
from dlflax import run
from dlflax.errors import InputError
from dlflax.files import escape_controls, write_csv
from dlflax.inference.predict import Predictor, csv_row
from dlflax.report.progress import progress_bar
from dlflax.run.flags import REGISTRY


def command(
    run_dir: tyro.conf.Positional[Path],
    inputs: tyro.conf.Positional[tuple[str, ...]] = (),
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    csv: Path | None = None,
    experiment: str = "",
    tta: int = 0,
) -> None:
    """Prints a line for each input. Exits with 3 if some inputs cannot be used.

    Args:
        run_dir: Folder of a run, runs/EXPERIMENT/NAME, or of a sweep.
        inputs: Image files, folders of images, patterns ("photos/*.jpg"), texts, .npy files, or CSV
            files of a table or a series (none: forecast of the run's series); - reads one a line
            from standard input.
        json_output: Print one JSON object a line, with every probability, code or value.
        csv: Write a CSV file with a row for each input instead of printing.
        experiment: File or module of a run with code outside of dlflax.
        tta: Test-time augmentation: number of views of each input, augmented by the run's own
            --augment, that are averaged with the input itself.
    """
    predictor = Predictor(run_dir, experiments, experiment or None, _to_stderr, tta)
    errors, names = [], predictor.expand_inputs(list(inputs))
    if csv and csv.exists() and any(_is_file(name, csv) for name in names):
        raise InputError(f"--csv {csv} is one of the inputs: name another file.")
    with progress_bar("predicting", len(names) if csv else 0) as advance:
        answers = predictor.answers(names, errors.append, advance)
    if csv and answers:
        write_csv(csv, [csv_row(values) for _, values in answers])
        _to_stderr(f"{len(answers):,} answers are in {csv}")
    for sentence, values in () if csv else answers:
        # only a forecast has several lines: a line break in a file name could fake an answer
        lines = sentence.split("\n") if predictor.encoder.form.together else [sentence]
        print(json.dumps(values) if json_output else "\n".join(map(escape_controls, lines)))
    for error in errors:
        _to_stderr(escape_controls(f"error: {error}"))
    if errors:
        sys.exit(3 if answers else 2)


def _is_file(name: str, file: Path) -> bool:
    return os.path.exists(name) and os.path.samefile(name, file)


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    options = {"prog": "python -m experiments.predict", "description": __doc__}
    options |= {"registry": REGISTRY, "config": (tyro.conf.FlagCreatePairsOff,)}
    run.with_exit_codes(lambda: tyro.cli(command, **options))
