"""Bayesian optimization by a Gaussian process: pure functions of the trials so far.

The model: a Matern-5/2 kernel with a length scale a column, an amplitude and fitted noise, under
log-normal priors; that of the length scales grows with the columns (Hvarfner, Hellsten and Nardi,
ICML 2024). The next trial maximizes the log expected improvement (Ament et al. 2023), averaged over
fantasies, joint samples of the pending trials (Snoek et al. 2012).

All is computed in float64 on the CPU. Arrays are padded to powers of two, so that a study of any
length compiles a handful of programs. scipy is imported in functions: start-up time counts.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import log_ndtr, ndtr

from dlflax.tune.suggest.encoding import Encoding

SAMPLES = 64  # fantasies
CANDIDATES = 512  # all over the space; as many again at most are near the best trials
CLIMBS = 8  # from the best candidates
STEPS = 50  # of L-BFGS in a climb
MOST = 1024  # trials of the model
FITTED = 128  # trials that its length scales, amplitude and noise are fitted to
ROWS = 64  # of an array at least
# Location of a log length scale's prior in one dimension; its deviation is 1. With the sqrt(2) and
# sqrt(3) of Hvarfner et al. 64 trials in batches of 16 ended 0.3 above the minimum of Hartmann6 in
# place of 0.05 (benchmarks/yardsticks.py).
LOCATION = -2.5
CHOICE = 0.0  # the same for the columns of a choice, two of which differ between choices
NOISE = -6.0  # location of the log noise variance's prior; its deviation is 2
LEAST_NOISE = 1e-7  # of a variance of 1


Trials = Sequence[tuple[Mapping[str, Any], float]]
"""(parameters, value), lower is better; +inf and NaN count as the worst of the others."""


def fit(encoding: Encoding, finished: Trials, known: Trials = ()) -> tuple[Trials, tuple]:
    """Returns (the finished trials of the model, its arrays as `_model` returns them). known:
    trials of another study, which is one more dimension with a fitted length scale (Swersky, Snoek
    and Adams 2013, multi-task)."""
    finished, points, values = _select(encoding, finished)
    _, known_points, known_values = _select(encoding, known, FITTED // 2)
    with float64():
        _, model = _fit_model(encoding, points, warp(values), known_points, warp(known_values))
        return finished, jax.block_until_ready(model)


def suggest(
    encoding: Encoding, fitted: tuple[Trials, tuple], pending: Sequence[Mapping[str, Any]],
    seed: Any,
) -> dict[str, Any]:  # fmt: skip
    """Returns the parameters of the next trial. fitted: by `fit`; pending: those of trials in
    training."""
    rng, (finished, model) = np.random.default_rng(seed), fitted
    with float64():
        improvement = _Improvement(model, encoding.encode(pending), rng)
        return _best(encoding, improvement, finished, pending, rng)


def expected_gain(encoding: Encoding, finished: Trials, seed: int) -> tuple[float, float]:
    """Returns (the expected gain of the best next trial, the noise of a value), both in the unit of
    the values."""
    finished, points, values = _select(encoding, finished)
    warped, rng = warp(values), np.random.default_rng(seed)
    with float64():
        raw, model = _fit_model(encoding, points, warped)
        improvement = _Improvement(model, encoding.encode([]), rng)
        gain = float(improvement(_candidates(encoding, finished, rng)).max())
    # the unit of the warped values near the best: up to the median and beyond they are linear
    finite, unit = values[np.isfinite(values)], 0.0
    above = finite[(finite > finite.min()) & (finite >= np.median(finite))]
    if len(above):
        ends = finite.min(), above.min()
        low, high = (warped[np.argmax(values == end)] for end in ends)
        unit = float((ends[1] - ends[0]) / (high - low))
    return math.exp(gain + raw[-2] / 2) * unit, math.exp(raw[-1] / 2) * unit


def _select(encoding, trials, most=MOST):
    """Returns at most so many trials, the most informative ones, their points and their values."""
    trials = [trials[i] for i in _most_informative([value for _, value in trials], most)]
    points = encoding.encode([params for params, _ in trials])
    return trials, points, np.array([value for _, value in trials], np.float64)


def _fit_model(encoding, points, values, known_points=(), known_values=()):
    """Returns (`raw` of `_loss`, the model) of warped values. With those of another study, points
    have one more column, 1 for the other study."""
    fitted = _most_informative(values, FITTED - len(known_points))
    every = LOCATION + 0.5 * math.log(len(encoding.distributions))
    locations, in_study = np.where(encoding.one_hot, CHOICE, every), np.ones(len(points))
    if len(known_points):
        locations = np.append(locations, CHOICE)
        points = np.concatenate([_with_column(points, 0), _with_column(known_points, 1)])
        values = np.concatenate([values, known_values])
        fitted = np.append(fitted, np.arange(len(in_study), len(points)))
        in_study = np.append(in_study, np.zeros(len(known_points)))
    raw = _fit(*_arrays(points[fitted], values[fitted]), locations)
    return raw, _model(raw, *_arrays(points, values), pad(in_study))


def _with_column(points, value):
    return np.insert(points, points.shape[1], value, axis=1)


def warp(values: np.ndarray) -> np.ndarray:
    """Returns values with a mean of 0 and a deviation of 1, in the same order. Far above the median
    they are bent towards a bound, so that a diverged trial does not flatten all others."""
    if not np.isfinite(values).any():
        return np.zeros(len(values))
    worst = values[np.isfinite(values)].max()
    values = np.minimum(np.nan_to_num(values, nan=np.inf), worst)
    middle = np.median(values)
    z = (values - middle) / ((middle - values.min()) or np.ptp(values) or 1.0)
    knee = 5.0  # the best is at -1, the median at 0
    above = np.maximum(z - knee, 0)
    z = np.minimum(z, knee) + above / (1 + above / knee)
    return (z - z.mean()) / (z.std() or 1.0)


def _most_informative(values, most: int):
    """Returns the indices of at most so many values: the best, and the newest of the others."""
    if len(values) <= most:
        return np.arange(len(values))
    best = np.argsort(values, kind="stable")[: most // 2]
    newest = np.setdiff1d(np.arange(len(values)), best)[-(most // 2) :]
    return np.sort(np.concatenate([best, newest]))


@contextlib.contextmanager
def float64():
    """Computes in float64 on the CPU, in one thread of BLAS: bits depend on their number."""
    import scipy.linalg  # noqa: F401  (whose BLAS is limited once it is loaded)
    import threadpoolctl

    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings():  # of two OpenMP libraries, which PyTorch may bring
            warnings.simplefilter("ignore", RuntimeWarning)
            stack.enter_context(threadpoolctl.threadpool_limits(1, user_api="blas"))
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS is without the CPU
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        stack.enter_context(jax.enable_x64(True))
        yield


def pad(array, least: int = ROWS):
    """Returns the array with zeros below, to a power of two of rows."""
    rows = max(least, 1 << max(0, len(array) - 1).bit_length())
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]))])


def _arrays(points, values):
    """Returns x (n, d), y (n,) and 1 for rows that count (n,), padded."""
    return pad(points), pad(values), pad(np.ones(len(points)))


def matern(a, b, scales):
    """Returns the Matern-5/2 kernel (n, m) of points (n, d) and (m, d)."""
    square = jnp.sum(((a / scales[None])[:, None] - (b / scales[None])[None]) ** 2, -1)
    distance = jnp.sqrt(5 * square + 1e-20)  # a root has no derivative at 0
    return (1 + distance + distance**2 / 3) * jnp.exp(-distance)


def _noisy(x, counts, scales, noise):
    """Returns the kernel (n, n) of noisy values; rows of padding are independent."""
    kernel = matern(x, x, scales) * counts[:, None] * counts[None]
    return kernel + jnp.diag(jnp.where(counts > 0, noise, 1))


def _loss(raw, x, y, counts, locations):
    """Returns minus the log posterior, up to a constant. raw (d + 2,): the logarithms of the length
    scales, and of the amplitude and the noise as variances."""
    scales, amplitude, noise = raw[:-2], raw[-2], raw[-1]
    kernel = _noisy(x, counts, jnp.exp(scales), jnp.exp(noise - amplitude))
    loss = minus_log_density(kernel, y * jnp.exp(-amplitude / 2)) + counts.sum() * amplitude / 2
    loss += jnp.sum((scales - locations) ** 2) / 2
    return loss + amplitude**2 / 2 + (noise - NOISE) ** 2 / 8


@jax.custom_vjp
def minus_log_density(kernel, y):
    """Returns minus the log density of N(0, kernel) at y, up to a constant."""
    return _density(kernel, y)[0]


def _density(kernel, y):
    factor = jnp.linalg.cholesky(kernel)
    inverse = cho_solve((factor, True), jnp.eye(len(y)))
    weights = inverse @ y
    return y @ weights / 2 + jnp.sum(jnp.log(jnp.diag(factor))), (inverse, weights)


def _density_gradient(saved, gradient):
    inverse, weights = saved  # one inverse is quicker than the derivative of a Cholesky factor
    return gradient * (inverse - jnp.outer(weights, weights)) / 2, gradient * weights


minus_log_density.defvjp(_density, _density_gradient)
_losses = jax.jit(jax.vmap(jax.value_and_grad(_loss), (0, None, None, None, None)))


def _fit(x, y, counts, locations):
    """Returns the most probable `raw` of `_loss`, of several climbs."""
    d = x.shape[1]
    begin = [
        [*scales, 0, noise]
        for scales, noise in ((locations, -4), (np.full(d, -1.0), -6), (np.zeros(d), -2))
    ]
    bounds = [(math.log(5e-3), math.log(1e4))] * d + [(-5, 5), (math.log(LEAST_NOISE), 1.5)]
    ends, losses = minimize(
        lambda raw: _losses(raw, x, y, counts, locations), np.array(begin), bounds, 2 * STEPS
    )
    return ends[np.argmin(losses)]


def minimize(function: Callable, begin, bounds, steps: int):
    """Returns (points (n, d), values (n,)) of L-BFGS from all rows of begin (n, d) at once.
    function: points -> (values, gradients) by row."""
    import scipy.optimize

    def evaluate(flat):
        values, gradients = map(np.asarray, function(flat.reshape(begin.shape)))
        good = np.isfinite(values)
        return np.where(good, values, np.inf), np.where(good[:, None], gradients, 0)

    def total(flat):
        values, gradients = evaluate(flat)
        return np.minimum(values, 1e6).sum(), gradients.ravel()

    ends = scipy.optimize.minimize(
        total, begin.ravel(), jac=True, method="L-BFGS-B", bounds=bounds * len(begin),
        options={"maxiter": steps, "maxfun": 2 * steps},
    ).x  # fmt: skip
    return ends.reshape(begin.shape), evaluate(ends)[0]


class _Improvement:
    """The log expected improvement, averaged over fantasies of the pending trials."""

    def __init__(self, model, pending, rng):
        self._columns = len(model[2])
        pending = self._in_study(pending)
        counts = pad(np.ones(len(pending)), least=16)
        normals = rng.standard_normal((SAMPLES, len(counts)))
        self._args = model, _fantasies(model, pad(pending, least=16), counts, normals)

    def __call__(self, points):
        """Returns the improvement (n,) at points (n, d)."""
        return np.asarray(_improvements(pad(self._in_study(points)), *self._args))[: len(points)]

    def descent(self, points):
        """Returns (minus the improvement, its gradient) at points (n, d)."""
        values, gradients = _descents(self._in_study(points), *self._args)
        return values, np.asarray(gradients)[:, : points.shape[1]]

    def _in_study(self, points):
        """Returns points with the column of the study, if the model has two studies."""
        return points if points.shape[1] == self._columns else _with_column(points, 0)


@jax.jit
def _model(raw, x, y, counts, in_study):
    """Returns points, scales, the inverse of the kernel's Cholesky factor, that times the values,
    and the lowest mean at a point of this study."""
    scales, noise = jnp.exp(raw[:-2]), jnp.exp(raw[-1] - raw[-2])
    factor = jnp.linalg.cholesky(_noisy(x, counts, scales, noise))
    inverse = solve_triangular(factor, jnp.eye(len(x)), lower=True)
    half = inverse @ (y * jnp.exp(-raw[-2] / 2))
    means = matern(x, x, scales) @ (counts * (inverse.T @ half))
    lowest = jnp.min(jnp.where(in_study > 0, means, jnp.inf))
    best = jnp.where(in_study.sum() > 0, lowest, 0)
    return x, counts, scales, inverse, half, best


@jax.jit
def _fantasies(model, pending, is_pending, normals):
    """Returns joint samples of the function at the pending points, for `_improvement`. They have no
    noise, so that there is no gain at these points."""
    x, counts, scales, inverse, half, best = model
    across = inverse @ (matern(x, pending, scales) * counts[:, None] * is_pending[None])
    covariance = _noisy(pending, is_pending, scales, LEAST_NOISE) - across.T @ across
    factor = jnp.linalg.cholesky(covariance)
    samples = (half @ across)[None] + normals @ factor.T
    bests = jnp.minimum(best, jnp.min(jnp.where(is_pending[None] > 0, samples, jnp.inf), axis=1))
    inverse_pending = solve_triangular(factor, jnp.eye(len(pending)), lower=True)
    return pending, is_pending, across, inverse_pending, normals, bests


def _improvement(point, model, fantasies):
    x, counts, scales, inverse, half, _ = model
    pending, is_pending, across, inverse_pending, normals, bests = fantasies
    k = inverse @ (matern(point[None], x, scales)[0] * counts)
    beside = inverse_pending @ (matern(point[None], pending, scales)[0] * is_pending - k @ across)
    deviation = jnp.sqrt(jnp.maximum(1 - k @ k - beside @ beside, 1e-12))
    improvement = log_improvement((bests - half @ k - normals @ beside) / deviation)
    return jax.nn.logsumexp(improvement + jnp.log(deviation)) - math.log(SAMPLES)


_improvements = jax.jit(jax.vmap(_improvement, (0, None, None)))
_descents = jax.jit(
    jax.vmap(jax.value_and_grad(lambda *args: -_improvement(*args)), (0, None, None))
)


def log_improvement(u):
    """Returns log(pdf(u) + u cdf(u)) of the standard normal distribution, exact to 1e-6 above -1e4
    and constant below."""
    u = jnp.maximum(u, -1e4)
    half_log = 0.5 * math.log(2 * math.pi)
    small, large = jnp.minimum(u, -1.0), jnp.maximum(u, -1.0)
    mills = jnp.exp(log_ndtr(small) + 0.5 * small**2 + half_log)
    tail = -0.5 * u**2 - half_log + jnp.log1p(jnp.minimum(small * mills, -1e-300))
    body = jnp.log(jnp.exp(-0.5 * large**2 - half_log) + large * ndtr(large))
    return jnp.where(u < -1, tail, body)


def _best(encoding, improvement, finished, pending, rng):
    """Returns the configuration of the largest improvement, a new one in a finite space."""
    points = _candidates(encoding, finished, rng)
    free = encoding.continuous
    if not free.any():
        tried = {encoding.key(params) for params in [*(params for params, _ in finished), *pending]}
        return _best_of_finite(encoding, improvement, points, tried)
    starts = points[np.argsort(-improvement(points), kind="stable")[:CLIMBS]]

    def descent(numbers):  # the choices are fixed
        full = starts.copy()
        full[:, free] = numbers
        values, gradients = improvement.descent(full)
        return values, gradients[:, free]

    ends, losses = minimize(descent, starts[:, free], [(0, 1)] * int(free.sum()), STEPS)
    best = starts[np.argmin(losses)]
    best[free] = ends[np.argmin(losses)]
    return encoding.decode(best)


def _best_of_finite(encoding, improvement, points, tried):
    """Returns the end of a climb from the best new point, from neighbour to better neighbour."""
    best, most = None, -np.inf
    trials = map(encoding.decode, points[np.argsort(-improvement(points), kind="stable")])
    trials = next(([params] for params in trials if encoding.key(params) not in tried), [])
    while trials:
        gains = improvement(encoding.encode(trials))
        if gains.max() <= most:
            break
        best, most = trials[int(np.argmax(gains))], gains.max()
        trials = [p for p in encoding.neighbours(best) if encoding.key(p) not in tried]
    return best or encoding.first_new(tried) or encoding.decode(points[0])


def _candidates(encoding, finished, rng):
    """Returns points (n, d): all of a small space; else some all over it, some near the best."""
    if (encoding.size() or math.inf) <= 2 * CANDIDATES:
        return encoding.encode(list(encoding.configurations()))
    from scipy.stats import qmc

    spread = qmc.Sobol(len(encoding.distributions), rng=rng).random(CANDIDATES)
    points = [encoding.encode(encoding.spread(spread))]
    for params, _ in sorted(finished, key=lambda pair: pair[1])[:5]:
        points.append(encoding.encode(encoding.neighbours(params)[: CANDIDATES // 16]))
        center = encoding.encode([params])
        for radius in (0.1, 0.03, 0.01):
            steps = radius * rng.standard_normal((CANDIDATES // 20, encoding.width))
            points.append(np.clip(center + steps * encoding.continuous[None], 0, 1))
    return np.concatenate(points)
