"""Your own images, one folder for each class: photos/cat/1.jpg, photos/dog/2.png; or with train/,
validation/ and test/ above the classes.

python -m experiments.image_folder --data photos

Or images with a CSV file, which has a column of file names and one of classes, of several labels
("red|old"), or of numbers:

python -m experiments.image_folder --data photos --labels-csv labels.csv

python -m experiments.image_folder --data scans --labels-csv labels.csv --target age --group patient

Presets, architectures and flags are those of `experiments.cats_vs_dogs`.
"""

from dataclasses import replace

from dlflax import run
from dlflax.train.tasks import Auto
from experiments import cats_vs_dogs
from experiments.cats_vs_dogs import ARCHITECTURES

PRESETS = {
    name: replace(
        preset,
        recipe=replace(preset.recipe, task=Auto()),
        data=replace(preset.data, dataset=""),
    )
    for name, preset in cats_vs_dogs.PRESETS.items()
}

if __name__ == "__main__":
    run.main("image_folder", PRESETS, ARCHITECTURES, description=__doc__)
