r"""Posteriors of data given measurements or other knowledge of them, by the exact ladder.

Given :math:`x_t`, the data have the mean :math:`D = (x_t + \sigma^2 s)/\alpha` (Tweedie) and the covariance

.. math:: V = \frac{\sigma^2}{\alpha^2} \left(I + \sigma^2\, \nabla^2 \log p_t(x_t)\right)
            = \frac{\sigma^2}{\alpha}\, \frac{\partial D}{\partial x_t},

where the score is the gradient of the log-density, and the Hessian the derivative of the score. Taken as those of a
normal distribution, D and V give the probability of what is known; its gradient is added to the score: exact if the
data are Gaussian, at every level.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_finite, check_floating, check_nonnegative, per_example
from ncml.density.around import AroundTarget, check_free
from ncml.density.gradient import derivative
from ncml.density.target import Target
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise.gaussian import as_gaussian

__all__ = ["EventTarget", "GuidedTarget", "PosteriorTarget"]


class GuidedTarget(AroundTarget):
    r""":math:`p_t(x)\, P(\text{known} \mid x)`, with P from Tweedie's mean and covariance: the base of the two below.

    Subclasses write :meth:`likelihood`.
    """

    def __init__(self, density: nn.Module | Target) -> None:
        super().__init__(density)
        check_free(self.inner, "density")
        as_gaussian(self.process, "for Tweedie's formula")

    @abc.abstractmethod
    def likelihood(self, clean: Tensor, slopes: Callable[[Tensor], Tensor], t: Time) -> tuple[Tensor, Tensor]:
        r"""Log-likelihood of what is known, ``(B,)``, and its gradient in x, of the shape of x.

        Args:
            clean: Tweedie's mean D.
            slopes: The products of :math:`\partial D/\partial x` (symmetric) with directions ``(K, B, *event_shape)``.
            t: The time.
        """

    def score(self, x: Tensor, t: Time) -> Tensor:
        score, _, gradient = self._evaluated(x, t)
        return score + gradient

    def log_likelihood(self, x: Tensor, t: Time) -> Tensor:
        """Log-probability ``(B,)`` of what is known given noisy ``x``, as the target sees it."""
        return self._evaluated(x, t)[1]

    def log_density(self, x: Tensor, t: Time) -> Tensor:
        return self.noted_log_density(self.inner.log_density(x, t) + self._evaluated(x, t)[1], self.row_times(x, t))

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        return self.noted_log_density(self.inner.log_prob(x, t) + self._evaluated(x, t)[1], self.row_times(x, t))

    def log_density_and_score(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        score, log_likelihood, gradient = self._evaluated(x, t)
        log_p = self.noted_log_density(self.inner.log_density(x, t) + log_likelihood, self.row_times(x, t))
        return log_p, (score + gradient).masked_fill(per_example(log_p.isnan(), score), math.nan)

    def differentiable_score(self, x: Tensor, t: Time) -> Tensor:
        raise UnsupportedError(
            f"{type(self).__name__}: got a second condition around it; expected one, which has the Hessian of a density"
        )

    def _evaluated(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """The score of the density, the log-likelihood of what is known and the gradient of that, all detached."""
        alpha, variance = self.alpha(t), self.sigma(t) ** 2
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            graph = self.inner.differentiable_score(leaf, t)

            def slopes(directions: Tensor) -> Tensor:
                curved = [derivative(graph, leaf, v, retain_graph=True) for v in directions]
                return (directions + variance * torch.stack(curved)) / alpha

            score = graph.detach()
            log_likelihood, gradient = self.likelihood((x.detach() + variance * score) / alpha, slopes, t)
        good = torch.isfinite(score + gradient.detach()).flatten(1).all(1)
        if self.failed is not None or not bool(good.all()):
            bad = self.noted(~good, self.row_times(x, t), "score")
            score = score.masked_fill(per_example(bad, score), math.nan)
        return score, log_likelihood.detach(), gradient.detach()


class PosteriorTarget(GuidedTarget):
    r"""The posterior of data measured as :math:`y = A x_0 + \eta`, :math:`\eta \sim N(0, \text{noise}^2)`.

    .. math:: \nabla_x \log p_t(x \mid y) \approx s
              + \frac{\partial D}{\partial x} A^\top (A V A^\top + \text{noise}^2 I)^{-1} (y - A D),

    exact for Gaussian data (Boys et al., 2023, "Tweedie moment projected diffusions"; V is taken as constant). For
    other data a reverse SDE ends near the posterior. Samplers whose weights or Metropolis test use the log-density end
    exactly there if ``noise > 0``, since it tends to :math:`p_0(x)\, N(y; A x, \text{noise}^2)`.

    Args:
        density: A density under a Gaussian process, or a target.
        y: Measurements ``(B, M)``, or ``(1, M)`` for all rows.
        operator: The linear A, ``(M, *event_shape)``.
        noise: Standard deviation of the measurements' noise; 0 for none, with samplers that need no density at t = 0.
        second_order: Take V from the Hessian, with M backward passes for each score. If False, with one and :math:`V =
            \sigma^2/\alpha^2`: this overstates how uncertain the data are, and follows the measurements less closely.

    Raises:
        ArgumentError: Shapes that do not fit, a negative noise; without noise, rows of A that are linearly dependent.

    Example:
        >>> density = GaussianDensity(VPSDE.at_noise(0.5), torch.zeros(3), 0.3)
        >>> mean = PosteriorTarget(density, torch.tensor([[0.2]]), torch.ones(1, 3) / 3)  # of the three values
        >>> ncml.sampling.HeunODE(8, denoise_last=True)(mean, 0.5 * torch.randn(4, 3)).mean(1)
        tensor([0.2000, 0.2000, 0.2000, 0.2000])
    """

    per_row = ("y",)

    def __init__(
        self,
        density: nn.Module | Target,
        y: Tensor,
        operator: Tensor,
        noise: float = 0.0,
        *,
        second_order: bool = True,
    ) -> None:
        super().__init__(density)
        check_floating(operator, "operator")
        check_floating(y, "y")
        rows = operator.shape[0] if operator.ndim else 0
        if operator.shape[1:] != self.event_shape or rows == 0:
            raise ArgumentError(f"operator: got shape {tuple(operator.shape)}; expected (M, *{self.event_shape})")
        if y.ndim != 2 or y.shape[1] != rows:
            raise ArgumentError(
                f"y: got shape {tuple(y.shape)}; expected (B, {rows}), a value for each row of operator"
            )
        check_finite(operator, "operator", "leave these rows out")
        check_finite(y, "y", "leave these measurements out")
        noise = check_nonnegative(noise, "noise", "a standard deviation >= 0")
        rank = int(torch.linalg.matrix_rank(operator.detach().double().flatten(1)))
        if noise == 0.0 and rank < rows:
            raise ArgumentError(
                f"operator: got {rows} rows of rank {rank} without noise; expected independent ones: measurements may "
                f"contradict each other; pass noise > 0, or leave rows out"
            )
        self.y, self.operator, self.noise, self.second_order = y.detach(), operator.detach(), noise, second_order

    def likelihood(self, clean: Tensor, slopes: Callable[[Tensor], Tensor], t: Time) -> tuple[Tensor, Tensor]:
        A = self.operator.to(clean).flatten(1)
        if self.noise == 0.0 and bool((torch.as_tensor(self.sigma(t)) == 0.0).any()):
            raise ArgumentError(
                "noise: got 0 for a log-density or score at t = 0, where the posterior has none; expected noise > 0, "
                "or a sampler that leads to t = 0 by Tweedie's formula, denoise_last=True"
            )
        sigma, alpha = (v.reshape(-1, 1, 1) if isinstance(v, Tensor) else v for v in (self.sigma(t), self.alpha(t)))
        residual = (self.y.to(clean) - clean.flatten(1) @ A.t()).unsqueeze(-1)
        eye = torch.eye(len(A), dtype=clean.dtype, device=clean.device)
        directions = A.reshape(-1, 1, *self.event_shape).expand(-1, *clean.shape)
        if self.second_order:
            slope = slopes(directions).flatten(2).transpose(0, 1)  # (B, M, D)
            covariance = sigma**2 / alpha * (slope @ A.t())
        else:
            covariance = (sigma / alpha) ** 2 * (A @ A.t()).expand(len(clean), -1, -1)
        covariance = 0.5 * (covariance + covariance.mT)
        floor = 1e-6 * (sigma / alpha) ** 2 * float((A @ A.t()).diagonal().mean())
        root = _root(covariance + self.noise**2 * eye, floor + self.noise**2)
        weight = torch.cholesky_solve(residual, root)
        log_det = 2.0 * root.diagonal(dim1=1, dim2=2).log().sum(1)
        squared = (residual * weight).flatten(1).sum(1)
        log_likelihood = -0.5 * (squared + log_det + len(A) * math.log(2.0 * math.pi))
        if self.second_order:
            return log_likelihood, (weight.mT @ slope).reshape(clean.shape)
        return log_likelihood, slopes((weight.mT @ A).reshape(1, *clean.shape))[0]


class EventTarget(GuidedTarget):
    r"""The data given an event :math:`c(x_0) > 0` (Finzi et al., 2023, "User-defined event sampling").

    With c linear around Tweedie's mean, :math:`P = \Phi\left(c(D) / \sqrt{\nabla c^\top V\, \nabla c}\right)`, whose
    logarithm is :meth:`~ncml.density.GuidedTarget.log_likelihood`: exact for half-spaces of Gaussian data.

    Args:
        density: A density under a Gaussian process, or a target.
        margin: The function c of ``(B, *event_shape)`` to ``(B,)``, differentiable.

    Example:
        >>> density = GaussianDensity(VPSDE.at_noise(0.5), torch.zeros(2), 0.3)
        >>> right = EventTarget(density, lambda x: x[:, 0] - 0.1)
        >>> bool((ncml.sampling.EulerMaruyama(64)(right, density.sample(100, t=right.process.T))[:, 0] > 0.05).all())
        True
    """

    def __init__(self, density: nn.Module | Target, margin: Callable[[Tensor], Tensor]) -> None:
        super().__init__(density)
        if not callable(margin):
            raise ArgumentTypeError(f"margin: got {margin!r}; expected a function of x, positive where the event is")
        self.margin = margin

    def likelihood(self, clean: Tensor, slopes: Callable[[Tensor], Tensor], t: Time) -> tuple[Tensor, Tensor]:
        leaf = clean.detach().requires_grad_()
        margin = self.margin(leaf)
        if not isinstance(margin, Tensor) or margin.shape != clean.shape[:1]:
            got: Any = tuple(margin.shape) if isinstance(margin, Tensor) else type(margin).__name__
            raise ArgumentError(f"margin: got {got}; expected ({len(clean)},), a number for each example")
        normal = torch.autograd.grad(margin.sum(), leaf, allow_unused=True)[0] if margin.requires_grad else None
        if normal is None:
            raise ArgumentError("margin: got values that autograd does not connect with x; expected a function of x")
        slope = slopes(normal[None])[0]
        sigma, alpha = self.sigma(t), self.alpha(t)
        ratio = sigma**2 / alpha
        flat = ratio.flatten() if isinstance(ratio, Tensor) else ratio
        variance = flat * (normal * slope).flatten(1).sum(1)
        # A model's Hessian may leave none, or less: a thousandth of what a flat density would have.
        least = (flat / (alpha.flatten() if isinstance(alpha, Tensor) else alpha)) * normal.flatten(1).square().sum(1)
        std = torch.maximum(variance, 1e-3 * least).sqrt()
        margin = margin.detach()
        u = margin / std
        # phi(u) / Phi(u) by the scaled complement: in logarithms the squares, far outside, would cancel.
        hazard = math.sqrt(2.0 / math.pi) / torch.special.erfcx(-u / math.sqrt(2.0)) / std
        # Without noise, or where c is flat, the event is certain or impossible.
        known = torch.where(margin > 0.0, 0.0, -math.inf).to(u)
        log_p = torch.where(std > 0.0, torch.special.log_ndtr(u), known)
        return log_p, per_example(hazard.masked_fill(std == 0.0, 0.0), slope) * slope


def _root(covariance: Tensor, floor: Tensor | float) -> Tensor:
    """Cholesky roots; of matrices that are not positive, which a model's Hessian may leave, with lifted eigenvalues."""
    root, info = torch.linalg.cholesky_ex(covariance)
    if not bool(info.any()):
        return root
    if not bool(covariance.isfinite().all()):  # of a row that has failed
        covariance = torch.where(covariance.isfinite().flatten(1).all(1)[:, None, None], covariance, 0.0)
    values, vectors = torch.linalg.eigh(covariance)
    least = floor.reshape(-1, 1) if isinstance(floor, Tensor) else floor
    values = torch.maximum(values, torch.as_tensor(least, dtype=values.dtype, device=values.device))
    return torch.linalg.cholesky_ex((vectors * values.unsqueeze(1)) @ vectors.mT)[0]
