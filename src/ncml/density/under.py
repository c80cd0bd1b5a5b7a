r"""A density read under another Gaussian process.

Two processes that shrink and add noise in the same ratio make the same data, up to scale. With
:math:`\sigma_A(t)/\alpha_A(t) = \sigma_B(s)/\alpha_B(s)` and :math:`r = \alpha_A(t)/\alpha_B(s)`,

.. math:: \log p^B_s(x) = \log p^A_t(r\,x) + D \log r,

so that a density trained under any Gaussian process A is one under any other B, as far as its own noise
reaches. At s = 0 both are the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncml.checks import Time, per_example
from ncml.density.checks import observed_dims
from ncml.density.interface import AutoregressiveDensity, NoiseConditionalDensity, SampleableDensity
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise import GaussianProcess, NoiseProcess, as_time
from ncml.noise.gaussian import as_gaussian

__all__ = ["under_process"]


def under_process(density: NoiseConditionalDensity, process: NoiseProcess) -> NoiseConditionalDensity:
    """What :meth:`NoiseConditionalDensity.under` returns, of the same kind as the density."""
    own = density.process
    if own is None:
        raise ArgumentTypeError("density.process: got None; expected a process of its own, to translate from")
    process, own = _starting_at_data(process, "process"), _starting_at_data(own, "density.process")
    most, asked = (float(p.sigma(p.T) / p.alpha(p.T)) for p in (own, process))
    if asked > most * (1.0 + 1e-6):
        reach = float(process.time_at_log_snr(own.log_snr(own.T)))
        raise ArgumentError(
            f"process: got {process} with sigma / alpha up to {asked:.6g}; expected at most {most:.6g}, the density's "
            f"largest; end the process at T = {reach:.12g}"
        )
    if density.process == process:
        return density
    if isinstance(density, AutoregressiveDensity):
        return _AutoregressiveUnder(density, process)
    return _SampleableUnder(density, process) if isinstance(density, SampleableDensity) else _Under(density, process)


def _starting_at_data(process: NoiseProcess, name: str) -> GaussianProcess:
    gaussian = as_gaussian(process, "with alpha and sigma", name)
    if float(gaussian.sigma(0.0)) != 0.0:
        raise UnsupportedError(f"{name}: got {gaussian}, noisy at t = 0; expected one that starts at the data")
    return gaussian


class _Under(NoiseConditionalDensity):
    """A density under another process; attributes of the density itself are not passed on."""

    process: GaussianProcess

    def __init__(self, density: NoiseConditionalDensity, process: GaussianProcess) -> None:
        super().__init__(density.event_shape, process, density.lattice)
        self.density = density

    @property
    def dtype_follows_input(self) -> bool:  # type: ignore[override]
        return self.density.dtype_follows_input

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.density.differentiable

    @property
    def twice_differentiable(self) -> bool:  # type: ignore[override]
        return self.density.twice_differentiable

    @property
    def dtype(self) -> torch.dtype:
        return self.density.dtype

    def event_shape_for(self, x: Tensor) -> tuple[int, ...]:
        return self.density.event_shape_for(x)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        own_time, ratio = self._translated(t, x)
        log_p: Tensor = self.density(per_example(ratio, x) * x, own_time, context, edges=edges)
        return log_p + observed_dims(self.observed(x, context), x) * ratio.log()

    def observed(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        return self.density.observed(x, context)

    def forward_score(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, *, create_graph: bool = False
    ) -> Tensor:
        own_time, ratio = self._translated(t, x)
        r = per_example(ratio, x)
        return r * self.density.forward_score(r * x, own_time, context, create_graph=create_graph)

    def _translated(self, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        """The density's own times, in the dtype of ``t``, and the ratio of the alphas, in that of ``x``."""
        own = self.density.process
        assert isinstance(own, GaussianProcess)
        t = as_time(t)
        wide = t.double()
        log_snr = self.process.log_snr(wide)
        own_time = own.time_at_log_snr(log_snr.detach().clamp(min=float(own.log_snr(own.T))))
        if log_snr.requires_grad:  # the inverse is found without a graph; its derivative is 1 over that of log_snr
            leaf = own_time.detach().requires_grad_()
            (slope,) = torch.autograd.grad(own.log_snr(leaf).sum(), leaf)
            own_time = own_time + (log_snr - log_snr.detach()) / slope
        return own_time.to(t.dtype), (own.alpha(own_time) / self.process.alpha(wide)).to(x.dtype)


class _SampleableUnder(_Under, SampleableDensity):
    density: SampleableDensity

    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        return self._drawn(n, t, context, generator)

    def _drawn(
        self, n: int, t: Time, context: Tensor | None, generator: torch.Generator | None, **more: Tensor | None
    ) -> Tensor:
        own_time, ratio = self._translated(t, torch.empty((), dtype=self.dtype))
        x = self.density.sample(n, own_time, context, generator=generator, **more)
        return x / per_example(ratio, x)


class _AutoregressiveUnder(_SampleableUnder, AutoregressiveDensity):
    density: AutoregressiveDensity

    @property
    def order(self) -> Tensor:
        return self.density.order

    def draw_noise(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        return self.density.draw_noise(n, generator=generator)

    def resample(self, x: Tensor, noise: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        own_time, ratio = self._translated(t, x)
        r = per_example(ratio, x)
        return self.density.resample(r * x, noise, own_time, context) / r

    def sample(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        return self._drawn(n, t, context, generator, noise=noise)
