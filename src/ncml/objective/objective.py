r"""3. The objective: :math:`-E_{t\sim\mu}\,E_{x_t\sim p_t}[\log p_{\theta,t}(x_t)]` (paper, eq. 6)."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ncml.checks import (
    Time,
    check_choice,
    check_finite,
    check_floating,
    check_generator,
    check_input,
    check_nonnegative,
    check_time,
)
from ncml.density import at_zero_only, check_arguments, check_process, gaps_filled, inner_density, unwrapped
from ncml.density.lengths import padded
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError, UnsupportedError
from ncml.noise import DiscreteProcess, GaussianProcess, Lattice, NoiseProcess
from ncml.noise.process import as_process
from ncml.objective.score_terms import check_sde, score_terms
from ncml.objective.times import TimeSampler, UniformTimes

__all__ = ["LossTerms", "NCMLObjective"]


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch, example by example: tensors ``(B,)``.

    Args:
        loss: The weighted terms of the loss, in nats.
        nll: Negative log-likelihoods, without weights.
        t: Times.
        weight: Their weights.
    """

    loss: Tensor
    nll: Tensor
    t: Tensor
    weight: Tensor


@dataclass(frozen=True)
class NCMLObjective:
    r"""Noise conditional maximum likelihood: the weighted mean negative log-likelihood of noisy data.

    .. math:: L = \frac1n \sum_{i=1}^n w_i \left[-\log p_{\theta,t_i}(x_{t_i})\right],
              \qquad (t_i, w_i) \sim \mu,\quad x_{t_i} \sim p(x_{t_i} \mid x_i).

    Maximum likelihood is the special case ``times=AtZero()``, bit for bit. The objective owns no
    parameters and touches nothing of the density but its call, so DDP, hooks and ``torch.compile``
    all see the likelihood.

    With ``score_matching`` the error of the density's own score is added, by denoising score matching (Vincent, 2011,
    https://doi.org/10.1162/NECO_a_00142),

    .. math:: \lambda\, \tfrac12 \|\sigma(t_i)\, \nabla\log p_{\theta,t_i}(x_{t_i}) + z_i\|^2
              \quad (t_i > 0), \qquad x_{t_i} = \alpha(t_i)\, x_i + \sigma(t_i)\, z_i,

    which the exact density minimises too: a network that cannot be exact is pulled towards the right scores.

    With ``fokker_planck`` the levels are also asked to belong to one process: the residual R of its Fokker-Planck
    equation (Deveney et al., 2023, https://arxiv.org/abs/2311.15996), which is 0 for the exact density,

    .. math:: \lambda\, \tfrac12 \left(\frac{2\sigma^2}{g^2} R\right)^2 \quad (t_i > 0), \qquad
              R = \partial_t \log p_{\theta,t} + D f + f\, x \cdot s
                  - \tfrac12 g^2 \left(\nabla\cdot s + \|s\|^2\right),

    at :math:`x_{t_i}`, with the drift :math:`f x` and the diffusion g of the process and s the density's own score.
    Since :math:`d\log(\sigma/\alpha)/dt = g^2/(2\sigma^2)`, the bracket is the residual per unit of
    :math:`\log(\sigma/\alpha)`, in nats, whatever the process and its time: R itself is as large as
    :math:`1/\sigma^2` where the noise is small. It has the terms :math:`\sigma^2\|s\|^2` and
    :math:`\sigma^2\,\nabla\cdot s`, as large as the squared score in score matching at every level.
    It is not divided by D: since a model stays normalised at every t, its R has mean 0 over its own p_t, and
    independent errors of D values give a square of the order of D, like the likelihood and the error of the score.

    The divergence is :math:`v^\top (\nabla s)\, v` for random signs v (Hutchinson). The square of such an estimate
    would also punish its variance, which is that of the density's correlations; so it is replaced by the product of two
    residuals with separate probes, whose mean is right and which may be negative.

    Args:
        process: How data become noisy.
        times: Distribution of noise levels. Default ``UniformTimes(p_zero=0.2)``: a fifth of each batch
            trains the data likelihood itself.
        dequantize: The lattice of the data, for a density without one: fresh uniform noise of a bin's width is added
            to the data of every batch. Without it the likelihood of a continuous density on lattice points is
            unbounded.
        score_matching: The factor lambda, at least 0. Above 0 a step costs two to three times as much, and needs a
            Gaussian process and a density that can be differentiated twice.
        fokker_planck: The factor of the Fokker-Planck term, at least 0. Above 0 a step costs about seven times as
            much (a MADE of 64 values), and no more with both factors, which share one score. It needs a Gaussian
            process that solves an SDE, and a density that can be differentiated three times, and in t.
        reduction: ``"mean"`` (sum of weighted terms divided by n, not by the sum of weights),
            ``"sum"``, or ``"none"`` for one weighted term per example.

    Raises:
        ArgumentTypeError: ``process``, ``times`` or ``dequantize`` is not of its kind.
        ArgumentError: An unknown reduction, a negative or infinite factor.
        UnsupportedError: Score matching or the Fokker-Planck term under a process without a score; the latter also
            under a process that solves no SDE.

    Example:
        >>> process = VPSDE.at_noise(0.1)
        >>> density = GaussianDensity(process, mean=torch.zeros(2), std=0.5)
        >>> x = density.sample(256, generator=torch.Generator().manual_seed(0))
        >>> loss = NCMLObjective(process)(density, x, generator=torch.Generator().manual_seed(1))
    """

    process: NoiseProcess
    times: TimeSampler | None = None
    dequantize: Lattice | None = None
    reduction: Literal["mean", "sum", "none"] = "mean"
    score_matching: float = 0.0
    fokker_planck: float = 0.0

    def __post_init__(self) -> None:
        as_process(self.process)
        if self.times is None:
            object.__setattr__(self, "times", UniformTimes())
        if not isinstance(self.times, TimeSampler):
            raise ArgumentTypeError(
                f"times: got {type(self.times).__name__}; expected a TimeSampler, such as UniformTimes()"
            )
        if self.dequantize is not None and not isinstance(self.dequantize, Lattice):
            raise ArgumentTypeError(
                f"dequantize: got {type(self.dequantize).__name__}; expected the Lattice of the data, or None"
            )
        own = self.process.lattice if isinstance(self.process, DiscreteProcess) else self.dequantize
        if self.dequantize is not None and own != self.dequantize:
            raise ArgumentError(f"dequantize: got {self.dequantize}; expected {own}, the lattice of {self.process}")
        check_choice(self.reduction, "reduction", ("mean", "sum", "none"))
        for name in ("score_matching", "fokker_planck"):
            factor = getattr(self, name)
            check_nonnegative(factor, name)
            if factor and not isinstance(self.process, GaussianProcess):
                raise UnsupportedError(
                    f"{name}: got {factor} under {self.process}; expected a GaussianProcess, whose noisy data have a "
                    f"score"
                )
        if self.fokker_planck:
            assert isinstance(self.process, GaussianProcess)
            check_sde(self.process, self.fokker_planck)

    def __call__(
        self,
        density: nn.Module,
        x: Tensor,
        context: Tensor | None = None,
        *,
        t: Time | None = None,
        weight: Tensor | None = None,
        noise: Tensor | None = None,
        uniform: Tensor | None = None,
        generator: torch.Generator | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, in nats.

        Args:
            density: A :class:`~ncml.NoiseConditionalDensity`, or a wrapper (DDP, compiled) of one.
            x: Clean data, ``(B, *event_shape)``, in data units.
            context: Conditioning with one row per example, or None.
            t: Times to use instead of drawing them: a number or ``(B,)``.
            weight: Weights of those times, ``(B,)``; 1 if None.
            noise: The process's noise to use instead of drawing it.
            uniform: Uniforms on [0, 1) to dequantise with instead of drawing them, shape of ``x``.
            generator: Source of randomness for all of these, and for the probes of the Fokker-Planck term.
            lengths: For densities over sequences: the number of positions of each row that count, ``(B,)``; what lies
                beyond them is not part of the loss. The mean is still over examples.

        Returns:
            A scalar, or ``(B,)`` with ``reduction="none"``.

        Raises:
            ArgumentError: An empty batch (its mean is NaN), a process other than the density's, shapes or devices that
                do not fit, data that are not finite, or off the density's lattice or ``dequantize``.
            ArgumentTypeError: Data that are not floating, or not of the density's dtype.
            NonFiniteError: A log-likelihood is NaN or infinite; nothing was changed.
        """
        if self.reduction != "none" and isinstance(x, Tensor) and x.ndim and not len(x):
            raise ArgumentError(f"x: got an empty batch, shape {tuple(x.shape)}; expected at least one example")
        terms = self.terms(
            density, x, context, t=t, weight=weight, noise=noise, uniform=uniform, generator=generator, lengths=lengths
        )
        if self.reduction == "none":
            return terms.loss
        return terms.loss.sum() / len(terms.loss) if self.reduction == "mean" else terms.loss.sum()

    def terms(
        self,
        density: nn.Module,
        x: Tensor,
        context: Tensor | None = None,
        *,
        t: Time | None = None,
        weight: Tensor | None = None,
        noise: Tensor | None = None,
        uniform: Tensor | None = None,
        generator: torch.Generator | None = None,
        lengths: Tensor | None = None,
    ) -> LossTerms:
        """The terms that a call adds up, example by example; arguments and errors are those of a call."""
        scored = next((name for name in ("score_matching", "fokker_planck") if getattr(self, name)), None)
        if scored and lengths is not None:
            raise UnsupportedError(
                f"lengths: got some and {scored}; expected one of them: what lies behind a row's end has no score"
            )
        inner = unwrapped(density) if isinstance(density, nn.Module) else None
        x, more = padded(density if inner is None else inner, x, lengths)
        x, context = self._checked(density, x, context)
        n = x.shape[0] if x.ndim else 0
        check_generator(generator, x.device)
        if t is None:
            if weight is not None:
                raise ArgumentError("weight: got one without t; expected the times that it belongs to")
            t, weight = self.draw_times(n, generator=generator, device=x.device, dtype=x.dtype)
        else:
            t = check_time(t, x, self.process.T)
            weight = self._checked_weight(weight, t)
        if scored and noise is None:
            noise = self.process.draw_noise(x, generator=generator)
        x_t = self._noisy(x, t, noise, uniform, generator)
        self._check_noisy(density, x_t, t)
        log_p = density(x_t, t, context, **more) if n else x_t.flatten(1).sum(1)
        self._check(log_p, x, t, n)
        nll = loss = -log_p
        if scored and n:
            assert noise is not None
            assert isinstance(self.process, GaussianProcess)
            loss = nll + score_terms(
                density,
                self.process,
                x_t,
                t,
                context,
                noise,
                score_matching=self.score_matching,
                fokker_planck=self.fokker_planck,
                generator=generator,
            )
            self._check(-loss, x, t, n, scored)
        return LossTerms(weight * loss, nll, t, weight)

    def _checked(self, density: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Data and context, if they fit the density and the objective."""
        inner = unwrapped(density) if isinstance(density, nn.Module) else inner_density(density)
        if inner is None:
            try:
                inspect.signature(density.forward).bind(x, 0.0, context)
            except TypeError as error:
                raise ArgumentTypeError(
                    f"density: got a {type(density).__name__}, which is not called with (x, t, context); expected a "
                    f"NoiseConditionalDensity; wrap a module of (x, t) in ncml.densities.CallableDensity"
                ) from error
            check_floating(x, "x")
            x = check_input(x, tuple(x.shape[1:]), None, None, finite=False) if x.ndim else x
            if self.dequantize is not None:
                self.dequantize.check(x)
            return x, context
        check_process(inner, self.process)
        if self.dequantize is not None and isinstance(x, Tensor):
            x = self.dequantize.raised(x)
        x, _, context = check_arguments(inner, x, 0.0, context, finite=False)
        if self.dequantize is not None and inner.lattice is not None:
            raise ArgumentError(
                f"dequantize: got {self.dequantize} and a density with a lattice; expected None: its likelihood on the "
                f"lattice is exact"
            )
        lattice = self.dequantize if inner.lattice is None else inner.lattice
        if lattice is not None:  # unscaled 0 .. 255 would train without a word
            x = gaps_filled(inner, x, context)
            lattice.check(x)
        return x, context

    def _noisy(
        self, x: Tensor, t: Tensor, noise: Tensor | None, uniform: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """The data at their times, dequantised before the noise, or after it where that keeps them on the lattice."""
        if self.dequantize is None:
            if uniform is not None:
                raise ArgumentError(
                    "uniform: got some and dequantize=None; expected NCMLObjective(..., dequantize=...)"
                )
            return self.process.perturb(x, t, noise=noise, generator=generator)
        if isinstance(self.process, DiscreteProcess):
            x_t = self.process.perturb(x, t, noise=noise, generator=generator)
            return self.dequantize.dequantize(x_t, uniform=uniform, generator=generator)
        if noise is None:  # first, as without dequantisation
            noise = self.process.draw_noise(x, generator=generator)
        y = self.dequantize.dequantize(x, uniform=uniform, generator=generator)
        return self.process.perturb(y, t, noise=noise)

    def _check_noisy(self, density: nn.Module, x_t: Tensor, t: Tensor) -> None:
        """Refuse noisy data off the density's lattice where the noise keeps them on one; Gaussian noise never does."""
        inner = unwrapped(density)
        if inner is not None and inner.lattice is not None and not isinstance(self.process, GaussianProcess):
            inner.lattice.check(x_t[self.process.on_lattice(t)], "x_t")

    @staticmethod
    def _checked_weight(weight: Tensor | None, t: Tensor) -> Tensor:
        if weight is None:
            return torch.ones_like(t)
        check_floating(weight, "weight")
        if weight.shape != t.shape:
            raise ArgumentError(f"weight: got shape {tuple(weight.shape)}; expected {tuple(t.shape)}, one per example")
        check_finite(weight, "weight", "weights are finite numbers")
        return weight

    def draw_times(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Times and weights of a batch, ``(n,)`` each, as a call draws them.

        Raises:
            ArgumentError: The time sampler returned other shapes, or weights that are not finite.
        """
        assert self.times is not None  # set in __post_init__
        t, weight = self.times(n, self.process, generator=generator, device=device, dtype=dtype)
        name = type(self.times).__name__
        if t.shape != (n,) or weight.shape != (n,):
            raise ArgumentError(
                f"times: got times of shape {tuple(t.shape)} and weights of shape {tuple(weight.shape)}; expected "
                f"({n},) of both from {name}"
            )
        check_finite(weight, "weight", f"mend {name}: every t in [0, T] needs a finite weight")
        return t, weight

    @staticmethod
    def _check(log_p: Tensor, x: Tensor, t: Tensor, n: int, what: str = "loss") -> None:
        if not isinstance(log_p, Tensor) or log_p.shape != (n,):
            got = f"of shape {tuple(log_p.shape)}" if isinstance(log_p, Tensor) else f"as a {type(log_p).__name__}"
            raise ArgumentError(f"density: got log-likelihoods {got}; expected ({n},), one per example")
        if not log_p.is_floating_point():
            raise ArgumentTypeError(f"density: got log-likelihoods of {log_p.dtype}; expected floating ones, {x.dtype}")
        nll = -log_p.detach()
        if math.isfinite(float(nll.sum())):
            return
        bad = ~torch.isfinite(nll)
        if bool(bad.any()):
            check_finite(x, "x", "clean the data")  # looked at here only: good data cost nothing
            i = int(bad.nonzero()[0])
            fine = nll[~bad]
            spread = f"; the others lie in [{float(fine.min()):.6g}, {float(fine.max()):.6g}] nats" if len(fine) else ""
            raise NonFiniteError(
                f"{what}: got {float(nll[i])} at index {i} with t = {float(t[i]):.6g} ({int(bad.sum())} of {n} "
                f"examples{spread}); expected finite values"
                f"{at_zero_only(bad, t) or '; lower the learning rate or clip gradients'}"
            )
