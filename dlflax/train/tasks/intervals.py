"""Prediction intervals of numbers from validation errors: conformal (Lei et al. 2018)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlflax.errors import InputError
from dlflax.models import calibration

COVERAGE = 0.9


def fit(errors: np.ndarray) -> dict[str, Any]:
    """Returns {"coverage", "half_width": [...]}, which covers COVERAGE of the validation values of
    each number; {} for too few. errors: float (n, numbers), NaN where a target is missing."""
    errors = np.abs(np.asarray(errors, np.float64))
    counts = (~np.isnan(errors)).sum(0)
    if counts.min() < calibration.MIN_EXAMPLES:
        return {}
    levels = np.minimum(1, np.ceil((counts + 1) * COVERAGE) / counts)
    half_widths = [np.nanquantile(e, level) for e, level in zip(errors.T, levels, strict=True)]
    return {"coverage": COVERAGE, "half_width": list(map(float, half_widths))}


def half_width(fitted: Mapping[str, Any], count: int) -> np.ndarray | None:
    """Returns the half-widths of the intervals (count,); None without any. Raises InputError for
    another length. fitted: calibration.json."""
    if "half_width" not in fitted:
        return None
    if "coverage" not in fitted:
        raise InputError("calibration.json is damaged: it has half_width, but no coverage.")
    half = np.atleast_1d(fitted["half_width"])
    if len(half) != count:
        raise InputError(
            f"calibration.json is damaged: it has {len(half)} intervals for {count} numbers."
        )
    return half


def measure(fitted: Mapping[str, Any], errors: np.ndarray, scale: Any) -> dict[str, Any]:
    """Returns {"interval": wanted and measured coverage, and mean width}; {} without intervals.
    errors: of the test split, (n, numbers); scale: unit of an error, a number or (numbers,)."""
    half = half_width(fitted, errors.shape[1])
    if half is None:
        return {}
    coverage = (np.abs(errors) <= half)[~np.isnan(errors)].mean()
    width = float(2 * np.mean(np.asarray(scale) * half))
    return {"interval": {
        "coverage_wanted": fitted["coverage"], "coverage": float(coverage), "mean_width": width,
    }}  # fmt: skip
