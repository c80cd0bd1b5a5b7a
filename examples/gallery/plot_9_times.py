"""
Which noise levels to train on
==============================

The objective averages over noise levels drawn from a distribution. What the mass at
zero, the shape of the rest and the largest noise buy and cost, measured exactly on a
mixture.
"""

# %%
# Eight Gaussians on a circle, whose exact :math:`p_t` is known at every t. The excess
# of a model at t is then :math:`E_{p_t}[\log p_t - \log p_{\theta,t}]`, the
# Kullback-Leibler divergence in nats, which is 0 for a perfect model.

import matplotlib.pyplot as plt
import torch

from ncml import VPSDE, NCMLObjective
from ncml.densities import MADE, GaussianMixtureDensity
from ncml.objective import (
    AtZero,
    LadderTimes,
    LogUniformTimes,
    TimeSampler,
    UniformTimes,
)
from ncml.training import fit

angle = 2 * torch.pi * torch.arange(8) / 8
means = 1.2 * torch.stack([angle.cos(), angle.sin()], dim=1)


def exact(process: VPSDE) -> GaussianMixtureDensity:
    return GaussianMixtureDensity(process, torch.ones(8), means, stds=0.1)


def train(process: VPSDE, times: TimeSampler) -> MADE:
    torch.manual_seed(0)
    model = MADE((2,), process, hidden=(64, 64), components=6)
    data = exact(process).sample(20_000)
    fit(
        model,
        NCMLObjective(process, times),
        data,
        steps=500,
        batch_size=256,
        learning_rate=5e-3,
    )
    return model


@torch.no_grad()
def excess(model: MADE, sigma: float) -> float:
    torch.manual_seed(1)
    truth, t = exact(model.process), model.process.time_at(sigma)
    x = truth.sample(10_000, t)
    return float((truth.log_prob(x, t) - model.log_prob(x, t)).mean())


# %%
# Five distributions up to a noise of 0.5. In the upper row where they draw, in the
# lower row what comes of it, for the same network and the same number of steps. Without
# mass at 0 the data likelihood is not trained, and it is bad; with all the mass there
# nothing else is. The rest goes where the draws went: a uniform t rarely sees small
# noise, a log-uniform one sees it often and has less left for large noise, and a ladder
# fits its rungs and nothing between them.

process = VPSDE.at_noise(0.5)
rungs = tuple(process.time_at(torch.tensor([0.0, 0.05, 0.15, 0.5])).tolist())
choices = {
    "all at 0: ML": ("#D55E00", AtZero()),
    "uniform, 20 % at 0": ("#0072B2", UniformTimes(p_zero=0.2)),
    "uniform, none at 0": ("#56B4E9", UniformTimes(p_zero=0.0)),
    "log-uniform, 20 % at 0": ("#009E73", LogUniformTimes(sigma_min=0.005, p_zero=0.2)),
    "ladder": ("#CC79A7", LadderTimes(rungs)),
}
models = {name: train(process, times) for name, (_, times) in choices.items()}
sigmas = torch.logspace(-2, 0, 13) / 2

figure, axes = plt.subplots(
    2,
    2,
    figsize=(8, 5),
    width_ratios=(1, 5),
    height_ratios=(1, 2),
    sharex="col",
    layout="constrained",
)
for i, (name, (colour, times)) in enumerate(choices.items()):
    t, _ = times(20_000, process)
    drawn = process.sigma(t)
    axes[0, 0].bar(i, (drawn == 0).float().mean(), color=colour)
    share = torch.full((20_000,), 1 / 20_000)
    bins = torch.logspace(-2.4, -0.3, 22).tolist()
    axes[0, 1].hist(drawn, bins, weights=share, histtype="step", color=colour)
    axes[1, 0].bar(i, excess(models[name], 0.0), color=colour)
    curve = [excess(models[name], sigma) for sigma in sigmas.tolist()]
    axes[1, 1].plot(sigmas, curve, "o-", markersize=4, color=colour, label=name)
axes[1, 1].set(xscale="log", xlabel=r"noise $\sigma$ of t > 0")
axes[1, 0].set(xlabel="t = 0", xticks=[])
axes[0, 0].set(ylabel="share of draws", ylim=(0, 1))
axes[0, 1].set(ylabel="share per bin", ylim=(0, 0.3))
axes[1, 0].set_ylabel("excess, nats")
for axis in axes[1]:
    axis.set(yscale="log", ylim=(5e-3, 8))
figure.legend(frameon=False, ncols=3, loc="outside upper center")
for axis in axes.flat:
    axis.spines[["top", "right"]].set_visible(False)

# %%
# What the share of the atom buys at t = 0, the noisy levels pay, and not by much: from
# a tenth to four fifths all of them are trained. The largest noise is a choice of
# another kind. The more noise, the easier is the distribution at T, where sampling
# starts, and the more of the network and of its training goes to levels other than 0:
# it is worth its price only as far as the samples need it.

by_share = {
    0.0: models["uniform, none at 0"],
    0.1: train(process, UniformTimes(p_zero=0.1)),
    0.2: models["uniform, 20 % at 0"],
    0.5: train(process, UniformTimes(p_zero=0.5)),
    0.8: train(process, UniformTimes(p_zero=0.8)),
    1.0: models["all at 0: ML"],
}
by_noise = {
    0.1: train(VPSDE.at_noise(0.1), UniformTimes(p_zero=0.2)),
    0.25: train(VPSDE.at_noise(0.25), UniformTimes(p_zero=0.2)),
    0.5: models["uniform, 20 % at 0"],
    0.8: train(VPSDE.at_noise(0.8), UniformTimes(p_zero=0.2)),
}

figure, (left, right) = plt.subplots(
    1, 2, figsize=(8, 3.2), sharey=True, layout="constrained"
)
for axis, trained in ((left, by_share), (right, by_noise)):
    curve = [excess(model, 0.0) for model in trained.values()]
    axis.plot(trained.keys(), curve, "o-", color="black", label="at t = 0")
for sigma, colour in ((0.05, "#009E73"), (0.5, "#E69F00")):
    curve = {p: excess(model, sigma) for p, model in by_share.items() if p < 1}
    label = rf"at $\sigma$ = {sigma:g}"
    left.plot(curve.keys(), curve.values(), "o-", color=colour, label=label)
curve = [excess(model, sigma) for sigma, model in by_noise.items()]
right.plot(by_noise.keys(), curve, "s-", color="#CC79A7", label="at T")
left.set(xlabel="share of draws at t = 0, p_zero", ylabel="excess, nats", yscale="log")
right.set(xlabel=r"largest noise, $\sigma(T)$")
for axis in (left, right):
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
