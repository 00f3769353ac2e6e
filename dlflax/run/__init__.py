"""Runs: one experiment from its command line to its folder."""

from dlflax.config.config import Config
from dlflax.config.experiment import Experiment, find
from dlflax.config.run_folder import load_config
from dlflax.config.saved import config_from_json
from dlflax.config.serialize import to_json
from dlflax.run.cross_validation import cross_validate
from dlflax.run.execute import run
from dlflax.run.exit_codes import with_exit_codes
from dlflax.run.train_command import main, parse

__all__ = [
    "Config", "Experiment", "config_from_json", "cross_validate", "find", "load_config",
    "main", "parse", "run", "to_json", "with_exit_codes",
]  # fmt: skip
