"""Densities with planted bugs."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ncml import NoiseConditionalDensity, SampleableDensity
from ncml.densities import MADE, MAF, CausalTransformer, GaussianDensity, GaussianMixtureDensity, MarginalMADE
from ncml.density import check_draw
from tests.planted import Bug, pixels
from tests.planted.pixels import PROCESS


class Shifted(SampleableDensity):
    """A Gaussian around its context."""

    def forward(self, x, t, context=None, *, edges=True):
        return torch.distributions.Normal(context, 1.0 + t[:, None]).log_prob(x).sum(1)

    def centre(self, context):
        return context

    def sample(self, n, t=0.0, context=None, *, generator=None):
        t, context = check_draw(self, n, t, context, generator)
        z = torch.randn(n, *self.event_shape, dtype=self.dtype, generator=generator)
        return self.centre(context) + (1.0 + t.to(z.dtype)[:, None]) * z


class ContextLostInSamples(Shifted):
    def centre(self, context):
        return torch.zeros_like(context)


class ContextShrunkInSamples(Shifted):
    """Right on the average over contexts, and nearly in its spread."""

    def centre(self, context):
        return 0.6 * context


class FirstContextForAll(Shifted):
    def centre(self, context):
        return context[:1]


class ContextIgnored(Shifted):
    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x, t, torch.zeros_like(context))


class SamplesInDouble(GaussianDensity):
    """Puts a function in the place of its method, past the public edge."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.sample = self.in_double

    def in_double(self, n, t=0.0, context=None, *, generator=None):
        return GaussianDensity.sample(self, n, t, context, generator=generator).double()


class GlobalGaussianSamples(GaussianDensity):
    def sample(self, n, t=0.0, context=None, *, generator=None):
        return super().sample(n, t, context)


class OtherScale(GaussianDensity):
    """Swaps standard deviation and variance in the closed form of the score only."""

    def forward_score(self, x, t, context=None, *, create_graph=False):
        mean, variance = self._moments(x, t)
        return (mean - x) / variance.sqrt()


class Learned(NoiseConditionalDensity):
    """A Gaussian with a mean and a scale to be learned."""

    def __init__(self, dims):
        super().__init__((dims,))
        self.mean, self.log_scale = nn.Parameter(0.1 * torch.ones(dims)), nn.Parameter(-0.5 * torch.ones(dims))

    def log_det(self):
        return -self.log_scale.sum()

    def forward(self, x, t, context=None, *, edges=True):
        std = 1.0 + t[:, None].to(x.dtype)
        z = (x - self.mean) * torch.exp(-self.log_scale) / std
        return self.log_det() - (0.5 * (z.square() + math.log(2.0 * math.pi)) + std.log()).sum(1)


class LogDeterminantDetached(Learned):
    """The right value and the right score, which do not say how the log-determinant depends on parameters."""

    def log_det(self):
        return super().log_det().detach()


class Detached(Learned):
    """A right density that nothing can train."""

    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x, t, context).detach()


class ScoreWithoutParameters(MADE):
    """A score whose graph leads to x and not to the parameters."""

    def forward_score(self, x, t, context=None, *, create_graph=False):
        with torch.random.fork_rng(devices=[]):
            frozen = copy.deepcopy(self).requires_grad_(False)
        return MADE.forward_score(frozen, x, t, context, create_graph=create_graph)


class LengthsIgnored(CausalTransformer):
    def forward(self, x, t, context=None, *, edges=True, lengths=None, keep=0):
        return super().forward(x, t, context, edges=edges, keep=keep)


class LongerPrefixes(CausalTransformer):
    """The likelihood of a prefix is off by a constant."""

    def forward(self, x, t, context=None, *, edges=True, lengths=None, keep=0):
        log_p = super().forward(x, t, context, edges=edges, lengths=lengths, keep=keep)
        return log_p + 0.1 * (self.event_shape[0] - x.shape[1])


class NarrowChain(SampleableDensity):
    """Each value is next to the one before it; takes the first two or three positions."""

    def __init__(self, longer=0.0):
        super().__init__((3, 1))
        self.longer = longer

    def event_shape_for(self, x):
        return (2, 1) if x.shape[1:] == (2, 1) else (3, 1)

    def law(self, x, t):
        std = torch.ones_like(x) * (1.0 + t[:, None, None].to(x.dtype))
        std[:, 1:] *= 2e-6
        return torch.distributions.Normal(0.9 * nn.functional.pad(x, (0, 0, 1, 0))[:, :-1], std)

    def forward(self, x, t, context=None, *, edges=True):
        return self.law(x, t).log_prob(x).flatten(1).sum(1) + self.longer * x.shape[1]

    def sample(self, n, t=0.0, context=None, *, generator=None):
        t, _ = check_draw(self, n, t, context, generator)
        z = torch.randn(n, *self.event_shape, dtype=self.dtype, generator=generator)
        x = torch.zeros_like(z)
        for i in range(3):
            law = self.law(x, t)
            x[:, i] = (law.mean + law.stddev * z)[:, i]
        return x


class ObservedElsewhere(MarginalMADE):
    """Says that the missing values are the observed ones."""

    def observed(self, x, context=None):
        mask = super().observed(x, context)
        return None if mask is None else ~mask


class NoLogDeterminant(MAF):
    """Leaves out the log-determinant of the input scaling."""

    def forward(self, x, t, context=None, *, edges=True):
        _, log_det = self.scaling(x, t)
        return super().forward(x, t, context) - log_det


class NoShrinkage(GaussianDensity):
    """Samples with the mean of the data at every t."""

    def sample(self, n, t=0.0, context=None, *, generator=None):
        x = super().sample(n, t, context, generator=generator)
        return x + (1.0 - self.process.alpha(t)).to(x.dtype)[:, None] * self.mean.to(x.dtype)


class MissingMode(GaussianMixtureDensity):
    """Never draws its first component, whose weight is a fifth."""

    def sample(self, n, t=0.0, context=None, *, generator=None):
        rest = GaussianMixtureDensity(self.process, self.weights[1:], self.means[1:].float(), self.stds[1:])
        return rest.to(self.dtype).sample(n, t, context, generator=generator)


class RoundedNats(GaussianDensity):
    def forward(self, x, t, context=None, *, edges=True):
        log_p = super().forward(x, t, context)
        return (log_p + 1e7) - 1e7 if x.dtype == torch.float32 else log_p


class HalfPrecisionMean(GaussianDensity):
    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x if x.dtype == torch.float64 else x.bfloat16().to(x.dtype), t, context)


class BetweenTheTimes(GaussianDensity):
    """Wrong where nobody asks by default, in the middle between 0 and T."""

    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x, t) + 0.5 * torch.exp(-(((t / self.process.T - 0.5) / 0.1) ** 2)).to(x.dtype)


class OtherContexts(Shifted):
    """Right in the first context of the check only."""

    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x, t, context) + 0.2 * (context[:, 0] > 0.0)


class Changed(GaussianDensity):
    """Returns what ``changed`` makes of right samples."""

    def changed(self, x, mean):
        return x

    def sample(self, n, t=0.0, context=None, *, generator=None):
        t, _ = check_draw(self, n, t, context, generator)
        x = super().sample(n, t, context, generator=generator)
        mean = self.process.alpha(t).to(x.dtype)[:, None] * self.mean.to(x.dtype)
        return self.changed(x, mean)


class Repeated(Changed):
    def changed(self, x, mean):
        return torch.cat([x[: len(x) // 2], x[: -(-len(x) // 2)] * (1.0 + 1e-9)])


class Mirrored(Changed):
    def changed(self, x, mean):
        half = len(x) // 2
        return torch.cat([x[:half], (2.0 * mean - x)[:half], x[2 * half :]])


class MirroredBackwards(Changed):
    def changed(self, x, mean):
        half = len(x) // 2
        return torch.cat([x[: len(x) - half], (2.0 * mean - x)[:half].flip(0)])


class SizesRepeated(Changed):
    def changed(self, x, mean):
        half = len(x) // 2
        same = (x - mean)[:half].abs() * (x - mean)[len(x) - half :].sign()
        return torch.cat([x[: len(x) - half], mean[:half] + same])


class HalfTheBatchMean(Changed):
    def changed(self, x, mean):
        return x - 0.5 * (x - mean).mean(0) if len(x) else x


class TailsCut(GaussianDensity):
    """Draws again what is further out than 2.5 standard deviations."""

    def sample(self, n, t=0.0, context=None, *, generator=None):
        x = super().sample(n, t, context, generator=generator)
        mean, variance = self._moments(x, check_draw(self, n, t, context, generator)[0])
        for _ in range(6):
            again = super().sample(n, t, context, generator=generator)
            x = torch.where((x - mean).abs() > 2.5 * variance.sqrt(), again, x)
        return x


class WrongWeights(GaussianMixtureDensity):
    """Draws its components alike, whatever their weights."""

    def sample(self, n, t=0.0, context=None, *, generator=None):
        even = GaussianMixtureDensity(self.process, torch.ones_like(self.weights), self.means.float(), self.stds)
        return even.to(self.dtype).sample(n, t, context, generator=generator)


def modes(kind=GaussianMixtureDensity, dims=2, distance=1.6):
    means = distance * torch.eye(max(dims, 3))[:3, :dims]
    means[2] -= 0.5 * distance
    return kind(PROCESS, [0.2, 0.5, 0.3], means, 0.3)


def plain(kind=GaussianDensity):
    return kind(PROCESS, [0.3, -3.0], 0.2)


def made(break_masks: bool = False, kind: type[MADE] = MADE) -> MADE:
    torch.manual_seed(0)
    density = kind((3,), PROCESS, hidden=(6,), components=2)
    for module in density.modules():
        if break_masks and isinstance(getattr(module, "mask", None), Tensor):
            module.mask.fill_(1.0)
    return density


def maf(kind: type[MAF] = MAF, dims: int = 2) -> MAF:
    torch.manual_seed(0)
    return kind((dims,), PROCESS, transforms=1, hidden=(6,), data_std=0.5)


def sequences(kind: type[CausalTransformer] = CausalTransformer) -> CausalTransformer:
    torch.manual_seed(0)
    return kind((3, 1), PROCESS, width=16, layers=1, heads=2, components=2, noise_features=4)


def with_gaps(kind: type[MarginalMADE] = MarginalMADE) -> MarginalMADE:
    torch.manual_seed(0)
    return kind((3,), PROCESS, hidden=(8,), components=2)


DENSITIES = {
    "pixels": pixels.PixelModel,
    "three pixels": lambda: pixels.PixelModel(dims=3),
    "one pixel": lambda: pixels.PixelModel(dims=1),
    "dropout": pixels.WithDropout,
    "gaussian": lambda: GaussianDensity(PROCESS, [0.3, -3.0], 0.2),
    "two-dimensional modes": modes,
    "six-dimensional modes": lambda: modes(dims=6),
    "twelve-dimensional modes": lambda: modes(dims=12),
    "made": made,
    "maf": maf,
    "three-dimensional maf": lambda: maf(dims=3),
    "shifted": lambda: Shifted((2,)),
    "learned": lambda: Learned(2),
    "sequences": sequences,
    "narrow chain": NarrowChain,
    "with gaps": with_gaps,
}
OPTIONS = {
    "shifted": {"context": torch.linspace(-1.0, 1.0, 8, dtype=torch.float32)[:, None]},
    "with gaps": {"context": torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])},
}
"""What the check needs to know of some of them."""

DENSITY_BUGS = {
    "edges at t > 0": Bug("pixels", pixels.EdgesAtEveryTime, "log_density_equals_log_prob_where_there_are_no_masses"),
    "edges in log_density": Bug("one pixel", lambda: pixels.EdgesInTheDensity(dims=1), "density_integrates_to_one"),
    "edges missing at t = 0": Bug("pixels", pixels.NoEdges, "masses_sum_to_one"),
    "edge sides swapped": Bug("pixels", pixels.SwappedEdges, "masses_sum_to_one"),
    "delta 1/256": Bug("pixels", pixels.WrongHalfWidth, "masses_sum_to_one"),
    "127.5 -> 128": Bug("pixels", lambda: pixels.PixelModel(lattice=pixels.OtherSpacing(4)), "masses_sum_to_one"),
    "log(2 delta) missing": Bug("pixels", pixels.NoLogWidth, "masses_sum_to_one"),
    "log_softmax missing": Bug("pixels", pixels.RawWeights, "masses_sum_to_one"),
    "mean over D": Bug("pixels", pixels.MeanOverValues, "masses_sum_to_one"),
    "AR mean terms detached": Bug("pixels", pixels.DetachedMeans, "score_is_the_gradient"),
    "c1 and c2 swapped": Bug("three pixels", lambda: pixels.SwappedCoefficients(dims=3), "stein_identities_hold"),
    "tanh dropped": Bug("pixels", pixels.UnboundedCoefficients, "stein_identities_hold"),
    "sees itself": Bug("pixels", pixels.SeesItself, "resampling_is_causal"),
    "sees later values": Bug("pixels", pixels.SeesLater, "resampling_is_causal"),
    "masks off": Bug("made", lambda: made(break_masks=True), "resampling_is_causal"),
    "no uniform window in the sampler": Bug("pixels", pixels.NoWindow, "stein_identities_hold"),
    "not rounded at t = 0": Bug("pixels", pixels.NotRounded, "samples_are_on_the_lattice_where_the_process_is"),
    "noisy x clamped": Bug("pixels", pixels.Clamped, "noisy_samples_are_neither_clamped_nor_rounded"),
    "samples of another scale": Bug("pixels", pixels.ShrunkSamples, "stein_identities_hold"),
    "samples of another mean": Bug("gaussian", lambda: NoShrinkage(PROCESS, [0.3, -3.0], 0.2), "stein_identities_hold"),
    "t ignored": Bug("pixels", pixels.IgnoredTime, "time_is_used"),
    "one t for the whole batch": Bug("pixels", pixels.FirstTime, "rows_are_treated_alone"),
    "BatchNorm": Bug("pixels", pixels.BatchNormalised, "rows_do_not_interact"),
    "batch mean, detached": Bug("pixels", pixels.CentredBatch, "rows_are_treated_alone"),
    "train-mode score": Bug("dropout", pixels.ScoreInTrainMode, "score_runs_in_eval_mode"),
    "x written to": Bug("pixels", pixels.WrittenTo, "arguments_are_left_alone"),
    "float32 inside": Bug("pixels", pixels.Float32Inside, "float64_copy_works"),
    "gradients left on parameters": Bug("pixels", pixels.GradientsLeft, "score_leaves_no_trace"),
    "eval mode kept": Bug("pixels", pixels.EvalModeKept, "score_leaves_no_trace"),
    "graph of the score cut": Bug("pixels", pixels.CutGraph, "score_can_be_differentiated"),
    "closed-form score of another scale": Bug(
        "gaussian", lambda: OtherScale(PROCESS, [0.3, -3.0], 0.2), "score_is_the_gradient"
    ),
    "log-determinant without parameters": Bug(
        "learned", lambda: LogDeterminantDetached(2), "likelihood_has_its_gradient_in_the_parameters"
    ),
    "log-density detached": Bug("learned", lambda: Detached(2), "likelihood_has_its_gradient_in_the_parameters"),
    "score without parameters": Bug(
        "made", lambda: made(kind=ScoreWithoutParameters), "score_has_its_gradient_in_the_parameters"
    ),
    "lengths ignored": Bug("sequences", lambda: sequences(LengthsIgnored), "lengths_cut_the_rows"),
    "prefixes off by a constant": Bug("sequences", lambda: sequences(LongerPrefixes), "prefixes_are_marginals"),
    "narrow conditionals off by a constant": Bug("narrow chain", lambda: NarrowChain(0.1), "prefixes_are_marginals"),
    "observed where missing": Bug("with gaps", lambda: with_gaps(ObservedElsewhere), "only_observed_values_count"),
    "log-determinant missing": Bug("maf", lambda: maf(NoLogDeterminant), "density_integrates_to_one"),
    "generator ignored": Bug("pixels", pixels.GlobalSamples, "drawn_noise_has_one_row_per_sample"),
    "noise shared by samples": Bug("pixels", pixels.SharedSamplingNoise, "drawn_noise_has_one_row_per_sample"),
    "log-densities in a column": Bug("pixels", pixels.ColumnOfDensities, "log_prob_is_one_number_per_example"),
    "loop over rows": Bug("pixels", pixels.LoopOverRows, "empty_batches_work"),
    "numbers in float16": Bug("pixels", pixels.CoarseNumbers, "times_as_number_and_tensor_agree"),
    "storage read": Bug("pixels", pixels.ReadsStorage, "memory_layout_is_ignored"),
    "less precise without gradients": Bug("pixels", pixels.CoarseWithoutGradients, "gradient_modes_are_ignored"),
    "arguments not checked": Bug("pixels", pixels.Unchecked, "bad_arguments_are_refused"),
    "score in float32": Bug("pixels", pixels.CoarseScore, "score_matches_autograd"),
    "noise ignored by sample": Bug("pixels", pixels.NoiseIgnored, "samples_are_a_function_of_the_noise"),
    "rounded at the end": Bug("pixels", pixels.RoundedAtTheEnd, "samples_are_fixed_points_of_resampling"),
    "rounded down": Bug("pixels", pixels.RoundedDown, "samples_follow_the_density"),
    "context ignored": Bug("shifted", lambda: ContextIgnored((2,)), "context_is_used"),
    "samples of another dtype": Bug(
        "gaussian", lambda: SamplesInDouble(PROCESS, [0.3, -3.0], 0.2), "samples_have_shape_and_dtype"
    ),
    "generator ignored by sample": Bug(
        "gaussian", lambda: GlobalGaussianSamples(PROCESS, [0.3, -3.0], 0.2), "samples_come_from_the_generator"
    ),
    "log-determinant missing in 3 dimensions": Bug(
        "three-dimensional maf", lambda: maf(NoLogDeterminant, dims=3), "importance_weights_average_to_one"
    ),
    "log_prob apart from the call": Bug("pixels", pixels.MassesOnly, "call_is_log_prob"),
    "log_density apart from the call": Bug("pixels", pixels.DensityElsewhere, "call_without_edges_is_log_density"),
    "log_density past the hooks": Bug("pixels", pixels.PastTheHooks, "hooks_see_every_call"),
    "score past the hooks": Bug("pixels", pixels.ScorePastTheHooks, "hooks_see_every_call"),
    "another function in train mode": Bug("pixels", pixels.OtherInTraining, "train_mode_is_the_same_function"),
    "a mode missing in 2 dimensions": Bug(
        "two-dimensional modes", lambda: modes(MissingMode), "samples_have_the_means_of_the_density"
    ),
    "a mode missing in 6 dimensions": Bug(
        "six-dimensional modes", lambda: modes(MissingMode, dims=6), "samples_have_the_means_of_the_density"
    ),
    "a mode missing in 12 dimensions": Bug(
        "twelve-dimensional modes", lambda: modes(MissingMode, dims=12), "samples_reach_every_mode"
    ),
    "weights of modes ignored": Bug(
        "six-dimensional modes", lambda: modes(WrongWeights, dims=6), "samples_reach_every_mode"
    ),
    "whole nats in float32": Bug("gaussian", lambda: plain(RoundedNats), "float32_agrees_with_float64"),
    "bfloat16 inside": Bug("gaussian", lambda: plain(HalfPrecisionMean), "float32_agrees_with_float64"),
    "wrong between the times": Bug(
        "gaussian", lambda: plain(BetweenTheTimes), "integral_is_one_at_drawn_times_and_contexts"
    ),
    "wrong in other contexts": Bug(
        "shifted", lambda: OtherContexts((2,)), "integral_is_one_at_drawn_times_and_contexts"
    ),
    "second half repeated": Bug("gaussian", lambda: plain(Repeated), "rows_of_samples_are_independent"),
    "second half mirrored": Bug("gaussian", lambda: plain(Mirrored), "rows_of_samples_are_independent"),
    "mirrored backwards": Bug("gaussian", lambda: plain(MirroredBackwards), "rows_of_samples_are_independent"),
    "sizes repeated": Bug("gaussian", lambda: plain(SizesRepeated), "rows_of_samples_are_independent"),
    "half the batch mean": Bug("gaussian", lambda: plain(HalfTheBatchMean), "rows_of_samples_are_independent"),
    "dropout never off": Bug("dropout", pixels.DropoutNeverOff, "evaluations_repeat"),
    "parameters kept": Bug("pixels", pixels.CoefficientsKept, "parameters_are_read_at_every_call"),
    "context lost in samples": Bug("shifted", lambda: ContextLostInSamples((2,)), "samples_follow_the_density"),
    "context shrunk in samples": Bug("shifted", lambda: ContextShrunkInSamples((2,)), "samples_follow_the_density"),
    "first context in all samples": Bug("shifted", lambda: FirstContextForAll((2,)), "samples_follow_the_density"),
    "tails of samples cut": Bug("gaussian", lambda: plain(TailsCut), "samples_follow_the_density"),
    "order off by one": Bug("pixels", pixels.NotAPermutation, "order_is_a_permutation"),
}
