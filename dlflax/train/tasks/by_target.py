"""Classification, several labels or regression, as the data's targets are."""

import dataclasses

from dlflax.data.target import Labels, Numbers
from dlflax.train.tasks.classification import Classification
from dlflax.train.tasks.multi_label import MultiLabel
from dlflax.train.tasks.regression import Regression


@dataclasses.dataclass(frozen=True)
class ByTarget(Classification):
    """`Classification` where the data have class numbers as targets, `MultiLabel` where they have
    0 or 1 for each label, `Regression` where they have floats: decided when a run reads its data,
    and saved as the one that it was."""

    def for_data(self, splits):
        """The task for these data."""
        if isinstance(splits.target, Numbers):
            return Regression().for_data(splits)
        if isinstance(splits.target, Labels):
            return MultiLabel()
        return Classification(self.loss, self.monitor)
