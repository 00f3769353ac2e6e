"""The encoder of time series."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dlflax.data.encoder import Encoder, Examples, Form, Limits, Spec, as_path, is_series, note
from dlflax.data.series.series_file import Style, read_in_style
from dlflax.data.table.raw_table import read_table
from dlflax.data.target import Steps
from dlflax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SeriesEncoder(Encoder):
    """The encoder of windows of a series and its covariates, scaled by standard deviations."""

    form: ClassVar = Form(
        "file", "rows", {"type": "object"}, ("text/csv",), widget="series",
        upload="table", together=True,
        experiment=("forecast", "a CSV file with a row for each time"),
    )  # fmt: skip

    target: Steps
    window: int
    """Steps of the past in an input."""
    horizon: int
    """Steps of the future to forecast."""
    past: tuple[str, ...]
    """Covariates whose past is an input."""
    future: tuple[str, ...]
    """Covariates known in advance."""
    covariate_mean: tuple[float, ...]
    covariate_scale: tuple[float, ...]
    file: Style
    """Style of the training file."""
    own_window: tuple[tuple[float, ...], ...]
    """Last window of the training file, (window + later, columns)."""
    own_times: tuple[str, ...]
    """Times of the next steps."""
    history: int = 0
    """Steps of an input that begins before the window, NaN before the series; 0: the window. Such
    an input has one more column: the last value, divided by the scale."""

    @property
    def length(self) -> int:
        """Steps of the past in an input, with those before the window."""
        return self.history or self.window

    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Reads a series from a CSV file, rows {column: value} or a data frame, sorted by time if
        there are times. None is the end of the training file."""
        if given is None or isinstance(given, Sequence) and not len(given):
            if len(self.own_times) != self.horizon:
                raise InputError("encoder.json is damaged: own_times needs a time for each step.")
            window = np.array(self.own_window, np.float64)
            if self.history and len(window):  # saved without the padding
                missing = self.length + self._later() - len(window)
                window = np.pad(window, ((missing, 0), (0, 0)), constant_values=np.nan)
            return self._examples(window, self.own_times, "the series")
        most = limits.steps if limits else sys.maxsize
        given = given.to_frame() if is_series(given) else given
        delimiter = self.file.delimiter or ","
        table = read_table(as_path(given) or given, delimiter, most, note, "a series")
        series = read_in_style(table, self.file, note)
        if len(series.values) < self.window:
            raise InputError(
                f"{table.place} has {len(series.values)} values: the model needs the last "
                f"{self.window}."
            )
        window = series.last_window(self.length, self._later())
        return self._examples(window, series.times_after(self.horizon), table.place)

    def _later(self) -> int:
        return self.horizon if self.future else 0

    def _examples(self, window: np.ndarray, times, place: str) -> Examples:
        if len(window) < self.length + self._later():
            raise InputError(
                f"{place}: {', '.join(self.future)} must have {self.horizon} rows after the last "
                "value."
            )
        columns = {"window": window[None], "times": np.array([list(times)])}
        return Examples(columns, None, [place])

    def raw(self, examples: Examples) -> np.ndarray:
        """Returns float64 (n, window + later, columns): the series, then the covariates."""
        return examples.columns["window"]

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        past = raw[:, : self.length, 0]
        last = past[:, -1:]
        inputs = ((past - last) / self.target.scale)[:, :, None]
        if self.covariate_mean:
            mean, scale = np.array([[self.covariate_mean]]), np.array([[self.covariate_scale]])
            values = (raw[:, :, 1:] - mean) / scale
            future = values[:, :, len(self.past) :]
            future = future[:, self.horizon :] if self.future else future[:, : self.length]
            inputs = xp.concatenate([inputs, values[:, : self.length], future], 2)
        if self.history:
            level = xp.broadcast_to((last / self.target.scale)[:, :, None], inputs[:, :, :1].shape)
            inputs = xp.concatenate([inputs, level], 2)
        return {"inputs": inputs.astype(np.float32), "last": last}

    def spec(self) -> Spec:
        later, columns = self._later(), ("the series", *self.past, *self.future)
        more = f", and {later} steps after them" if later else ""
        padding = ", NaN before the first one" if self.history else ""
        return Spec(
            (self.length + later, len(columns)), "float64",
            f"the last {self.length} values of {', '.join(columns)}{more}{padding}",
        )  # fmt: skip

    def describe(self) -> str:
        return f"windows of {self.window} values"

    def outlook(self) -> dict[str, Any]:
        end = len(self.own_window) - self._later()
        return {"series": [row[0] for row in self.own_window[:end]][-104:]}
