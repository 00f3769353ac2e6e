"""Bayesian optimization by a Gaussian process: pure functions of the trials so far.

The model: a Matern-5/2 kernel with a length scale a column, an amplitude and fitted noise, under
log-normal priors; that of the length scales grows with the columns (Hvarfner, Hellsten and Nardi,
ICML 2024). The next trial is where the expected improvement, as a logarithm (Ament et al. 2023), is
largest on average over joint samples of what the unfinished trials may turn out to be (Snoek et
al. 2012).

All is computed in float64 on the CPU, whatever the rest of the process does. Arrays are padded to
powers of two, so that a study of any length compiles a handful of programs. scipy is imported where
it is used: start-up time counts.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import log_ndtr, ndtr

from dlflax.tune.encoding import Encoding

SAMPLES = 64  # joint samples of the unfinished trials
CANDIDATES = 512  # spread over the space; as many again at most are near the best trials
CLIMBS = 8  # from the best candidates
STEPS = 50  # of L-BFGS in a climb
MOST = 1024  # trials that the model is of, and
FITTED = 128  # those that its length scales, amplitude and noise are of
ROWS = 64  # that arrays have at least
LOCATION = -2.5  # of a length scale's logarithm in one dimension; its deviation is 1. Hvarfner et
# al. have sqrt(2) and sqrt(3), with which 64 trials in batches of 16 ended 0.3 above the minimum of
# Hartmann6 in place of 0.05 (benchmarks/yardsticks.py)
CHOICE = 0.0  # the same for the columns of a choice, of which two differ between choices
NOISE = -6.0  # location of the logarithm of the noise's variance; its deviation is 2
LEAST_NOISE = 1e-7  # of a variance of 1


class Fitted(NamedTuple):
    """A model of finished trials, which pending ones do not change."""

    finished: Sequence[tuple[Mapping[str, Any], float]]
    """The trials of the model."""
    model: tuple
    """Arrays, as `_model` returns them."""


def fit(
    encoding: Encoding,
    finished: Sequence[tuple[Mapping[str, Any], float]],
    known: Sequence[tuple[Mapping[str, Any], float]] = (),
) -> Fitted:
    """Returns the model of finished trials: (parameters, value), the smallest value being the best;
    +inf and NaN count as the worst of the others. known: like finished, of another study: it is one
    more dimension, whose fitted length scale tells how much the one study says about the other
    (Swersky, Snoek and Adams 2013, multi-task)."""
    finished, points, values = _read(encoding, finished)
    _, others, of_others = _read(encoding, known, FITTED // 2)
    with float64():
        _, model = _modelled(encoding, points, warped(values), others, warped(of_others))
        return Fitted(finished, jax.block_until_ready(model))


def suggest(
    encoding: Encoding, fitted: Fitted, pending: Sequence[Mapping[str, Any]], seed: Any
) -> dict[str, Any]:
    """Returns the parameters of the next trial. pending: those of trials in training."""
    rng = np.random.default_rng(seed)
    with float64():
        improvement = _Improvement(fitted.model, encoding.encode(pending), rng)
        return _best(encoding, improvement, fitted.finished, pending, rng)


def expected_gain(
    encoding: Encoding, finished: Sequence[tuple[Mapping[str, Any], float]], seed: int
) -> tuple[float, float]:
    """(what the best next trial is expected to gain over the best one, the deviation of a value
    from what the model says of it), both in the unit of the values. finished: as for `suggest`."""
    finished, points, values = _read(encoding, finished)
    bent, rng = warped(values), np.random.default_rng(seed)
    unit = _unit(values, bent)
    with float64():
        raw, model = _modelled(encoding, points, bent)
        improvement = _Improvement(model, encoding.encode([]), rng)
        gain = float(improvement(_candidates(encoding, finished, rng)).max())
    return math.exp(gain + raw[-2] / 2) * unit, math.exp(raw[-1] / 2) * unit


def _read(encoding, finished, most=MOST):
    """(those that the model is of, their points, their values)."""
    finished = [finished[i] for i in _most_telling([value for _, value in finished], most)]
    points = encoding.encode([params for params, _ in finished])
    return finished, points, np.array([value for _, value in finished], np.float64)


def _modelled(encoding, points, values, others=(), of_others=()):
    """(the fitted numbers, the model) of warped values; with those of another study, points have
    one more column, 1 for theirs."""
    fitted = _most_telling(values, FITTED - len(others))
    locations, own = _locations(encoding), np.ones(len(points))
    if len(others):
        locations = np.append(locations, CHOICE)
        points = np.concatenate([_column(points, 0), _column(others, 1)])
        values = np.concatenate([values, of_others])
        fitted = np.append(fitted, np.arange(len(own), len(points)))
        own = np.append(own, np.zeros(len(others)))
    raw = _fit(*_arrays(points[fitted], values[fitted]), locations)
    return raw, _model(raw, *_arrays(points, values), padded(own))


def _column(points, value):
    """With one more column."""
    return np.insert(points, points.shape[1], value, axis=1)


def _unit(values, bent) -> float:
    """Returns the difference of values that is 1 near the best of the warped ones, `bent`."""
    finite = values[np.isfinite(values)]
    # up to the median and beyond, `warped` is a straight line
    above = finite[(finite > finite.min()) & (finite >= np.median(finite))]
    if not len(above):
        return 0.0
    ends = finite.min(), above.min()
    low, high = (bent[np.argmax(values == end)] for end in ends)
    return float((ends[1] - ends[0]) / (high - low))


def warped(values: np.ndarray) -> np.ndarray:
    """Values with a mean of 0 and a deviation of 1, in the same order: so far above the median that
    they tell of failure only, they are bent towards a bound, which keeps a diverged trial from
    flattening all others."""
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


def _most_telling(values, most: int):
    """The places of at most so many of them: the best, and the newest of the others."""
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
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS leaves the CPU out
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        stack.enter_context(jax.enable_x64(True))
        yield


def padded(array, least: int = ROWS):
    """With zeros below, to a power of two of rows."""
    rows = max(least, 1 << max(0, len(array) - 1).bit_length())
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]))])


def _arrays(points, values):
    """x (n, d), y (n,) and which rows count (n,), padded."""
    return padded(points), padded(values), padded(np.ones(len(points)))


def matern(a, b, scales):
    """Matern-5/2 of (n, d) and (m, d): (n, m)."""
    square = jnp.sum(((a / scales[None])[:, None] - (b / scales[None])[None]) ** 2, -1)
    distance = jnp.sqrt(5 * square + 1e-20)  # a root has no derivative at 0
    return (1 + distance + distance**2 / 3) * jnp.exp(-distance)


def _noisy(x, counts, scales, noise):
    """The kernel (n, n) of noisy values; rows that do not count depend on nothing."""
    kernel = matern(x, x, scales) * counts[:, None] * counts[None]
    return kernel + jnp.diag(jnp.where(counts > 0, noise, 1))


def _locations(encoding) -> np.ndarray:
    """Returns the locations of the priors of the length scales' logarithms (width,)."""
    every = LOCATION + 0.5 * math.log(len(encoding.distributions))
    return np.where(encoding.one_hot, CHOICE, every)


def _loss(raw, x, y, counts, locations):
    """Minus the logarithm of the posterior, up to a constant. raw (d + 2,): the logarithms of the
    length scales, of the amplitude and of the noise, both as variances."""
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


def _density_gradient(known, gradient):
    inverse, weights = known  # one inverse is quicker than the derivative of a Cholesky factor
    return gradient * (inverse - jnp.outer(weights, weights)) / 2, gradient * weights


minus_log_density.defvjp(_density, _density_gradient)
_losses = jax.jit(jax.vmap(jax.value_and_grad(_loss), (0, None, None, None, None)))


def _fit(x, y, counts, locations):
    """The most probable `raw` of `_loss`, of several climbs."""
    d = x.shape[1]
    begin = [
        [*scales, 0, noise]
        for scales, noise in ((locations, -4), (np.full(d, -1.0), -6), (np.zeros(d), -2))
    ]
    bounds = [(math.log(5e-3), math.log(1e4))] * d + [(-5, 5), (math.log(LEAST_NOISE), 1.5)]
    found, losses = descended(
        lambda raw: _losses(raw, x, y, counts, locations), np.array(begin), bounds, 2 * STEPS
    )
    return found[np.argmin(losses)]


def descended(function: Callable, begin, bounds, steps: int):
    """L-BFGS from all rows of begin (n, d) at once: (points (n, d), values (n,)). function: points
    -> (values, gradients), each of its own row."""
    import scipy.optimize

    def evaluated(flat):
        values, gradients = map(np.asarray, function(flat.reshape(begin.shape)))
        good = np.isfinite(values)
        return np.where(good, values, np.inf), np.where(good[:, None], gradients, 0)

    def summed(flat):
        values, gradients = evaluated(flat)
        return np.minimum(values, 1e6).sum(), gradients.ravel()

    found = scipy.optimize.minimize(
        summed, begin.ravel(), jac=True, method="L-BFGS-B", bounds=bounds * len(begin),
        options={"maxiter": steps, "maxfun": 2 * steps},
    ).x  # fmt: skip
    return found.reshape(begin.shape), evaluated(found)[0]


class _Improvement:
    """The logarithm of the expected improvement, on average over what the waiting may become."""

    def __init__(self, model, waiting, rng):
        self._columns = len(model[2])
        waiting = self._own(waiting)
        unknown = padded(np.ones(len(waiting)), least=16)
        normals = rng.standard_normal((SAMPLES, len(unknown)))
        fantasies = _fantasies(model, padded(waiting, least=16), unknown, normals)
        self._known = model, fantasies

    def __call__(self, points):
        """(n,) of points (n, d)."""
        own = self._own(points)
        return np.asarray(_improvements(padded(own), *self._known))[: len(points)]

    def descent(self, points):
        """(minus what a call gives, its gradient) at points (n, d)."""
        values, gradients = _descents(self._own(points), *self._known)
        return values, np.asarray(gradients)[:, : points.shape[1]]

    def _own(self, points):
        """Returns points with the column of this study, where the model has another one's too."""
        return points if points.shape[1] == self._columns else _column(points, 0)


@jax.jit
def _model(raw, x, y, counts, own):
    """Returns what pending trials do not change: points, scales, the inverse of the kernel's
    Cholesky factor, that times the values, and the lowest mean at a point of this study."""
    scales, noise = jnp.exp(raw[:-2]), jnp.exp(raw[-1] - raw[-2])
    factor = jnp.linalg.cholesky(_noisy(x, counts, scales, noise))
    inverse = solve_triangular(factor, jnp.eye(len(x)), lower=True)
    half = inverse @ (y * jnp.exp(-raw[-2] / 2))
    means = matern(x, x, scales) @ (counts * (inverse.T @ half))
    best = jnp.where(own.sum() > 0, jnp.min(jnp.where(own > 0, means, jnp.inf)), 0)
    return x, counts, scales, inverse, half, best


@jax.jit
def _fantasies(model, waiting, unknown, normals):
    """Joint samples of the function at the waiting points, without noise, so that nothing is left
    to gain there: what `_improvement` needs of them."""
    x, counts, scales, inverse, half, best = model
    across = inverse @ (matern(x, waiting, scales) * counts[:, None] * unknown[None])
    covariance = _noisy(waiting, unknown, scales, LEAST_NOISE) - across.T @ across
    factor = jnp.linalg.cholesky(covariance)
    samples = (half @ across)[None] + normals @ factor.T
    bests = jnp.minimum(best, jnp.min(jnp.where(unknown[None] > 0, samples, jnp.inf), axis=1))
    own_inverse = solve_triangular(factor, jnp.eye(len(waiting)), lower=True)
    return waiting, unknown, across, own_inverse, normals, bests


def _improvement(point, model, fantasies):
    x, counts, scales, inverse, half, _ = model
    waiting, unknown, across, own_inverse, normals, bests = fantasies
    k = inverse @ (matern(point[None], x, scales)[0] * counts)
    own = own_inverse @ (matern(point[None], waiting, scales)[0] * unknown - k @ across)
    deviation = jnp.sqrt(jnp.maximum(1 - k @ k - own @ own, 1e-12))
    improvement = log_improvement((bests - half @ k - normals @ own) / deviation)
    return jax.nn.logsumexp(improvement + jnp.log(deviation)) - math.log(SAMPLES)


_improvements = jax.jit(jax.vmap(_improvement, (0, None, None)))
_descents = jax.jit(
    jax.vmap(jax.value_and_grad(lambda *args: -_improvement(*args)), (0, None, None))
)


def log_improvement(u):
    """log(pdf(u) + u cdf(u)) of the standard normal distribution, exact to 1e-6 where u is above
    -1e4 and as there below."""
    u = jnp.maximum(u, -1e4)
    half_log = 0.5 * math.log(2 * math.pi)
    small, large = jnp.minimum(u, -1.0), jnp.maximum(u, -1.0)
    mills = jnp.exp(log_ndtr(small) + 0.5 * small**2 + half_log)
    tail = -0.5 * u**2 - half_log + jnp.log1p(jnp.minimum(small * mills, -1e-300))
    body = jnp.log(jnp.exp(-0.5 * large**2 - half_log) + large * ndtr(large))
    return jnp.where(u < -1, tail, body)


def _best(encoding, improvement, finished, waiting, rng):
    """Returns the configuration of the largest improvement; in a finite space one not tried."""
    points = _candidates(encoding, finished, rng)
    free = encoding.continuous
    if not free.any():
        tried = {encoding.key(params) for params in [*(params for params, _ in finished), *waiting]}
        return _best_of_finite(encoding, improvement, points, tried)
    starts = points[np.argsort(-improvement(points), kind="stable")[:CLIMBS]]

    def descent(numbers):  # the choices stay as they are
        full = starts.copy()
        full[:, free] = numbers
        values, gradients = improvement.descent(full)
        return values, gradients[:, free]

    ends, losses = descended(descent, starts[:, free], [(0, 1)] * int(free.sum()), STEPS)
    best = starts[np.argmin(losses)]
    best[free] = ends[np.argmin(losses)]
    return encoding.decode(best)


def _best_of_finite(encoding, improvement, points, tried):
    """From the best of the points on, to the best neighbour while there is a better one."""
    best, most = None, -np.inf
    trials = map(encoding.decode, points[np.argsort(-improvement(points), kind="stable")])
    trials = next(([params] for params in trials if encoding.key(params) not in tried), [])
    while trials:
        found = improvement(encoding.encode(trials))
        if found.max() <= most:
            break
        best, most = trials[int(np.argmax(found))], found.max()
        trials = [p for p in encoding.neighbours(best) if encoding.key(p) not in tried]
    return best or encoding.untried(tried) or encoding.decode(points[0])


def _candidates(encoding, finished, rng):
    """Returns points (n, d): all of a small space; else some all over it, some near the best."""
    if (encoding.size() or math.inf) <= 2 * CANDIDATES:
        return encoding.encode(list(encoding.everything()))
    from scipy.stats import qmc

    spread = qmc.Sobol(len(encoding.distributions), rng=rng).random(CANDIDATES)
    found = [encoding.encode(encoding.spread(spread))]
    for params, _ in sorted(finished, key=lambda each: each[1])[:5]:
        found.append(encoding.encode(encoding.neighbours(params)[: CANDIDATES // 16]))
        point = encoding.encode([params])
        for radius in (0.1, 0.03, 0.01):
            steps = radius * rng.standard_normal((CANDIDATES // 20, encoding.width))
            found.append(np.clip(point + steps * encoding.continuous[None], 0, 1))
    return np.concatenate(found)
