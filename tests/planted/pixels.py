"""A pixel model with planted bugs: one method for each thing that can go wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncml import VPSDE, AutoregressiveDensity, Lattice
from ncml.density import check_arguments, check_draw
from tests.problems import seeded

PROCESS = VPSDE.at_noise(0.5)
FOUR = Lattice(4)


class PixelModel(AutoregressiveDensity):
    """A mixture of logistics with linear autoregressive means (PixelCNN++'s head), without its network.

    The values of one example share the mixture component.
    """

    def __init__(self, dims=2, lattice=FOUR):
        super().__init__((dims,), PROCESS, lattice)
        self.logits = nn.Parameter(torch.tensor([0.5, -0.3]))
        self.means = nn.Parameter(0.5 * torch.randn(2, dims, generator=seeded(3)))
        self.raw_coefficients = nn.Parameter(torch.tensor([[0.2, 0.4, 0.6], [1.5, 0.3, -0.7], [1.2, -1.4, 0.1]]))
        self.log_scales = nn.Parameter(torch.full((2, dims), -2.5))

    def edges(self, t):
        return self.process.on_lattice(t)

    def half_width(self):
        return self.lattice.half_width

    def log_weights(self):
        return F.log_softmax(self.logits, dim=0)

    def scales(self, t):
        return self.log_scales.exp() + self.process.sigma(t).to(self.logits.dtype)[:, None, None]

    def coefficients(self):
        d = self.event_shape[0]
        return torch.tanh(self.raw_coefficients[:d, :d]).tril(-1)

    def sampling_coefficients(self):
        return self.coefficients()

    def shifts(self, x):
        return x @ self.coefficients().T

    def edge_terms(self, x, edges, below, above, inside):
        k, edges = self.lattice.nearest(x)[:, None], edges[:, None, None]
        last = torch.where(edges & (k == self.lattice.levels - 1), above, inside)
        return torch.where(edges & (k == 0), below, last)

    def log_width(self):
        return math.log(2.0 * self.half_width())

    def over_values(self, terms):
        return terms.sum(-1)

    def window(self, u):
        return (2.0 * u - 1.0) * self.lattice.half_width

    def rounded(self, x):
        return self.lattice.quantize(x)

    def noisy(self, x):
        return x

    def log_likelihood(self, x, t, edges):
        scale = self.scales(t)
        centred = x[:, None] - self.means - self.shifts(x)[:, None]
        below, above = (F.logsigmoid((self.half_width() + side * centred) / scale) for side in (1.0, -1.0))
        inside = below + above + torch.log(-torch.expm1(-2.0 * self.half_width() / scale))
        terms = self.edge_terms(x, edges, below, above, inside) - self.log_width()
        return torch.logsumexp(self.log_weights() + self.over_values(terms), dim=1)

    def forward(self, x, t, context=None, *, edges=True):
        return self.log_likelihood(x, t, self.edges(t) if edges else torch.zeros_like(t, dtype=torch.bool))

    @property
    def order(self):
        return torch.arange(self.event_shape[0])

    def draw_noise(self, n, *, generator=None):
        u = torch.rand(n, *self.event_shape, 3, dtype=self.dtype, generator=generator)
        return u.clamp(min=1e-9)

    @torch.no_grad()
    def resample(self, x, noise, t=0.0, context=None):
        x, t, _ = check_arguments(self, x, t, context)
        k = (noise[:, :1, 0] > self.log_weights().exp().cumsum(0)[:-1]).sum(1)
        rows = torch.arange(len(x))
        means = self.means[k] + x @ self.sampling_coefficients().T
        value = means + self.scales(t)[rows, k] * torch.logit(noise[..., 1])
        on = self.process.on_lattice(t)[:, None]
        return torch.where(on, self.rounded(value), self.noisy(value + self.window(noise[..., 2])))

    def sample(self, n, t=0.0, context=None, *, generator=None, noise=None):
        t, _ = check_draw(self, n, t, context, generator)
        noise = self.draw_noise(n, generator=generator) if noise is None else noise
        x = torch.zeros(n, *self.event_shape, dtype=self.dtype)
        for i in range(self.event_shape[0]):
            x[:, i] = self.resample(x, noise, t)[:, i]
        return x


class OtherSpacing(Lattice):
    """Points 2 / levels apart, as k / 128 - 1 has them, between bins of width 2 / (levels - 1)."""

    def to_unit(self, k, *, dtype=None):
        return k.to(dtype or torch.get_default_dtype()) * (2.0 / self.levels) - 1.0

    def nearest(self, x):
        return ((x.detach() + 1.0) * (0.5 * self.levels)).round().clamp(0, self.levels - 1).long()

    def _distance(self, x):
        return (x - self.to_unit(self.nearest(x), dtype=x.dtype)).abs() / self.width


class EdgesAtEveryTime(PixelModel):
    def edges(self, t):
        return torch.ones_like(t, dtype=torch.bool)


class EdgesInTheDensity(EdgesAtEveryTime):
    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x, t, context)


class NoEdges(PixelModel):
    def edges(self, t):
        return torch.zeros_like(t, dtype=torch.bool)


class SwappedEdges(PixelModel):
    def edge_terms(self, x, edges, below, above, inside):
        return super().edge_terms(x, edges, above, below, inside)


class WrongHalfWidth(PixelModel):
    def half_width(self):
        return 1.0 / self.lattice.levels


class NoLogWidth(PixelModel):
    def log_width(self):
        return 0.0


class RawWeights(PixelModel):
    def log_weights(self):
        return self.logits


class MeanOverValues(PixelModel):
    def over_values(self, terms):
        return terms.mean(-1)


class DetachedMeans(PixelModel):
    def shifts(self, x):
        return super().shifts(x.detach())


class SwappedCoefficients(PixelModel):
    def sampling_coefficients(self):
        c = super().sampling_coefficients()
        c[2, :2] = c[2, :2].flip(0)
        return c


class UnboundedCoefficients(PixelModel):
    def sampling_coefficients(self):
        d = self.event_shape[0]
        return self.raw_coefficients[:d, :d].tril(-1)


class SeesItself(PixelModel):
    def coefficients(self):
        d = self.event_shape[0]
        return torch.tanh(self.raw_coefficients[:d, :d]).tril(0)


class SeesLater(PixelModel):
    def coefficients(self):
        return super().coefficients() + 0.5 * torch.ones_like(super().coefficients()).triu(1)


class NoWindow(PixelModel):
    def window(self, u):
        return 0.0 * u


class NotRounded(PixelModel):
    def rounded(self, x):
        return x


class Clamped(PixelModel):
    def noisy(self, x):
        return x.clamp(-1.0, 1.0)


class ShrunkSamples(PixelModel):
    def noisy(self, x):
        return 0.7 * x


class IgnoredTime(PixelModel):
    def scales(self, t):
        return super().scales(0.0 * t)


class FirstTime(PixelModel):
    def scales(self, t):
        return super().scales(t[:1].expand_as(t))


class BatchNormalised(PixelModel):
    def __init__(self, **options):
        super().__init__(**options)
        self.norm = nn.BatchNorm1d(self.event_shape[0], affine=False)

    def shifts(self, x):
        return super().shifts(self.norm(x))


class CentredBatch(PixelModel):
    def shifts(self, x):
        return super().shifts(x) + 1e-3 * (x - x.mean(0, keepdim=True)).detach() if len(x) else super().shifts(x)


class WithDropout(PixelModel):
    def __init__(self, **options):
        super().__init__(**options)
        self.dropout = nn.Dropout(0.5)

    def scales(self, t):
        return self.dropout(super().scales(t)) + 0.1


class DropoutNeverOff(WithDropout):
    """F.dropout drops in eval mode too, unless it is told not to."""

    def scales(self, t):
        return F.dropout(PixelModel.scales(self, t), 0.5) + 0.1


class CoefficientsKept(PixelModel):
    """Computes them once in eval mode, whatever becomes of the parameters."""

    kept = None

    def coefficients(self):
        if self.training:
            return super().coefficients()
        if self.kept is None:
            self.kept = super().coefficients().detach()
        return self.kept


class ScoreInTrainMode(WithDropout):
    def score(self, x, t=0.0, context=None, *, create_graph=False, check_finite=True):
        x, t, context = check_arguments(self, x, t, context)
        with torch.inference_mode(False):
            score = self.forward_score(x.clone(), t.clone(), context, create_graph=create_graph)
        return score if create_graph else score.detach()


class WrittenTo(PixelModel):
    def forward(self, x, t, context=None, *, edges=True):
        with torch.no_grad():
            x.clamp_(-0.9, 0.9)
        return super().forward(x, t, context, edges=edges)


class Float32Inside(PixelModel):
    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x, t, context, edges=edges).float()


class GradientsLeft(PixelModel):
    def forward_score(self, x, t, context=None, *, create_graph=False):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            self(leaf, t, context, edges=False).sum().backward(create_graph=create_graph)
        return leaf.grad


class EvalModeKept(PixelModel):
    def score(self, x, t=0.0, context=None, *, create_graph=False, check_finite=True):
        score = super().score(x, t, context, create_graph=create_graph)
        self.eval()
        return score


class CutGraph(PixelModel):
    def forward_score(self, x, t, context=None, *, create_graph=False):
        return super().forward_score(x, t, context, create_graph=create_graph).detach()


class GlobalSamples(PixelModel):
    def draw_noise(self, n, *, generator=None):
        return super().draw_noise(n)


class SharedSamplingNoise(PixelModel):
    def draw_noise(self, n, *, generator=None):
        return super().draw_noise(min(n, 1), generator=generator).expand(n, -1, -1)


class NotAPermutation(PixelModel):
    @property
    def order(self):
        return torch.arange(self.event_shape[0]) + 1


class ColumnOfDensities(PixelModel):
    def forward(self, x, t, context=None, *, edges=True):
        value = super().forward(x, t, context, edges=edges)
        return value if edges else value[:, None]


class LoopOverRows(PixelModel):
    def log_prob(self, x, t=0.0, context=None, *, check_finite=True):
        t, rows = torch.as_tensor(t, device=x.device).expand(len(x)), super().log_prob
        return torch.cat([rows(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])


class CoarseNumbers(PixelModel):
    def log_prob(self, x, t=0.0, context=None, *, check_finite=True):
        t = t if isinstance(t, Tensor) else torch.tensor(t).half().float()
        return super().log_prob(x, t, context, check_finite=check_finite)


class ReadsStorage(PixelModel):
    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x.as_strided(x.shape, x.contiguous().stride()), t, context, edges=edges)


class CoarseWithoutGradients(PixelModel):
    def forward(self, x, t, context=None, *, edges=True):
        value = super().forward(x, t, context, edges=edges)
        return value if torch.is_grad_enabled() else value.float().to(value.dtype)


class Unchecked(PixelModel):
    def log_prob(self, x, t=0.0, context=None, *, check_finite=True):
        return self.forward(x.to(self.dtype), torch.as_tensor(t, dtype=self.dtype).expand(len(x)), context)


class MassesOnly(PixelModel):
    """Its public methods give better answers than its call."""

    def log_prob(self, x, t=0.0, context=None, *, check_finite=True):
        return super().log_prob(x, t, context, check_finite=check_finite) - 0.1


class DensityElsewhere(PixelModel):
    def log_density(self, x, t=0.0, context=None, *, check_finite=True):
        return super().log_density(x, t, context, check_finite=check_finite) - 0.1


class PastTheHooks(PixelModel):
    def log_density(self, x, t=0.0, context=None, *, check_finite=True):
        x, t, context = check_arguments(self, x, t, context, finite=check_finite)
        return self.forward(x, t, context, edges=False)


class ScorePastTheHooks(PixelModel):
    """Differentiates forward itself, in a method that has the name of the default."""

    def score(self, x, t=0.0, context=None, *, create_graph=False, check_finite=True):
        x, t, context = check_arguments(self, x, t, context, finite=check_finite)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.clone() if create_graph else x.detach().clone().requires_grad_()
            log_p = self.forward(leaf, t.clone(), context, edges=False)
            (score,) = torch.autograd.grad(log_p.sum(), leaf, create_graph=create_graph)
        return score


class OtherInTraining(PixelModel):
    def log_likelihood(self, x, t, edges):
        return super().log_likelihood(x, t, edges) + 0.1 * self.training


class CoarseScore(PixelModel):
    def forward_score(self, x, t, context=None, *, create_graph=False):
        return super().forward_score(x, t, context, create_graph=create_graph).float().to(x.dtype)


class NoiseIgnored(PixelModel):
    def sample(self, n, t=0.0, context=None, *, generator=None, noise=None):
        return super().sample(n, t, context, generator=generator)


class RoundedAtTheEnd(PixelModel):
    """Rounds at t = 0, but feeds the value before rounding onwards."""

    def sample(self, n, t=0.0, context=None, *, generator=None, noise=None):
        self.rounded = lambda x: x
        x = super().sample(n, t, context, generator=generator, noise=noise)
        del self.rounded
        on = self.process.on_lattice(torch.as_tensor(t).expand(n))
        return torch.where(on[:, None], self.rounded(x), x)


class RoundedDown(PixelModel):
    def rounded(self, x):
        return super().rounded(x - self.lattice.half_width)
