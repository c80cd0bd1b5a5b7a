r"""Which columns of a table have changed: the difference of two densities' scores, column by column.

A column has shifted if its distribution *given the others* has. Since :math:`\partial_j \log p(x_j \mid x_{-j}) =
\partial_j \log p(x)`, one score tells for all columns (Kulinski et al., 2020,
`Feature Shift Detection <https://arxiv.org/abs/2107.06929>`_):

.. math:: \phi_j(t) = \tfrac12 (E_{p_t} + E_{q_t})\,\big(\partial_j \log p_t(x) - \partial_j \log q_t(x)\big)^2.

At t > 0 these are scores of smooth densities, which few rows determine better than those of the rows themselves.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from ncml.checks import Time, check_count, check_nonnegative
from ncml.density import CellDensity, NoiseConditionalDensity, inner_density
from ncml.errors import ArgumentError, ColumnScaleWarning, LatticeDataWarning
from ncml.estimator.columns import Columns
from ncml.estimator.defaults import default_density
from ncml.estimator.density import NCMLDensityEstimator, unfitted
from ncml.estimator.form import TableForm
from ncml.estimator.frames import is_frame
from ncml.estimator.objective import TableObjective, score_of_rows, seed_if_none, seeded, times_of, untrained_density
from ncml.estimator.traits import Array, check_not_infinite
from ncml.objective import LadderTimes
from ncml.progress import progress_bar
from ncml.training import fit

__all__ = ["FeatureShift", "max_p_values", "shift_statistic"]


def shift_statistic(p: nn.Module, q: nn.Module, x: Tensor, y: Tensor, t: Time = 0.0) -> Tensor:
    r"""By how much every column's conditional score differs between two densities.

    Args:
        p, q: Densities of rows, or wrappers of them.
        x, y: Samples of either at time ``t``, ``(n, D)`` and ``(m, D)``.
        t: Time.

    Returns:
        :math:`\phi_j(t)`, ``(D,)``, in squared nats per squared unit: 0 where the conditional distributions agree.
    """
    first, second = inner_density(p), inner_density(q)
    return _mean_squares([(first.score(rows, t), second.score(rows, t)) for rows in (x, y)])


def _mean_squares(scores: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The statistic from both densities' scores on either sample."""
    means = [(first - second).square().mean(0) for first, second in scores]
    return 0.5 * (means[0] + means[1])


def max_p_values(values: Array) -> Array:
    """Adjusted p-values by the largest standardised statistic (Westfall and Young, 1993).

    Args:
        values: Statistics of the columns, ``(1 + resamples, D)``: of the samples themselves, then of random deals.
    """
    # Standardised over all deals, the first among them: one formula for all keeps them exchangeable.
    standard = (values - values.mean(0)) / np.maximum(values.std(0), np.finfo(np.float64).tiny)
    largest = standard[1:].max(1)
    return cast(Array, (1.0 + (largest[:, None] >= standard[0]).sum(0)) / len(values))


class FeatureShift(BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Tests which columns differ between two samples.

    One density is trained on the rows of both samples, then a copy of it on each, for a few steps at the one noise
    level, and :func:`shift_statistic` compares them. The last two steps are repeated with the rows dealt to the samples
    at random. Since the first density does not know which row came from where, this is a permutation test: if the
    samples have one distribution, the probability that any column's p-value is at most a is at most a, for every sample
    size and however good the density is (p-values are those of the largest standardised statistic of all columns).

    Args:
        estimator: The density, unfitted. Default ``NCMLDensityEstimator()``.
        noise: Noise level of the comparison, in units of the columns' scales; 0 compares the data themselves, but for
            columns on a lattice, such as integers, whose probabilities have no slope: their statistics are then 0.
        resamples: How often the rows are dealt at random; no p-value is below 1 / (resamples + 1).
        steps: Steps on each sample.
        random_state: Seed.
        verbose: Show a progress bar (needs tqdm).

    Attributes:
        statistic_: The statistic of every column, ``(n_features,)``; 0 for columns that were set aside.
        p_values_: Their p-values, adjusted for looking at all columns; 1 for columns that were set aside.
        names_: Names of the columns.
        estimator_: The density of both samples.

    Example:
        >>> from ncml.estimator import FeatureShift, NCMLDensityEstimator
        >>> rng = np.random.default_rng(0)
        >>> X, Y = rng.normal(size=(2, 200, 2))
        >>> Y[:, 1] += 2.0
        >>> shift = FeatureShift(NCMLDensityEstimator(max_steps=100), resamples=19, steps=20, random_state=0).fit(X, Y)
        >>> int(shift.p_values_.argmin()), float(shift.p_values_.min())
        (1, 0.05)
    """

    def __init__(
        self,
        estimator: NCMLDensityEstimator | None = None,
        *,
        noise: float = 0.5,
        resamples: int = 49,
        steps: int = 100,
        random_state: Any = None,  # noqa: ANN401 -- whatever check_random_state takes
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.noise = noise
        self.resamples = resamples
        self.steps = steps
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, Y: Any) -> FeatureShift:  # noqa: ANN401 -- any tables
        """Compare two samples.

        Args:
            X, Y: Complete rows, ``(n, n_features)`` and ``(m, n_features)``: with gaps, where they are would be part of
                what has changed. Categories may be in one of them only, unless the estimator names them all.

        Raises:
            ArgumentError: A parameter out of range, or what the estimator refuses; no noise, and every column is on a
                lattice.
            UnsupportedError: The estimator's process is not Gaussian.
        """
        check_count(self.resamples, "resamples")
        check_count(self.steps, "steps")
        check_nonnegative(self.noise, "noise", "a noise level >= 0")
        estimator = unfitted(self.estimator)
        estimator.check_parameters()
        (t,) = times_of(estimator.process_or_default, (self.noise,), "noise")
        form = TableForm.of(X, estimator.categories).joined(Y, estimator.categories)
        first = self._complete(form, X, "X")
        rows = np.concatenate([first, self._complete(form, Y, "Y")])
        if t == 0.0:
            self._check_slopes(estimator, form, rows)
        random = check_random_state(self.random_state)
        codes = {form.labels[j]: range(len(values)) for j, values in form.categories.items()}
        estimator.set_params(missing=False, categories=codes or None)
        seed_if_none(estimator, random)
        table = rows[random.permutation(len(rows))]
        if form.frame is not None:
            table = type(form.frame)(table, columns=form.frame.columns)
        columns, density = estimator.fit(table).columns_, estimator.density_
        self.estimator_: NCMLDensityEstimator = estimator
        self.names_ = tuple(getattr(self, "feature_names_in_", columns.names))
        objective = TableObjective(estimator.process_or_default, LadderTimes((t,)), columns=columns)
        standard = torch.from_numpy(columns.standardise(rows)).to(density.device)
        deals = [np.arange(len(rows)), *(random.permutation(len(rows)) for _ in range(self.resamples))]
        seeds = random.randint(2**31 - 1, size=len(deals)).tolist()
        found = []
        for deal, seed in progress_bar(list(zip(deals, seeds, strict=True)), bool(self.verbose), "feature shift"):
            parts = standard[deal[: len(first)]], standard[deal[len(first) :]]
            found.append(self._compare(density, objective, parts, t, seed))
        values = np.stack(found)
        kept = columns.kept
        self.statistic_ = np.zeros(rows.shape[1])
        self.statistic_[kept] = values[0]
        self.p_values_ = np.ones(rows.shape[1])
        self.p_values_[kept] = max_p_values(values)
        return self

    def _check_slopes(self, estimator: NCMLDensityEstimator, form: TableForm, rows: Array) -> None:
        """Refuse to compare rows without noise if their probabilities are all that is learned of them."""
        codes = {j: len(values) for j, values in form.categories.items()}
        columns = Columns.of(rows, self._names(form), estimator.bounds, codes)
        if not np.isfinite(columns.origin).all():
            return
        with seeded(0):
            shape, process = (len(columns.kept),), estimator.process_or_default
            factory = default_density if estimator.density is None else estimator.density
            density, _ = untrained_density(factory, shape, process, gaps=False, cells=True)
        if isinstance(density, CellDensity):
            raise ArgumentError(
                "noise: got 0 and only columns on lattices, such as integers, whose probabilities have no slope; "
                "expected noise > 0"
            )

    def _names(self, form: TableForm) -> list[Any]:
        return list(getattr(self, "feature_names_in_", form.names(self.n_features_in_)))

    def _complete(self, form: TableForm, table: Any, name: str) -> Array:  # noqa: ANN401 -- any tables
        """Rows of finite numbers, with the columns of X."""
        encoded = form.encode(table, name, gaps=False)
        table_like = bool(form.labels) and isinstance(getattr(encoded, "values", encoded), np.ndarray)
        # Also by names that are numbers, which scikit-learn does not look at.
        renamed = form.frame is not None and is_frame(encoded) and list(encoded.columns) != form.labels
        if table_like and (renamed or form.differs(encoded)):
            got = list(encoded.columns) if is_frame(encoded) else f"an array of shape {encoded.shape}"
            raise ArgumentError(f"{name}: got {got}; expected the columns of X, {form.labels}, in this order")
        first: dict[str, Any] = {"ensure_min_samples": 2} if name == "X" else {"reset": False}
        rows = cast(Array, validate_data(self, encoded, dtype=np.float64, ensure_all_finite=False, **first))
        names = self._names(form)
        if gaps := [str(names[j]) for j in np.flatnonzero(np.isnan(rows).any(0))]:
            raise ArgumentError(
                f"{name}: got missing values (NaN) in {', '.join(gaps)}; expected complete rows, since where gaps are "
                f"would be part of what has changed; leave these rows out, or fill them"
            )
        return check_not_infinite(rows, names, name, gaps=False)

    def _compare(
        self,
        density: NoiseConditionalDensity,
        objective: TableObjective,
        parts: tuple[Tensor, Tensor],
        t: float,
        seed: int,
    ) -> Array:
        """The statistic of two samples of standardised rows."""
        generator = torch.Generator(density.device).manual_seed(seed)
        columns = cast(Any, objective.columns)
        models, noisy, uniforms = [], [], []
        for part in parts:
            model = deepcopy(density).float()
            with seeded(seed), warnings.catch_warnings():  # dropout; and of both samples all has been said
                warnings.simplefilter("ignore", ColumnScaleWarning)
                warnings.simplefilter("ignore", LatticeDataWarning)
                fit(
                    model,
                    objective,
                    part,
                    steps=self.steps,
                    batch_size=self.estimator_.batch_size,
                    learning_rate=self.estimator_.learning_rate,
                    generator=generator,
                )
            models.append(model)
            u = torch.rand(part.shape, dtype=model.dtype, device=part.device, generator=generator)
            z = columns.to_model(part, u)[0].to(model.dtype)
            noisy.append(objective.process.perturb(z, t, generator=generator))
            uniforms.append(u)
        first, second = models
        if t == 0.0:
            found = _mean_squares(
                [
                    (score_of_rows(first, columns, rows, u, t), score_of_rows(second, columns, rows, u, t))
                    for rows, u in zip(parts, uniforms, strict=True)
                ]
            )
        else:
            found = shift_statistic(first, second, noisy[0], noisy[1], t)
        return cast(Array, found.double().cpu().numpy())
