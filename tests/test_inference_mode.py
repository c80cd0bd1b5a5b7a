"""Everything public works under a caller's inference mode, on tensors made in it, as without; and silently."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ncml import VESDE, Lattice, LevelNoise, SampleableDensity, evaluation, generate, sampling
from ncml.densities import MADE, NCPN, CausalTransformer, GaussianMixtureDensity, ToyLattice, TransformerFlow
from ncml.density import (
    AlignedTarget,
    CompletionTarget,
    ComposedTarget,
    EventTarget,
    PosteriorTarget,
    Target,
    guided,
)
from tests.problems import PMF, plane_mixture, seeded

F64 = torch.float64
VE = VESDE.linear(1.0)
MIXTURE: GaussianMixtureDensity = plane_mixture(VE)
LEVELS = ToyLattice(LevelNoise(17), PMF.repeat(2, 1))
TIMES = (0.2, 0.5)


def made(**settings: object) -> MADE:
    torch.manual_seed(0)
    with torch.inference_mode(False):  # a model is built outside
        return MADE((2,), VE, hidden=(8,), components=2, **settings).double()


def built(kind: type, shape: tuple[int, ...], **settings: object) -> SampleableDensity:
    torch.manual_seed(0)
    with torch.inference_mode(False):
        return kind(shape, VE, heads=2, **settings)


def ncpn() -> SampleableDensity:
    return built(NCPN, (1, 4, 4), lattice=Lattice(17), features=8, blocks=1, resolutions=1, components=2)


def transformer() -> SampleableDensity:
    return built(CausalTransformer, (4, 1), width=8, layers=1, components=2)


def data(n: int = 8) -> Tensor:
    """Made in the mode of the caller."""
    return MIXTURE.sample(n, generator=seeded(0)) + 0.0


def half() -> Tensor:
    return torch.tensor([True, False])


def target(kind: type[Target] | Callable[..., Target], *arguments: object) -> Target:
    return kind(Target(MIXTURE, generator=seeded(1)), *arguments)


def measured(noise: float) -> Target:
    return target(PosteriorTarget, data(1)[:, :1], torch.ones(1, 2, dtype=F64), noise)


TARGETS: dict[str, Callable[[], Target]] = {
    "aligned": lambda: target(AlignedTarget),
    "completed": lambda: target(CompletionTarget, data(), half()),
    "composed": lambda: ComposedTarget((1.0, target(lambda t: t)), (0.5, Target(MIXTURE))),
    "event": lambda: target(EventTarget, lambda x: x[:, 0]),
    "guided": lambda: guided(made(classes=2), torch.arange(8) % 2, 1.0, generator=seeded(1)),
    "measured": lambda: measured(0.0),
    "measured with noise": lambda: measured(0.3),
    "completed and measured": lambda: CompletionTarget(measured(0.3), data(), half()),
}

SAMPLERS = {
    "adaptive-heun": sampling.AdaptiveHeun(),
    "adaptive-sde": sampling.AdaptiveSDE(),
    "ancestral": sampling.Ancestral(4),
    "ddim": sampling.DDIM(4),
    "dpm": sampling.DPMSolver2M(4),
    "dpm-sde": sampling.DPMSolver2MSDE(4),
    "er-sde": sampling.ERSDE(4),
    "euler": sampling.EulerMaruyama(4),
    "heun": sampling.HeunODE(4),
    "hmc": sampling.HMC(2),
    "langevin": sampling.AnnealedLangevin(2, moves=2),
    "metropolis": sampling.MetropolisLangevin(2),
    "multistep": sampling.MultistepODE(4),
    "pc": sampling.PredictorCorrector(4),
    "parallel-tempering": sampling.ParallelTempering(3, rounds=2),
    "repaint": sampling.RePaint(4, repeats=2),
    "smc": sampling.AnnealedSMC(4),
    "tweedie": sampling.Tweedie(),
}

CALLS: dict[str, Callable[[], object]] = {
    **{
        f"euler, {name}": lambda build=build: sampling.EulerMaruyama(4)(build(), data())
        for name, build in TARGETS.items()
    },
    **{
        f"heun by rows, {name}": lambda build=build: sampling.AdaptiveHeun()(build(), data())
        for name, build in TARGETS.items()
    },
    **{name: lambda s=s: s(MIXTURE, data(), generator=seeded(1)) for name, s in SAMPLERS.items()},
    "lattice-gibbs": lambda: sampling.LatticeGibbs()(LEVELS, Lattice(17).quantize(data()), generator=seeded(1)),
    "lattice-metropolis": lambda: sampling.LatticeMetropolis(2)(
        LEVELS, Lattice(17).quantize(data()), generator=seeded(1)
    ),
    "complete": lambda: sampling.complete(MIXTURE, data(), half(), moves=2, generator=seeded(1)),
    "complete in order": lambda: sampling.complete(made(), data(), half(), generator=seeded(1)),
    "restore": lambda: sampling.restore(MIXTURE, data(), shared=True).x,
    "restore by draws": lambda: (
        sampling.restore(MIXTURE, data(), sampler=sampling.EulerMaruyama(4), generator=seeded(1)).x
    ),
    "fit_grid": lambda: list(sampling.fit_grid(MIXTURE, data(), 4).times),
    "generate": lambda: generate(made(), 4, generator=seeded(1)),
    "sample_in_parallel": lambda: sampling.sample_in_parallel(made(), 4, t=0.5, generator=seeded(1)).x,
    "ncpn": lambda: ncpn().sample(2, 0.5, generator=seeded(1)),
    "ncpn, completed": lambda: ncpn().complete(torch.zeros(2, 1, 4, 4), 2, 0.5, generator=seeded(1)),
    "transformer": lambda: transformer().sample(2, 0.5, generator=seeded(1)),
    "transformer, completed": lambda: transformer().complete(torch.zeros(2, 4, 1), 2, 0.5, generator=seeded(1)),
    "transformer, extended": lambda: transformer().extended(6).sample(2, 0.5, generator=seeded(1)),
    "transformer flow": lambda: built(TransformerFlow, (1, 4, 4), patch=2, width=8, blocks=2, layers=1).sample(
        2, 0.5, generator=seeded(1)
    ),
    "time_posterior": lambda: evaluation.time_posterior(MIXTURE, data(), TIMES),
    "audit_ladder": lambda: evaluation.audit_ladder(MIXTURE, data(), TIMES, steps=2, generator=seeded(1)).bound,
    "audit_ladder, network": lambda: evaluation.audit_ladder(made(), data(), TIMES, steps=2, generator=seeded(1)).ratio,
    "flow_log_prob": lambda: evaluation.flow_log_prob(made(), data(), steps=2, probes=1, generator=seeded(1)),
    "fokker_planck": lambda: evaluation.fokker_planck_residual(made(), data(), 0.5)[0],
    "ladder_bound": lambda: evaluation.ladder_bound(made(), data(), 0.5, fit=data(), generator=seeded(1)),
    "kernel_gap": lambda: evaluation.kernel_gap(made(), data(), 0.5, generator=seeded(1))[0],
    "bits_per_dim": lambda: evaluation.bits_per_dim(LEVELS, Lattice(17).quantize(data()), 0.0).values,
    "ladder_statistics": lambda: evaluation.ladder_statistics(made(), data(), TIMES)["log_ratios"],
    "ood_statistics": lambda: list(evaluation.ood_statistics(made(), data()).values()),
    "typicality": lambda: evaluation.Typicality.fit(data())(data()),
    "classifier_test": lambda: evaluation.classifier_test(data(), data() + 1.0, steps=3, generator=seeded(1)).accuracy,
    "energy_test": lambda: evaluation.energy_test(data(), data() + 1.0, generator=seeded(1)).p_value,
    "robustness": lambda: [
        result.signed
        for results in evaluation.robustness_curve(
            made(lattice=Lattice(17)), Lattice(17).quantize(data()), TIMES, generator=seeded(1)
        ).results.values()
        for result in results
    ],
    "delta_log_p": lambda: (
        evaluation.delta_log_p(made(lattice=Lattice(17)), Lattice(17).quantize(data()), 0.5, generator=seeded(1)).signed
    ),
    "train_classifier": lambda: (
        evaluation.train_classifier(
            lambda rows: torch.ones(len(rows), 1, 8, 8) * rows[:, None, None, None],
            torch.arange(4) % 2,
            lambda rows: torch.ones(len(rows), 1, 8, 8),
            torch.zeros(4, dtype=torch.long),
            steps=2,
            batch_size=4,
        ).accuracy
    ),
    "frechet": lambda: float(evaluation.frechet_distance(data(40), data(40) + 1.0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_works_as_without(name, capsys):
    expected = CALLS[name]()
    assert capsys.readouterr().err == ""  # no progress bar
    with torch.inference_mode():
        got = CALLS[name]()
    torch.testing.assert_close(got, expected)


def test_every_sampler_is_among_them():
    public = {kind for name in sampling.__all__ if isinstance(kind := getattr(sampling, name), type)}
    named = {type(sampler) for sampler in SAMPLERS.values()} | {sampling.LatticeGibbs, sampling.LatticeMetropolis}
    steppers = {kind for kind in public if issubclass(kind, sampling.Sampler) and not kind.__abstractmethods__}
    assert {kind.__name__ for kind in steppers - named} <= {"DPMSolverSDE"}
