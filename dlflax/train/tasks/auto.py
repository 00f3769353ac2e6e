"""Classification, multi-label classification or regression, inferred from the targets."""

import dataclasses

from dlflax.data.target import Labels, Numbers
from dlflax.train.tasks.classification import Classification
from dlflax.train.tasks.multi_label import MultiLabel
from dlflax.train.tasks.regression import Regression


@dataclasses.dataclass(frozen=True)
class Auto(Classification):
    """Infers the task from the targets: `Classification` for class numbers, `MultiLabel` for 0 or 1
    per label, `Regression` for floats. A run saves the inferred task."""

    def for_data(self, splits):
        """Returns the task for these data."""
        if isinstance(splits.target, Numbers):
            return Regression().for_data(splits)
        if isinstance(splits.target, Labels):
            return MultiLabel()
        return Classification(self.loss, self.monitor)
