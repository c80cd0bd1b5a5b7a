"""A noise conditional density of a table, as an estimator of scikit-learn."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from ncml.checks import check_count, check_positive, is_real, kind_of
from ncml.density import CellDensity, sampleable
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.estimator.bounds import Bounds
from ncml.estimator.columns import Columns
from ncml.estimator.completion import completed, fillable, in_form
from ncml.estimator.defaults import default_factory
from ncml.estimator.form import Categories, TableForm
from ncml.estimator.objective import DensityFactory, TableObjective, score_of_rows, seed_of, seeded, untrained_density
from ncml.estimator.stopping import Watch, trained
from ncml.estimator.traits import Array, check_not_infinite
from ncml.estimator.weights import weighted
from ncml.noise import LinearVESDE, NoiseProcess
from ncml.objective import LogUniformTimes, TimeSampler

__all__ = ["NCMLDensityEstimator", "unfitted"]

MOST_HELD = 1000  # rows held out to stop early
ROWS = 1024  # evaluated at once: what comes between stays in the cache


def unfitted(estimator: NCMLDensityEstimator | None) -> NCMLDensityEstimator:
    """A copy to fit of the parameter ``estimator`` of what is built on a density; the default if None."""
    if not isinstance(estimator, NCMLDensityEstimator | None):
        raise ArgumentTypeError(f"estimator: got {kind_of(estimator)}; expected an NCMLDensityEstimator, or None")
    return NCMLDensityEstimator() if estimator is None else cast(NCMLDensityEstimator, clone(estimator))


class NCMLDensityEstimator(DensityMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    r"""The density of a table at every noise level, :math:`\log p_t(x)`.

    Integers and other columns on a lattice are spread by uniform noise within their step, afresh in every batch, so
    that the density stays finite. At t = 0 the probability of the step itself is learned instead, and
    :meth:`score_samples` has it over the step's width,

    .. math:: \log p(x_i \mid x_{<i}) = \log \tfrac1w P(|X_i - x_i| < \tfrac w2 \mid x_{<i}),

    given the values before as they are: for integers (w = 1) the probability of the value, and the law of
    :meth:`sample`. A density that is no :class:`~ncml.density.CellDensity` learns spread values at t = 0 too, and is
    averaged over K points of the step, :math:`\frac1K \sum_k p(x + w (u_k - \frac12))`. Columns with one value, and
    affine copies of others, are set aside with a warning: the density is that of the other columns.

    Missing values, NaN, are left out: :meth:`score_samples` is the density of the values that are there, learned by
    hiding further ones at random (:class:`~ncml.densities.MarginalMADE`).

    Categories are integers to the density, codes in the order of their values, and it is 0 beyond the last: at t = 0 it
    gives their probabilities, whose limit for a good model does not depend on the order. With noise, codes blur into
    their neighbours, and the order has a meaning.

    Args:
        density: Takes ``(event_shape, process)`` to an untrained density, with ``event_shape = (number of columns,)``.
            Default: ``default_density`` with the dropout and linear components that suit the rows (``dropout_for``,
            ``linear_components_for``), or ``marginal_density`` for rows with gaps.
            For gaps one of the observed values given their mask, as :class:`~ncml.densities.MarginalMADE` is.
        process: The noise process, in units of the columns' scales. Default ``LinearVESDE(2.0)``: t is the standard
            deviation of the noise, at most 2 of the columns'.
        times: Which noise levels are trained. Default ``LogUniformTimes(0.02, p_zero=0.3)``; ``AtZero()`` is maximum
            likelihood.
        bounds: For columns, by name or index, the interval ``(low, high)`` in which their values lie, None for
            infinity. Such columns are modelled by their logarithm or logit, and the density is 0 outside.
        categories: Columns that are categories, by name or index, or a mapping of such columns to all their values in
            the order wanted. Of a data frame, columns of the dtype ``category`` are some anyway; booleans are numbers.
        missing: Whether rows may have gaps; None: if those given to ``fit`` do. True also prepares for gaps to come.
        max_steps: Largest number of optimizer steps; the learning rate falls to zero over them. Where ``n_iter_``
            comes near it, more may help.
        batch_size: Rows per step.
        learning_rate: Adam's learning rate at the start. Default: the best of four on most of fourteen tables, by
            held-out rows.
        validation_fraction: Share of the rows held out, 1,000 at most, to stop early by their exact log-likelihood at
            t = 0 under the moving average of the weights; 0 takes all steps.
        patience: Looks at the held-out rows (one every 25 steps) without a better likelihood before stopping.
        dequantisations: Points K within a step over which integer columns are averaged under a density that is no
            :class:`~ncml.density.CellDensity`, as a flow is none. The default MADE has the steps' exact probabilities.
        random_state: Seed of the initial weights, the batches, the noise and the held-out rows.
        device: Where to compute, such as "cuda". Default: the CPU.
        verbose: Show a progress bar (needs tqdm).

    Attributes:
        density_: The trained density, in float64, of the columns as ``columns_`` shows them.
        marginal_: Whether the density is one of the observed values, which takes their mask as context.
        columns_: What was seen in the columns, a :class:`~ncml.estimator.Columns`.
        losses_: The loss of every step, nats.
        n_iter_: Steps after which the weights were taken.
        validation_score_: Mean log-likelihood of the held-out rows at t = 0, in the units of the data; NaN without.
        n_features_in_: As in scikit-learn.
        feature_names_in_: As in scikit-learn.

    Example:
        >>> from ncml.estimator import NCMLDensityEstimator
        >>> X = np.random.default_rng(0).normal(size=(300, 2))
        >>> estimator = NCMLDensityEstimator(max_steps=50, random_state=0).fit(X)
        >>> estimator.score_samples(X[:3]).shape, estimator.sample(4).shape
        ((3,), (4, 2))
    """

    def __init__(
        self,
        density: DensityFactory | None = None,
        *,
        process: NoiseProcess | None = None,
        times: TimeSampler | None = None,
        bounds: Bounds | None = None,
        categories: Categories | None = None,
        missing: bool | None = None,
        max_steps: int = 2000,
        batch_size: int = 128,
        learning_rate: float = 1e-2,
        validation_fraction: float = 0.1,
        patience: int = 20,
        dequantisations: int = 4,
        random_state: Any = None,  # noqa: ANN401 -- whatever check_random_state takes
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.density = density
        self.process = process
        self.times = times
        self.bounds = bounds
        self.categories = categories
        self.missing = missing
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.dequantisations = dequantisations
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 -- scikit-learn's Tags
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing is not False
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> NCMLDensityEstimator:  # noqa: ANN401 -- any table
        """Train on a table.

        Args:
            X: Rows, ``(n_samples, n_features)``: an array or a data frame of pandas or polars, NaN for missing values.
            y: Ignored.
            sample_weight: How much every row counts, ``(n_samples,)``: how often it is drawn, and in the mean over
                those held out. Rows of weight 0 are left out. The columns' scales are those of all others alike.

        Raises:
            ArgumentError: Infinite values, strings that are no declared categories, only constant columns, a column
                without values, missing values with ``missing=False`` or a density that takes no mask, weights that are
                negative or not one for each row, or a parameter out of range.
            UnsupportedError: Columns on a lattice, and a :class:`~ncml.density.CellDensity` without cells.
        """
        self.check_parameters()
        X, weights = weighted(X, sample_weight, fewest=2)
        self._form = TableForm.of(X, self.categories)
        rows = self._validated(X, reset=True)
        weights = np.ones(len(rows)) if weights is None else weights
        if self.missing is False:
            self._refuse_gaps(rows)
        wanted = bool(np.isnan(rows).any()) if self.missing is None else self.missing
        random = check_random_state(self.random_state)
        codes = {j: len(values) for j, values in self._form.categories.items()}
        self.columns_ = Columns.of(rows, self._names(), self.bounds, codes, self._form.floats)
        self.columns_.warn()
        self._form.warn(rows)
        process = self.process_or_default
        times = LogUniformTimes(0.02, p_zero=0.3) if self.times is None else self.times
        objective = TableObjective(process, times, columns=self.columns_)
        held = min(int(self.validation_fraction * len(rows)), MOST_HELD)
        order = random.permutation(len(rows))
        table = torch.from_numpy(self.columns_.standardise(rows))
        seed = seed_of(random)
        with seeded(seed):
            z = self.columns_.to_model(table)[0].numpy()
            factory = default_factory(z, weights, gaps=wanted) if self.density is None else self.density
            wants: dict[str, Any] = {"gaps": wanted, "cells": self.columns_.jittered, "device": self.device}
            density, self.marginal_ = untrained_density(factory, (table.shape[1],), process, **wants)
            self.density_, table = density, table.to(density.device)
            sobol = torch.quasirandom.SobolEngine(table.shape[1], scramble=True, seed=seed)
            self._points = sobol.draw(self.dequantisations)
            generator = torch.Generator(table.device).manual_seed(seed)
            row_weights = torch.from_numpy(weights)[order].to(density.device)
            watch = None
            if held:
                look = partial(self.log_density_of, table[order[:held]], 0.0)
                watch = Watch(density, look, row_weights[:held], steps=self.max_steps, patience=self.patience)
            self.losses_, self.n_iter_, self.validation_score_ = trained(
                density,
                objective,
                *self._split(table[order[held:]]),
                watch=watch,
                row_weights=row_weights[held:] if np.ptp(weights) > 0.0 else None,
                steps=self.max_steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                generator=generator,
                progress=bool(self.verbose),
            )
        density.double()  # float32 has a row's last digits depend on the rows beside it
        return self

    def score_samples(self, X: Any, t: float = 0.0) -> Array:  # noqa: ANN401 -- any table
        """Log-density of every row, in the units of the table.

        Args:
            X: Rows, ``(n_samples, n_features)``; of a row with gaps the density is that of the values that are there.
            t: Noise level, a time of the process; the default is the data themselves. At t > 0 columns on a lattice
                are evaluated in the middle of their step, and the density is that of rows with noise in the units of
                ``columns_``.

        Returns:
            ``(n_samples,)``, nats; minus infinity outside the bounds.
        """
        check_is_fitted(self)
        return self.log_densities_of(self._table(X), t)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # noqa: ANN401 -- any table
        """Mean log-density of the rows at t = 0, as they weigh, nats: what a grid search compares."""
        X, weights = weighted(X, sample_weight, fewest=1)
        return float(np.average(self.score_samples(X), weights=weights))

    def gradient(self, X: Any, t: float = 0.0) -> Array:  # noqa: ANN401 -- any table
        r"""The score :math:`\partial_j \log p_t` in units of the columns' scales, ``(n_samples, n_features)``.

        It is taken where the density lives: behind the logarithm or logit of a bounded column, and at the middle of a
        step. Of columns on a lattice take it at t > 0: at t = 0 their probabilities are learned, not slopes within a
        step, and it is 0 (under a :class:`~ncml.density.CellDensity`). So it is for columns that were set aside and for
        missing values.
        """
        check_is_fitted(self)
        return self.gradient_of(self._table(X), t)

    def gradient_of(self, table: Tensor, t: float) -> Array:
        """:meth:`gradient` of standardised rows."""
        scores = []
        for part in table.split(ROWS):
            filled, mask = self._split(part)
            scores.append(score_of_rows(self.density_, self.columns_, filled, None, t, mask))
        out = np.zeros((len(table), self.n_features_in_))
        out[:, self.columns_.kept] = torch.cat(scores).double().cpu().numpy()
        return out

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:  # noqa: ANN401 -- array or data frame
        """Draw complete rows at t = 0, of the types of the training table: integers, categories, a data frame.

        Args:
            n_samples: Number of rows.
            random_state: Seed.

        Raises:
            UnsupportedError: The density cannot sample.
        """
        check_is_fitted(self)
        check_count(n_samples, "n_samples")
        density = sampleable(self.density_, "fit with another one to sample")
        generator = torch.Generator(density.device).manual_seed(seed_of(random_state))
        whole = self._whole(n_samples)
        placed: dict[str, Any] = {"place": self.columns_.middle} if isinstance(density, CellDensity) else {}
        z = density.sample(n_samples, 0.0, whole, generator=generator, **placed)
        return self._form.decode(self.columns_.from_model(z))

    def complete(self, X: Any, random_state: Any = None, *, rounds: int = 5, draws: int = 1) -> Any:  # noqa: ANN401
        r"""Fill gaps: one draw of what is missing given all that is there, :math:`p(x_{mis} | x_{obs})` at t = 0.

        Draws, not means: completed rows vary as whole ones do, and several calls with other seeds show how far a result
        depends on what was missing (multiple imputation). How it works: :mod:`ncml.estimator.completion`.

        Args:
            X: Rows, ``(n_samples, n_features)``, NaN where a value is missing, whether the training table had gaps or
                not. That it is missing is taken to say nothing of the value.
            random_state: Seed.
            rounds: How often missing values are drawn anew, in part and given the others, and moved. More come nearer
                to the density where many are missing, or those that are there are unlikely.
            draws: 1 fills with a draw. Of more the median is taken, of an even number the lower one in the middle, and
                of categories the commonest: nearer to the truth value by value, but rows vary less than whole ones.

        Returns:
            All rows, of the types of the training table, or of floats where these would change a value that is there.

        Raises:
            UnsupportedError: The density is no :class:`~ncml.density.CellDensity`, as the default ones are.
        """
        check_is_fitted(self)
        check_count(rounds, "rounds", minimum=0)
        check_count(draws, "draws")
        density, seed = fillable(self.density_, "complete"), seed_of(random_state)
        rows, whole = self._validated(X, reset=False), self._whole(1)
        how = {"rounds": rounds, "draws": draws, "seed": seed}
        filled = completed(density, self.columns_, rows, whole, **how, progress=bool(self.verbose))
        return in_form(self._form, filled, rows, X)

    def _whole(self, n: int) -> Tensor | None:
        """The context of n rows without gaps: a mask of ones if the density takes one."""
        shape = (n, *self.density_.event_shape)
        return torch.ones(shape, dtype=self.density_.dtype, device=self.density_.device) if self.marginal_ else None

    def log_densities_of(self, table: Tensor, t: float) -> Array:
        """:meth:`score_samples` of standardised rows."""
        out = [self.log_density_of(part, t) for part in table.split(ROWS)]
        return torch.cat(out).double().cpu().numpy()

    def log_density_of(self, table: Tensor, t: float) -> Tensor:
        """Log-density of standardised rows, NaN in their gaps.

        The same points for every row, so that a row's value is its own.
        """
        points: list[Tensor | None] = [None]
        filled, mask = self._split(table)
        observed = None if mask is None else mask.bool()
        if self.columns_.jittered and t == 0.0:
            if isinstance(self.density_, CellDensity):
                z, low, high, log_det = self.columns_.cells(filled, observed, self.density_.dtype)
                with torch.no_grad():
                    return self.density_.log_cells(z, low, high, t, mask) + log_det
            points = list(self._points.to(table))
        terms = []
        with torch.no_grad():
            for u in points:
                z, log_det = self.columns_.to_model(filled, u, observed)
                terms.append(self.density_.log_density(z.to(self.density_.dtype), t, mask) + log_det)
        return torch.stack(terms).logsumexp(0) - float(np.log(len(terms)))

    def _split(self, table: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values, 0 where they are missing, and the mask of those that are there, if the density takes one."""
        if not self.marginal_:
            return table, None
        gaps = table.isnan()
        return table.masked_fill(gaps, 0.0), gaps.logical_not().to(self.density_.dtype)

    @property
    def process_or_default(self) -> NoiseProcess:
        """The process that ``fit`` trains."""
        return LinearVESDE(2.0) if self.process is None else self.process

    @property
    def form(self) -> TableForm:
        """The form of the training table."""
        return self._form

    def _table(self, X: Any) -> Tensor:  # noqa: ANN401 -- any table
        return self.table_of(self._validated(X, reset=False))

    def table_of(self, rows: Array) -> Tensor:
        """Standardised rows, NaN in their gaps, as the methods above that end in ``_of`` take them.

        Raises:
            ArgumentError: Missing values, and none were expected.
        """
        if self.missing is False or not self.marginal_:
            self._refuse_gaps(rows)
        return torch.from_numpy(self.columns_.standardise(rows)).to(self.density_.device)

    def _names(self) -> list[Any]:
        return list(getattr(self, "feature_names_in_", self._form.names(self.n_features_in_)))

    def _validated(self, X: Any, *, reset: bool) -> NDArray[np.float64]:  # noqa: ANN401 -- any table
        gaps = self.missing is not False and (reset or self.marginal_)
        rows = validate_data(
            self,
            self._form.encode(X, gaps=gaps),
            reset=reset,
            dtype=np.float64,
            ensure_min_samples=2 if reset else 1,
            ensure_all_finite=False,
        )
        return check_not_infinite(rows, self._names(), gaps=gaps)

    def _refuse_gaps(self, rows: Array) -> None:
        gaps = np.isnan(rows).any(0)
        if gaps.any():
            named = ", ".join(str(self._names()[j]) for j in np.flatnonzero(gaps))
            raise ArgumentError(
                f"X: got NaN in {named}; expected no missing values; fit {type(self).__name__}(missing=True), whose "
                f"density is that of the values that are there"
            )

    def check_parameters(self) -> None:
        """Refuse parameters out of range, as ``fit`` does."""
        for name in ("max_steps", "batch_size", "patience", "dequantisations"):
            check_count(getattr(self, name), name)
        check_positive(self.learning_rate, "learning_rate")
        if not is_real(self.validation_fraction) or not 0.0 <= self.validation_fraction < 1.0:
            raise ArgumentError(f"validation_fraction: got {self.validation_fraction!r}; expected a share, 0 <= . < 1")
        if self.density is not None and (isinstance(self.density, nn.Module) or not callable(self.density)):
            raise ArgumentTypeError(
                f"density: got {type(self.density).__name__}; expected a function of (event_shape, process), as MAF is"
            )
