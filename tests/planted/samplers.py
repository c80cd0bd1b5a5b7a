"""Samplers with planted bugs."""

from __future__ import annotations

import math

import torch

from ncml.sampling import EulerMaruyama, HeunODE, Tweedie
from tests.planted import Bug
from tests.problems import seeded


class DriftReversed(EulerMaruyama):
    def step(self, x, t, s, score, process, noise):
        h, f, g = t - s, float(process.drift_coefficient(t)), float(process.diffusion(t))
        return x + h * f * x + h * g**2 * score(x, t) + g * math.sqrt(h) * noise()


class ScoreReversed(EulerMaruyama):
    def step(self, x, t, s, score, process, noise):
        h, f, g = t - s, float(process.drift_coefficient(t)), float(process.diffusion(t))
        return x - h * f * x - h * g**2 * score(x, t) + g * math.sqrt(h) * noise()


class AsPrinted(EulerMaruyama):
    """The bracket f + g^2 + score of the paper's eq. 4."""

    def step(self, x, t, s, score, process, noise):
        h, f, g = t - s, float(process.drift_coefficient(t)), float(process.diffusion(t))
        return x - h * (f * x + g**2 + score(x, t)) + g * math.sqrt(h) * noise()


class DiffusionNotSquared(EulerMaruyama):
    def step(self, x, t, s, score, process, noise):
        h, f, g = t - s, float(process.drift_coefficient(t)), float(process.diffusion(t))
        return x - h * f * x + h * g * score(x, t) + g * math.sqrt(h) * noise()


class NoNoise(EulerMaruyama):
    def step(self, x, t, s, score, process, noise):
        return super().step(x, t, s, score, process, lambda: torch.zeros_like(x))


class SameNoiseEveryStep(EulerMaruyama):
    def step(self, x, t, s, score, process, noise):
        z = torch.randn(x.shape, dtype=x.dtype, generator=seeded(0))
        return super().step(x, t, s, score, process, lambda: z)


class ClampedSteps(EulerMaruyama):
    def step(self, x, t, s, score, process, noise):
        return super().step(x, t, s, score, process, noise).clamp_(-1.0, 1.0)


class StopsEarly(EulerMaruyama):
    def times(self, t_start, t_end, steps):
        return super().times(t_start, t_end + 0.2 * (t_start - t_end), steps)


class NoHalf(HeunODE):
    def step(self, x, t, s, score, process, noise):
        return super().step(x, t, s, lambda x, t: 2.0 * score(x, t), process, noise)


class StdForVariance(Tweedie):
    def step(self, x, t, s, score, process, noise):
        return (x + float(process.sigma(t)) * score(x, t)) / float(process.alpha(t))


class Wrapped(EulerMaruyama):
    """Calls the original with what ``changed`` makes of the arguments."""

    def changed(self, options):
        return options

    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        return super().__call__(density, process, x, t_start, t_end, **self.changed(options))


class ContextLost(Wrapped):
    def changed(self, options):
        return {**options, "context": None}


class GeneratorLost(Wrapped):
    def changed(self, options):
        return {**options, "generator": None}


class FlagsLost(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        return super().__call__(density.eval(), process, x, t_start, t_end, **options)


class TrainMode(Wrapped):
    """Switches the density back to train mode for every score."""

    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        original, child_was_training = density.forward_score, density.child.training

        def forward_score(*args, **options):
            density.train()
            return original(*args, **options)

        density.forward_score = forward_score
        try:
            return super().__call__(density, process, x, t_start, t_end, **options)
        finally:
            del density.forward_score
            density.child.train(child_was_training)


class DoublePrecision(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        return super().__call__(density, process, x, t_start, t_end, **options).double()


class GivesUpInInferenceMode(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        if torch.is_inference_mode_enabled():
            return x.clone()
        return super().__call__(density, process, x, t_start, t_end, **options)


class EndIgnored(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        return super().__call__(density, process, x, t_start, None if t_start is None else t_end, **options)


class ConstantBias(Wrapped):
    """Off by so little that the tolerance covers it, whatever the number of steps."""

    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        y = super().__call__(density, process, x, t_start, t_end, **options)
        return y if t_start == t_end and t_start is not None else 1.03 * y


class InputOverwritten(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        y = super().__call__(density, process, x, t_start, t_end, **options)
        return y if x.is_inference() else x.copy_(y).clone()


class WorksForNothing(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        density.score(x, 0.0)
        return super().__call__(density, process, x, t_start, t_end, **options)


class NaNIgnored(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        try:
            return super().__call__(density, process, x, t_start, t_end, **options)
        except FloatingPointError:
            return x.clone()


class AnyOrder(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        if t_start is not None and t_end is not None and t_start < t_end:
            t_start, t_end = t_end, t_start
        return super().__call__(density, process, x, t_start, t_end, **options)


class OtherProcessAccepted(Wrapped):
    def __call__(self, density, process, x, t_start=None, t_end=None, **options):
        own = density.process if hasattr(process, "sigma") else process
        return super().__call__(density, own, x, t_start, t_end, **options)


SAMPLERS = {
    "euler": EulerMaruyama(steps=32),
    "wrapped": Wrapped(steps=32),
    "heun": HeunODE(steps=16),
    "tweedie": Tweedie(denoise_last=False),
}
SAMPLER_BUGS = {
    "drift sign": Bug("euler", lambda: DriftReversed(steps=32), "law_at_zero"),
    "+ g^2 score": Bug("euler", lambda: ScoreReversed(steps=32), "law_at_zero"),
    "eq. 4 as printed": Bug("euler", lambda: AsPrinted(steps=32), "law_at_zero"),
    "g for g^2": Bug("euler", lambda: DiffusionNotSquared(steps=32), "law_at_zero"),
    "no noise": Bug("euler", lambda: NoNoise(steps=32), "law_at_zero"),
    "noise reused": Bug("euler", lambda: SameNoiseEveryStep(steps=32), "law_at_zero"),
    "noisy x clamped": Bug("euler", lambda: ClampedSteps(steps=32), "law_at_zero"),
    "stops early": Bug("euler", lambda: StopsEarly(steps=32), "law_at_zero"),
    "1/2 missing in the ODE": Bug("heun", lambda: NoHalf(steps=16), "law_at_zero"),
    "sigma for sigma^2 in Tweedie": Bug(
        "tweedie", lambda: StdForVariance(denoise_last=False), "posterior_mean_is_exact"
    ),
    "float64 whatever x": Bug("wrapped", lambda: DoublePrecision(steps=32), "result_has_shape_and_dtype"),
    "inference mode": Bug("wrapped", lambda: GivesUpInInferenceMode(steps=32), "gradient_modes_are_ignored"),
    "t_end ignored": Bug("wrapped", lambda: EndIgnored(steps=32), "law_at_an_intermediate_time"),
    "bias that steps do not reduce": Bug("wrapped", lambda: ConstantBias(steps=32), "more_steps_reduce_the_error"),
    "context lost": Bug("wrapped", lambda: ContextLost(steps=32), "context_reaches_the_density"),
    "generator lost": Bug("wrapped", lambda: GeneratorLost(steps=32), "noise_comes_from_the_generator"),
    "training flags lost": Bug("wrapped", lambda: FlagsLost(steps=32), "density_runs_in_eval_mode"),
    "score in train mode": Bug("wrapped", lambda: TrainMode(steps=32), "density_runs_in_eval_mode"),
    "x overwritten": Bug("wrapped", lambda: InputOverwritten(steps=32), "input_is_left_alone"),
    "work for equal times": Bug("wrapped", lambda: WorksForNothing(steps=32), "equal_times_return_a_copy"),
    "NaN ignored": Bug("wrapped", lambda: NaNIgnored(steps=32), "non_finite_scores_are_refused"),
    "times in any order": Bug("wrapped", lambda: AnyOrder(steps=32), "times_out_of_order_are_refused"),
    "any process": Bug("wrapped", lambda: OtherProcessAccepted(steps=32), "unfit_processes_are_refused"),
}
