"""Runs: one experiment from its command line to its folder."""

from dlflax.run.cli import main, parse
from dlflax.run.config import Config
from dlflax.run.execute import run
from dlflax.run.exit_codes import with_exit_codes
from dlflax.run.experiment import Experiment, find
from dlflax.run.folder import load_config
from dlflax.run.folds import cross_validate
from dlflax.run.saved import config_from_json
from dlflax.run.serialize import to_json

__all__ = [
    "Config", "Experiment", "config_from_json", "cross_validate", "find", "load_config",
    "main", "parse", "run", "to_json", "with_exit_codes",
]  # fmt: skip
