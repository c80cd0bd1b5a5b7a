"""Samplers with planted bugs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ncml.density import Target
from ncml.errors import ArgumentTypeError
from ncml.noise import LinearSDE
from ncml.sampling import (
    AdaptiveHeun,
    AnnealedLangevin,
    EulerMaruyama,
    HeunODE,
    MetropolisLangevin,
    MultistepODE,
    Refined,
    Tweedie,
)
from tests.planted import Bug
from tests.problems import seeded

# Wrong steps.


class DriftReversed(EulerMaruyama):
    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x + h * f * x + h * g**2 * target.score(x, t) + g * math.sqrt(h) * target.normal(x), None


class ScoreReversed(EulerMaruyama):
    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x - h * f * x - h * g**2 * target.score(x, t) + g * math.sqrt(h) * target.normal(x), None


class AsPrinted(EulerMaruyama):
    """The bracket f + g^2 + score of the paper's eq. 4."""

    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x - h * (f * x + g**2 + target.score(x, t)) + g * math.sqrt(h) * target.normal(x), None


class DiffusionNotSquared(EulerMaruyama):
    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x - h * f * x + h * g * target.score(x, t) + g * math.sqrt(h) * target.normal(x), None


class OtherNoise(EulerMaruyama):
    """Draws ``noise(x)`` for normals."""

    def noise(self, x):
        return torch.zeros_like(x)

    def step(self, target, x, t, s, state):
        normal, target.normal = target.normal, self.noise
        try:
            return super().step(target, x, t, s, state)
        finally:
            target.normal = normal


class SameNoiseEveryStep(OtherNoise):
    def noise(self, x):
        return torch.randn(x.shape, dtype=x.dtype, generator=seeded(0))


class OtherNormals(OtherNoise):
    """Draws what ``changed`` makes of normals."""

    def changed(self, z):
        return z

    def step(self, target, x, t, s, state):
        self_normal = target.normal
        target.normal = lambda x: self.changed(self_normal(x))
        try:
            return EulerMaruyama.step(self, target, x, t, s, state)
        finally:
            target.normal = self_normal


class OneNumberPerRow(OtherNormals):
    def changed(self, z):
        return z[:, :1].expand(z.shape)


class SharedByNeighbours(OtherNormals):
    def changed(self, z):
        return (z + z.roll(1, 1)) / math.sqrt(2.0)


class MirroredHalf(OtherNormals):
    def changed(self, z):
        half = z[: len(z) // 2]
        return torch.cat([half, -half, z[2 * len(half) :]])


class SignsOnly(OtherNormals):
    def changed(self, z):
        return z.sign()


class SmallNoise(OtherNormals):
    def changed(self, z):
        return 0.97 * z


class HalfTheBatchMean(EulerMaruyama):
    def step(self, target, x, t, s, state):
        x, state = super().step(target, x, t, s, state)
        return x - 0.5 * x.mean(0), state


class LinearScore(EulerMaruyama):
    """Replaces the score by the straight line that fits it over the batch."""

    rows_interact = True

    def step(self, target, x, t, s, state):
        score = target.score

        def fitted(x, t):
            y = score(x, t)
            rows = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
            return rows @ torch.linalg.lstsq(rows, y).solution if len(x) > 2 * rows.shape[1] else y

        target.score = fitted
        try:
            return super().step(target, x, t, s, state)
        finally:
            target.score = score


class ClampedSteps(EulerMaruyama):
    def step(self, target, x, t, s, state):
        return super().step(target, x, t, s, state)[0].clamp_(-1.0, 1.0), None


class StopsEarly(EulerMaruyama):
    def times(self, process, start, stop):
        return super().times(process, start, stop + 0.2 * (start - stop))


class DriftForgotten(EulerMaruyama):
    """Asks for f where it comes in closed form only."""

    def step(self, target, x, t, s, state):
        h, g = t - s, target.diffusion(t)
        f = target.drift_coefficient(t) if isinstance(target.process, LinearSDE) else 0.0
        return x - h * (f * x - g**2 * target.score(x, t)) + g * math.sqrt(h) * target.normal(x), None


class NoHalf(HeunODE):
    def step(self, target, x, t, s, state):
        score, target.score = target.score, lambda x, t: 2.0 * score(x, t)
        try:
            return super().step(target, x, t, s, state)
        finally:
            target.score = score


class StdForVariance(Tweedie):
    def run(self, target, x, start, stop, keep):
        x = (x + target.sigma(start) * target.score(x, start)) / target.alpha(start)
        keep(stop, x)
        return x, {}


class NoiseNotDoubled(AnnealedLangevin):
    """Noise of variance epsilon for 2 epsilon."""

    def step(self, target, x, t, s, state):
        normal, target.normal = target.normal, lambda x: normal(x) / math.sqrt(2.0)
        try:
            return super().step(target, x, t, s, state)
        finally:
            target.normal = normal


class HistoryKept(MultistepODE):
    """Keeps its history in itself, and begins the next run with it."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "last", {})

    def step(self, target, x, t, s, state):
        past = state if state.values else self.last.get(x.shape, state)
        x, self.last[x.shape] = super().step(target, x, t, s, past)
        return x, self.last[x.shape]


# Wrong uses of the target.


class Uncounted(EulerMaruyama):
    """Asks the density itself."""

    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        score = target.density.score(x, t, target.context)
        return x - h * (f * x - g**2 * score) + g * math.sqrt(h) * target.normal(x), None


class PastTheHooks(EulerMaruyama):
    """Counts, but calls the density's forward."""

    def step(self, target, x, t, s, state):
        call, target.density.__class__.__call__ = target.density.__class__.__call__, target.density.__class__.forward
        try:
            return super().step(target, x, t, s, state)
        finally:
            target.density.__class__.__call__ = call


class SecretlyNeedsLogDensity(EulerMaruyama):
    def step(self, target, x, t, s, state):
        target.log_density(x, t)
        return super().step(target, x, t, s, state)


class CentredBatch(EulerMaruyama):
    def step(self, target, x, t, s, state):
        x, state = super().step(target, x, t, s, state)
        return x - 1e-6 * x.mean(0), state


class OneErrorForAll(AdaptiveHeun):
    """Every row takes the steps of the worst."""

    def attempt(self, target, x, t, s, live, memory):
        y, error = super().attempt(target, x, t, s, live, memory)
        return y, error.amax().expand_as(error)


class AllOrNothing(EulerMaruyama):
    """Gives up every row when one fails."""

    def step(self, target, x, t, s, state):
        x, state = super().step(target, x, t, s, state)
        return (x if target.failed is None else x * math.nan), state


class NothingKept(EulerMaruyama):
    def run(self, target, x, start, stop, keep):
        return super().run(target, x, start, stop, lambda *_: None)


class KeptWithoutTheEnd(AdaptiveHeun):
    """Forgets to keep what the last step leads to."""

    def run(self, target, x, start, stop, keep):
        return super().run(target, x, start, stop, lambda t, x: None if t == stop else keep(t, x))


# A wrong edge.


class Wrapped(EulerMaruyama):
    """Refines with what ``changed`` makes of the options."""

    def changed(self, options):
        return options

    def refine(self, density, x, t_start=None, t_end=None, **options):
        return super().refine(density, x, t_start, t_end, **self.changed(options))


class ContextLost(Wrapped):
    def changed(self, options):
        return {**options, "context": None}


class GeneratorLost(Wrapped):
    def changed(self, options):
        return {**options, "generator": None}


class OtherProcessAccepted(Wrapped):
    def changed(self, options):
        return {**options, "process": None}


class FlagsLost(Wrapped):
    def refine(self, density, x, *args, **options):
        return super().refine(density.eval(), x, *args, **options)


class TrainMode(Wrapped):
    """Switches the density back to train mode for every score."""

    def refine(self, density, x, *args, **options):
        original, child_was_training = density.forward_score, density.child.training

        def forward_score(*args, **options):
            density.train()
            return original(*args, **options)

        density.forward_score = forward_score
        try:
            return super().refine(density, x, *args, **options)
        finally:
            del density.forward_score
            density.child.train(child_was_training)


class DoublePrecision(Wrapped):
    def refine(self, density, x, *args, **options):
        refined = super().refine(density, x, *args, **options)
        return replace(refined, x=refined.x.double())


class GivesUpInInferenceMode(Wrapped):
    def refine(self, density, x, *args, **options):
        if torch.is_inference_mode_enabled():
            return Refined(x.clone(), 0.0)
        return super().refine(density, x, *args, **options)


class EndIgnored(Wrapped):
    def refine(self, density, x, t_start=None, t_end=None, **options):
        return super().refine(density, x, t_start, t_end if t_end == t_start else None, **options)


class ConstantBias(Wrapped):
    """Off by so little that the tolerance covers it, whatever the number of steps."""

    def refine(self, density, x, t_start=None, t_end=None, **options):
        refined = super().refine(density, x, t_start, t_end, **options)
        return refined if t_start == t_end and t_start is not None else replace(refined, x=1.03 * refined.x)


class ConstantBiasOfRows(AdaptiveHeun):
    def refine(self, density, x, t_start=None, t_end=None, **options):
        refined = super().refine(density, x, t_start, t_end, **options)
        return refined if t_start == t_end and t_start is not None else replace(refined, x=1.03 * refined.x)


class InputOverwritten(Wrapped):
    def refine(self, density, x, *args, **options):
        refined = super().refine(density, x, *args, **options)
        return refined if x.is_inference() else replace(refined, x=x.copy_(refined.x).clone())


class WorksForNothing(Wrapped):
    def refine(self, density, x, *args, **options):
        density.score(x, 0.0)
        return super().refine(density, x, *args, **options)


class NaNIgnored(Wrapped):
    def refine(self, density, x, *args, **options):
        try:
            return super().refine(density, x, *args, **options)
        except FloatingPointError:
            return Refined(x.clone(), 0.0)


class FailuresNotNamed(Wrapped):
    def refine(self, density, x, *args, **options):
        refined = super().refine(density, x, *args, **options)
        return replace(refined, info={})


class AnyOrder(Wrapped):
    def refine(self, density, x, t_start=None, t_end=None, **options):
        if t_start is not None and t_end is not None and t_start < t_end:
            t_start, t_end = t_end, t_start
        return super().refine(density, x, t_start, t_end, **options)


class ProcessRequired(Wrapped):
    def refine(self, density, x, *args, **options):
        if options.get("process") is None:
            raise ArgumentTypeError("process: got None; expected a process")
        return super().refine(density, x, *args, **options)


class TargetsUnpacked(Wrapped):
    """Takes the density out of a target, and so loses what the target adds."""

    def refine(self, density, x, *args, **options):
        inner = density.density if isinstance(density, Target) else density
        return super().refine(inner, x, *args, **options)


class RunsToZero(Wrapped):
    """Names the end that stands for "by way of 0.3 level"."""

    def refine(self, density, x, t_start=None, t_end=None, **options):
        return super().refine(density, x, t_start, 0.0 if t_end is None else t_end, **options)


class CallRounds(Wrapped):
    def __call__(self, density, x, *args, **options):
        return super().__call__(density, x, *args, **options).float().to(x.dtype)


@dataclass(frozen=True)
class RefusesLogDensity(MetropolisLangevin):
    """Says that it needs a score only, and finds out on the way that it does not."""

    needs_log_density = False


class StandsStill(AnnealedLangevin):
    def refine(self, density, x, t_start=None, t_end=None, **options):
        if t_start is not None and t_start == t_end:
            return Refined(x.clone(), t_start)
        return super().refine(density, x, t_start, t_end, **options)


LANGEVIN = {"steps": 64, "moves": 24, "step_size": 0.1}
SAMPLERS = {
    "euler": EulerMaruyama(steps=32),
    "wrapped": Wrapped(steps=32),
    "heun": HeunODE(steps=16),
    "multistep": MultistepODE(),
    "tweedie": Tweedie(),
    "adaptive": AdaptiveHeun(),
    "langevin": AnnealedLangevin(**LANGEVIN),
    "metropolis": MetropolisLangevin(),
}
SAMPLER_BUGS = {
    "one number per row": Bug("euler", lambda: OneNumberPerRow(steps=32), "results_are_independent"),
    "noise of neighbours": Bug("euler", lambda: SharedByNeighbours(steps=32), "results_are_independent"),
    "second half mirrored": Bug("euler", lambda: MirroredHalf(steps=32), "results_are_independent"),
    "+-1 for normals": Bug("euler", lambda: SignsOnly(steps=32), "noise_is_normal"),
    "noise 3 % too small": Bug("euler", lambda: SmallNoise(steps=32), "more_steps_reduce_the_error"),
    "half the batch mean": Bug("euler", lambda: HalfTheBatchMean(steps=32), "rows_do_not_interact"),
    "score linear over the batch": Bug("euler", lambda: LinearScore(steps=32), "distribution_of_a_mixture"),
    "drift sign": Bug("euler", lambda: DriftReversed(steps=32), "distribution_at_zero"),
    "+ g^2 score": Bug("euler", lambda: ScoreReversed(steps=32), "distribution_at_zero"),
    "eq. 4 as printed": Bug("euler", lambda: AsPrinted(steps=32), "distribution_at_zero"),
    "g for g^2": Bug("euler", lambda: DiffusionNotSquared(steps=32), "distribution_at_zero"),
    "no noise": Bug("euler", lambda: OtherNoise(steps=32), "distribution_at_zero"),
    "noise reused": Bug("euler", lambda: SameNoiseEveryStep(steps=32), "distribution_at_zero"),
    "noisy x clamped": Bug("euler", lambda: ClampedSteps(steps=32), "distribution_at_zero"),
    "stops early": Bug("euler", lambda: StopsEarly(steps=32), "distribution_at_zero"),
    "1/2 missing in the ODE": Bug("heun", lambda: NoHalf(steps=16), "distribution_at_zero"),
    "f of SDEs only": Bug("euler", lambda: DriftForgotten(steps=32), "distribution_without_closed_forms"),
    "epsilon for 2 epsilon": Bug("langevin", lambda: NoiseNotDoubled(**LANGEVIN), "chains_keep_the_distribution"),
    "a chain that stands still": Bug("langevin", lambda: StandsStill(**LANGEVIN), "equal_times_move_a_chain"),
    "sigma for sigma^2 in Tweedie": Bug("tweedie", StdForVariance, "posterior_mean_is_exact"),
    "float64 whatever x": Bug("wrapped", lambda: DoublePrecision(steps=32), "result_has_shape_and_dtype"),
    "inference mode": Bug("wrapped", lambda: GivesUpInInferenceMode(steps=32), "gradient_modes_are_ignored"),
    "t_end ignored": Bug("wrapped", lambda: EndIgnored(steps=32), "distribution_at_an_intermediate_time"),
    "bias that steps do not reduce": Bug("wrapped", lambda: ConstantBias(steps=32), "more_steps_reduce_the_error"),
    "bias that tolerances do not reduce": Bug("adaptive", ConstantBiasOfRows, "lower_tolerances_reduce_the_error"),
    "context lost": Bug("wrapped", lambda: ContextLost(steps=32), "context_reaches_the_density"),
    "generator lost": Bug("wrapped", lambda: GeneratorLost(steps=32), "noise_comes_from_the_generator"),
    "training flags lost": Bug("wrapped", lambda: FlagsLost(steps=32), "density_runs_in_eval_mode"),
    "score in train mode": Bug("wrapped", lambda: TrainMode(steps=32), "density_runs_in_eval_mode"),
    "x overwritten": Bug("wrapped", lambda: InputOverwritten(steps=32), "input_is_left_alone"),
    "work for equal times": Bug("wrapped", lambda: WorksForNothing(steps=32), "equal_times_return_a_copy"),
    "NaN ignored": Bug("wrapped", lambda: NaNIgnored(steps=32), "non_finite_scores_are_refused"),
    "all rows given up": Bug("euler", lambda: AllOrNothing(steps=32), "failed_rows_do_not_cost_the_others"),
    "failed rows not named": Bug("wrapped", lambda: FailuresNotNamed(steps=32), "failed_rows_do_not_cost_the_others"),
    "times in any order": Bug("wrapped", lambda: AnyOrder(steps=32), "times_out_of_order_are_refused"),
    "any process": Bug("wrapped", lambda: OtherProcessAccepted(steps=32), "unfit_processes_are_refused"),
    "process required": Bug("wrapped", lambda: ProcessRequired(steps=32), "process_is_optional"),
    "targets unpacked": Bug("wrapped", lambda: TargetsUnpacked(steps=32), "targets_take_the_place_of_densities"),
    "log p used in secret": Bug("euler", lambda: SecretlyNeedsLogDensity(steps=32), "needs_log_density_is_true"),
    "need of log p not declared": Bug("metropolis", RefusesLogDensity, "needs_log_density_is_true"),
    "history of the last run": Bug("multistep", HistoryKept, "noise_comes_from_the_generator"),
    "lattice stop lost": Bug("wrapped", lambda: RunsToZero(steps=32), "lattice_data_end_by_tweedie"),
    "call apart from refine": Bug("wrapped", lambda: CallRounds(steps=32), "refine_gives_what_the_call_gives"),
    "density asked directly": Bug("euler", lambda: Uncounted(steps=32), "evaluations_are_counted"),
    "hooks bypassed": Bug("euler", lambda: PastTheHooks(steps=32), "evaluations_are_counted"),
    "steps not kept": Bug("euler", lambda: NothingKept(steps=32), "path_has_every_step"),
    "last step not kept": Bug("adaptive", KeptWithoutTheEnd, "path_has_every_step"),
    "batch mean": Bug("euler", lambda: CentredBatch(steps=32), "rows_do_not_interact"),
    "one step size for all rows": Bug("adaptive", OneErrorForAll, "rows_do_not_interact"),
}
