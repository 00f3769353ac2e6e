"""What a finished (or running) run makes of new inputs: pictures, texts, a series, arrays.

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
from dlflax.files import printable, write_csv
from dlflax.report.progress import progress_bar
from dlflax.run import flags
from dlflax.run.predict import Predictor, as_row


def command(
    run_dir: tyro.conf.Positional[Path],
    inputs: tyro.conf.Positional[tuple[str, ...]] = (),
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    csv: Path | None = None,
    experiment: str = "",
    tta: int = 0,
) -> None:
    """Prints a line for each input. Ends with 3 when some could not be used.

    Args:
        run_dir: Folder of a run, runs/EXPERIMENT/NAME, or of a sweep.
        inputs: Picture files, folders of them, patterns ("photos/*.jpg"), texts, .npy files, or CSV
            files of a table or a series (none: what comes after the run's); - reads one a line from
            standard input.
        json_output: One JSON object a line, with every probability, code or value.
        csv: A file for the same as a table, a row an input, instead of printing them.
        experiment: The file or module that made the run, where it has moved or was not run here.
        tta: Test-time augmentation: so many views of each input, changed by the run's own
            --augment, count besides the input itself.
    """
    predictor = Predictor(run_dir, experiments, experiment or None, _to_stderr, tta)
    refused, named = [], predictor.expanded(list(inputs))
    if csv and csv.exists() and any(_is_file(name, csv) for name in named):
        raise InputError(f"--csv {csv} is one of the files that are asked about: name another.")
    with progress_bar("predicting", len(named) if csv else 0) as advance:
        answers = predictor.answers(named, refused.append, advance)
    if csv and answers:
        write_csv(csv, [as_row(values) for _, values in answers])
        _to_stderr(f"{len(answers):,} answers are in {csv}")
    for sentence, values in () if csv else answers:
        # only a forecast has several lines: in a name they are not to be believed
        lines = sentence.split("\n") if predictor.encoder.form.together else [sentence]
        print(json.dumps(values) if json_output else "\n".join(map(printable, lines)))
    for error in refused:
        _to_stderr(printable(f"error: {error}"))
    if refused:
        sys.exit(3 if answers else 2)


def _is_file(name: str, file: Path) -> bool:
    return os.path.exists(name) and os.path.samefile(name, file)


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    run.with_exit_codes(
        lambda: flags.called(
            command, "python -m experiments.predict", __doc__, (tyro.conf.FlagCreatePairsOff,)
        )
    )
