"""Tasks: loss, metrics and output type. `task.Task` is the base class."""

from dlflax.train.tasks.auto import Auto
from dlflax.train.tasks.classification import Classification
from dlflax.train.tasks.forecast import Forecast
from dlflax.train.tasks.multi_label import MultiLabel
from dlflax.train.tasks.reconstruction import Reconstruction
from dlflax.train.tasks.regression import Regression
from dlflax.train.tasks.task import Asked, Description, Task, Tested

TASKS = {task.__name__.lower(): task() for task in Task.__subclasses__()}
"""Tasks by their short names on the command line, such as multilabel."""

__all__ = [
    "TASKS", "Asked", "Auto", "Classification", "Description", "Forecast", "MultiLabel",
    "Reconstruction", "Regression", "Task", "Tested",
]  # fmt: skip
