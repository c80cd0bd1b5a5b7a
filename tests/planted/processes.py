"""Noise processes with planted bugs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncml import VESDE, VPSDE, GaussianProcess, LevelNoise, SubVPSDE
from ncml.checks import check_floating, per_example
from tests.planted import Bug


class VarianceForStd(SubVPSDE):
    def sigma(self, t):
        return super().sigma(t).sqrt()


class MinusForPlus(SubVPSDE):
    def transition(self, s, t):
        s, t = (torch.as_tensor(v, dtype=torch.float64) for v in (s, t))
        b = self._integral(s, t)
        return torch.exp(-0.5 * b), -torch.expm1(-b)


class SigmaMinKept(VESDE):
    def sigma(self, t):
        return (super().sigma(t).square() + self.sigma_min**2).sqrt()


class ConstantBeta(VPSDE):
    def _integral(self, s, t):
        return (t - s) * self.beta_min


class Cancellation(VPSDE):
    def sigma(self, t):
        return (1.0 - torch.exp(2.0 * self.alpha(t).log())).sqrt()


class DriftSign(VPSDE):
    def drift_coefficient(self, t):
        return -super().drift_coefficient(t)


class SquaredDiffusion(VPSDE):
    def diffusion(self, t):
        return super().diffusion(t).square()


class TwiceTheDivergence(VPSDE):
    def fokker_planck(self, x, t, rise, score, divergence, dims=None):
        return super().fokker_planck(x, t, rise, score, 2.0 * divergence, dims)


class AlphaMissing(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        y = super().perturb(x, t, noise=noise, generator=generator)
        return y + per_example(1.0 - self.alpha(t), x) * x


class AlphaMissingInKernel(VPSDE):
    def transition(self, s, t):
        scale, std = super().transition(s, t)
        return torch.ones_like(scale), std


class OneTimeForAll(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        t = t.reshape(-1)[:1].expand(x.shape[0]) if isinstance(t, Tensor) and t.shape == x.shape[:1] else t
        return super().perturb(x, t, noise=noise, generator=generator)


class SharedNoise(VPSDE):
    def draw_noise(self, x, *, generator=None):
        return super().draw_noise(x[:1], generator=generator).expand(x.shape).clone()


class SharedNoiseInPerturb(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        noise = self.checked_noise(x, noise, generator)[:1].expand(x.shape)
        return super().perturb(x, t, noise=noise)


class UniformNoise(VPSDE):
    def draw_noise(self, x, *, generator=None):
        u = torch.rand(x.shape, dtype=x.dtype, generator=generator)
        return math.sqrt(12.0) * (u - 0.5)


class CoupledNeighbours(VPSDE):
    def draw_noise(self, x, *, generator=None):
        z = super().draw_noise(x, generator=generator)
        return 0.8 * z + 0.6 * z.roll(1, -1)


class MirroredBatch(VPSDE):
    def draw_noise(self, x, *, generator=None):
        z = super().draw_noise(x, generator=generator)
        half = len(z) // 2
        return torch.cat([z[:half], -z[:half] * (1.0 + 1e-6), z[2 * half :]])


class SharedSizes(VPSDE):
    """Values of a row are normal and uncorrelated, and all large or all small."""

    def draw_noise(self, x, *, generator=None):
        z = super().draw_noise(x, generator=generator)
        return torch.where((z[..., :1] < 0) == (z < 0), z[..., :1], -z[..., :1]) + 1e-9 * z


class Clipped(VPSDE):
    def draw_noise(self, x, *, generator=None):
        z = super().draw_noise(x, generator=generator)
        return torch.where(z.abs() > 3.2, 3.2 * z.sign() * (1.0 + 1e-9 * z.abs()), z)


class GlobalNoise(VPSDE):
    def draw_noise(self, x, *, generator=None):
        return super().draw_noise(x)


class InPlace(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        return x.copy_(super().perturb(x, t, noise=noise, generator=generator))


class BatchStatistics(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        noise = self.checked_noise(x, noise, generator)
        return super().perturb(x, t, noise=noise - 1e-3 * noise.mean())


class WrongInverse(SubVPSDE):
    def invert_sigma(self, sigma):
        return self._time_of_integral(-torch.log1p(-sigma.square()))


class InverseOfHalf(VPSDE):
    """Takes log(alpha / sigma) for log(alpha^2 / sigma^2)."""

    def invert_log_snr(self, log_snr):
        return super().invert_log_snr(2.0 * log_snr)


class SlopeOfSigma(GaussianProcess):
    """Differentiates sigma for sigma^2."""

    def diffusion(self, t):
        return super().diffusion(t) / (2.0 * self.sigma(t)).sqrt()


class TensorT(VPSDE):
    def __post_init__(self):
        object.__setattr__(self, "T", torch.tensor(self.T))


class DoublePrecision(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        return super().perturb(x, t, noise=noise, generator=generator).double()


class ReadsStorage(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        x = x.as_strided(x.shape, x.contiguous().stride())
        return super().perturb(x, t, noise=noise, generator=generator)


class NoSelectionAtZero(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        return super().perturb(x, t, noise=noise, generator=generator) + 0.0


class CoarseNumbers(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        t = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float32, device=x.device)
        return super().perturb(x, t, noise=noise, generator=generator)


class OtherDraws(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        noise = self.checked_noise(x, None, generator).flip(-1) if noise is None else noise
        return super().perturb(x, t, noise=noise)


class ClampedTimes(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        t = t if isinstance(t, Tensor) else min(max(t, 0.0), self.T)
        return super().perturb(x, t, noise=noise, generator=generator)


class CastIntegers(VPSDE):
    def perturb(self, x, t, *, noise=None, generator=None):
        x = x if x.is_floating_point() else x.float()
        return super().perturb(x, t, noise=noise, generator=generator)


class EqualByIdentity(VPSDE):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class ShrunkAtZero(VPSDE):
    def alpha(self, t):
        return 0.999 * super().alpha(t)

    def on_lattice(self, t):
        return torch.as_tensor(t) == 0


class FloatLogSNR(VPSDE):
    def log_snr(self, t):
        return super().log_snr(t) if isinstance(t, Tensor) else float(super().log_snr(t))


class BoundedSigma(VPSDE):
    def sigma(self, t):
        return super().sigma(t).clamp(max=0.2)


class HalfLogSNR(VPSDE):
    def log_snr(self, t):
        return 0.5 * super().log_snr(t)


class AlmostZeroIsZero(VPSDE):
    def on_lattice(self, t):
        return torch.as_tensor(t) < 1e-3 * self.T


class OneTimeForTheDrift(VPSDE):
    def drift(self, x, t):
        return super().drift(x, torch.as_tensor(t).reshape(-1)[-1])


class SafetyEpsilon(VPSDE):
    def transition(self, s, t):
        scale, std = super().transition(s, t)
        return scale, std.clamp(min=1e-4)


class OneAnswerForAllTimes(LevelNoise):
    def on_lattice(self, t):
        return torch.tensor(True)


class OffLattice(LevelNoise):
    def perturb(self, x, t, *, noise=None, generator=None):
        y = super().perturb(x, t, noise=noise, generator=generator)
        return torch.where(y == x, y, y + 0.1 * self.lattice.width)


class MassLostAtTheEdges(LevelNoise):
    def transition_matrix(self, t):
        matrix = super().transition_matrix(t)
        matrix[0, 0] -= 0.5 * t
        return matrix


class AppliedTwice(LevelNoise):
    def perturb(self, x, t, *, noise=None, generator=None):
        check_floating(x, "x")
        noise = self.checked_noise(x, noise, generator)
        return super().perturb(super().perturb(x, t, noise=noise), t, noise=noise)


class StuckLevel(LevelNoise):
    def perturb(self, x, t, *, noise=None, generator=None):
        y = super().perturb(x, t, noise=noise, generator=generator)
        return torch.where(self.lattice.nearest(x.double()) == 3, x, y)


class RowsMoveTogether(LevelNoise):
    def perturb(self, x, t, *, noise=None, generator=None):
        noise = self.checked_noise(x, noise, generator)
        return super().perturb(x, t, noise=noise.flatten(1)[:, :1].reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape))


class HalfTheMoves(LevelNoise):
    def transition_matrix(self, t):
        return super().transition_matrix(0.5 * t)


PROCESSES = {
    "vp": VPSDE(T=0.2),
    "subvp": SubVPSDE(T=0.2),
    "ve": VESDE(T=0.4),
    "cosine": GaussianProcess(torch.cos, torch.sin, T=0.2),
    "level": LevelNoise(5),
    "nine levels": LevelNoise(9),
}
PROCESS_BUGS = {
    "sigma for sigma^2 in sub-VP": Bug("subvp", lambda: VarianceForStd(T=0.2), "sigma_solves_the_diffusion"),
    "B_t - B_s for B_t + B_s": Bug("subvp", lambda: MinusForPlus(T=0.2), "transitions_compose"),
    "VE sigma_min kept": Bug("ve", lambda: SigmaMinKept(T=0.4), "perturb_at_zero_returns_the_data"),
    "beta linear -> const": Bug("vp", lambda: ConstantBeta(T=0.2), "alpha_solves_the_drift"),
    "expm1 -> exp - 1": Bug("vp", lambda: Cancellation(T=0.2), "coefficients_are_precise_in_float32"),
    "drift sign": Bug("vp", lambda: DriftSign(T=0.2), "alpha_solves_the_drift"),
    "twice the divergence": Bug("vp", lambda: TwiceTheDivergence(T=0.2), "fokker_planck_is_that_of_the_sde"),
    "g for g^2": Bug("vp", lambda: SquaredDiffusion(T=0.2), "sigma_solves_the_diffusion"),
    "alpha missing in the kernel mean": Bug("vp", lambda: AlphaMissing(T=0.2), "perturb_applies_alpha_and_sigma"),
    "alpha missing in the transition": Bug(
        "vp", lambda: AlphaMissingInKernel(T=0.2), "transition_from_zero_is_the_kernel"
    ),
    "one t for the whole batch": Bug("vp", lambda: OneTimeForAll(T=0.2), "rows_use_their_own_time"),
    "noise reused": Bug("vp", lambda: SharedNoise(T=0.2), "noise_is_fresh"),
    "noise reused in perturb": Bug("vp", lambda: SharedNoiseInPerturb(T=0.2), "noise_is_fresh"),
    "noise of another distribution": Bug("vp", lambda: UniformNoise(T=0.2), "perturbed_data_have_the_moments"),
    "noise of neighbours": Bug("vp", lambda: CoupledNeighbours(T=0.2), "noise_is_independent_and_has_its_tails"),
    "second half mirrored": Bug("vp", lambda: MirroredBatch(T=0.2), "noise_is_independent_and_has_its_tails"),
    "sizes shared": Bug("vp", lambda: SharedSizes(T=0.2), "noise_is_independent_and_has_its_tails"),
    "noise clipped": Bug("vp", lambda: Clipped(T=0.2), "noise_is_independent_and_has_its_tails"),
    "a level that never moves": Bug("nine levels", lambda: StuckLevel(9), "moves_match_the_transition_matrix"),
    "values move together": Bug("level", lambda: RowsMoveTogether(5), "moves_are_independent"),
    "generator ignored": Bug("vp", lambda: GlobalNoise(T=0.2), "generator_gives_the_noise"),
    "x written to": Bug("vp", lambda: InPlace(T=0.2), "perturb_leaves_its_arguments_alone"),
    "batch statistics": Bug("vp", lambda: BatchStatistics(T=0.2), "perturb_treats_rows_alone"),
    "inverse of another sigma": Bug("subvp", lambda: WrongInverse(T=0.2), "time_at_inverts_sigma"),
    "inverse of half the log-SNR": Bug("vp", lambda: InverseOfHalf(T=0.2), "time_at_log_snr_inverts_log_snr"),
    "slope of sigma for sigma^2": Bug(
        "cosine", lambda: SlopeOfSigma(torch.cos, torch.sin, T=0.2), "sigma_solves_the_diffusion"
    ),
    "T a tensor": Bug("vp", lambda: TensorT(T=0.2), "largest_time_is_a_positive_number"),
    "float64 whatever x": Bug("vp", lambda: DoublePrecision(T=0.2), "perturb_keeps_shape_and_dtype"),
    "storage read": Bug("vp", lambda: ReadsStorage(T=0.2), "perturb_ignores_memory_layout"),
    "-0.0 lost": Bug("vp", lambda: NoSelectionAtZero(T=0.2), "perturb_at_zero_returns_the_data"),
    "numbers in float32": Bug("vp", lambda: CoarseNumbers(T=0.2), "times_as_number_and_tensor_agree"),
    "other draws with a generator": Bug("vp", lambda: OtherDraws(T=0.2), "given_noise_is_used"),
    "t clamped": Bug("vp", lambda: ClampedTimes(T=0.2), "bad_times_are_refused"),
    "integers cast": Bug("vp", lambda: CastIntegers(T=0.2), "bad_data_are_refused"),
    "equal by identity": Bug("vp", lambda: EqualByIdentity(T=0.2), "equality_and_hash_are_by_value"),
    "alpha(0) = 0.999": Bug("vp", lambda: ShrunkAtZero(T=0.2), "coefficients_start_at_the_data"),
    "log_snr a float": Bug("vp", lambda: FloatLogSNR(T=0.2), "coefficients_have_the_shape_of_t"),
    "sigma bounded": Bug("vp", lambda: BoundedSigma(T=0.2), "noise_grows_with_time"),
    "log_snr of sigma for sigma^2": Bug("vp", lambda: HalfLogSNR(T=0.2), "log_snr_is_that_of_alpha_and_sigma"),
    "on the lattice near 0": Bug("vp", lambda: AlmostZeroIsZero(T=0.2), "on_lattice_only_at_zero"),
    "one t in the drift": Bug("vp", lambda: OneTimeForTheDrift(T=0.2), "drift_is_linear"),
    "std bounded below": Bug("vp", lambda: SafetyEpsilon(T=0.2), "short_transitions_are_precise"),
    "one answer for all t": Bug("level", lambda: OneAnswerForAllTimes(5), "on_lattice_has_the_shape_of_t"),
    "off the lattice": Bug("level", lambda: OffLattice(5), "discrete_process_stays_on_its_lattice"),
    "mass lost at the edges": Bug("level", lambda: MassLostAtTheEdges(5), "transition_matrix_is_stochastic"),
    "p_pi applied twice": Bug("level", lambda: AppliedTwice(5), "moves_match_the_transition_matrix"),
    "pi / 2 for pi": Bug("level", lambda: HalfTheMoves(5), "moves_match_the_transition_matrix"),
}
