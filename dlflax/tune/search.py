"""The pool of a sweep, put together: sampler, rule, budget, workers, checkpoint."""

import jax

from dlflax.tune.bind import Bound
from dlflax.tune.checkpoint import PoolCheckpoint
from dlflax.tune.config import Sweep
from dlflax.tune.cost import costs
from dlflax.tune.encoding import Encoding
from dlflax.tune.launch import open_launcher
from dlflax.tune.members import Members
from dlflax.tune.orders import Workers
from dlflax.tune.pool import Pool
from dlflax.tune.report import Watch
from dlflax.tune.rules import Budget
from dlflax.tune.samplers import sampler_of
from dlflax.tune.stopping import is_enough
from dlflax.tune.study import Study


def make_pool(
    sweep: Sweep, bound: Bound, study: Study, members: Members, digest: str, watch: Watch, log
) -> Pool:
    """Returns the pool of a sweep, which was begun or not."""
    space, job = bound.space, bound.job(sweep)
    price = costs(sweep.cost, bound.recipes, sweep.hparams, bound.train["inputs"])
    launcher = open_launcher(
        sweep.launcher, sweep.workers, sweep.run_dir, platform=jax.default_backend(),
        devices=jax.local_device_count(), options=sweep.options(), log=log,
    )  # fmt: skip
    arrays = {"train": bound.train, "val": bound.val, "pretrained": bound.pretrained or {}}
    return Pool(
        job, study, sampler_of(sweep.search.sampler or sweep.sampler, space, sweep.seed),
        sweep.search, Budget(sweep.trials, sweep.epochs, Encoding(space.distributions).size()),
        sweep.population, Workers(launcher, job, arrays, sweep.run_dir, log), members,
        PoolCheckpoint(sweep.run_dir, digest, log), watch,
        is_enough=lambda trials: sweep.auto and is_enough(
            space, study.direction, sweep.seed, sweep.tolerance, trials, log
        ),
        costs=lambda params: price and {
            sweep.cost: price[space.apply(params, bound.recipe, sweep.hparams)[0]]
        },
        log=log,
    )  # fmt: skip
