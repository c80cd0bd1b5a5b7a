"""
What a level of noise costs
===========================

The same network by maximum likelihood and by NCML on real handwritten digits: bits per
dimension when pixels move by one level, and how that depends on the noise level t.
"""

# %%
# The digits of scikit-learn have 8x8 pixels of 17 levels. :class:`~ncml.LevelNoise`
# moves each pixel by one level with probability :math:`\pi`. Hardly anyone would mind.

import matplotlib.pyplot as plt
import torch

from ncml import VPSDE, LevelNoise, NCMLObjective
from ncml.data import load_digits
from ncml.densities import MADE
from ncml.evaluation import level_noise_table, robustness_curve
from ncml.objective import AtZero, UniformTimes
from ncml.training import fit

# sphinx_gallery_thumbnail_number = 2
digits = load_digits()
noise = LevelNoise(digits.lattice.levels)
torch.manual_seed(0)

figure, axes = plt.subplots(3, 10, figsize=(8, 2.6), layout="constrained")
for row, pi in zip(axes, (0.0, 0.5, 1.0), strict=True):
    for axis, image in zip(row, noise.perturb(digits.test[:10], pi), strict=True):
        axis.imshow(image[0], cmap="gray_r", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(rf"$\pi$ = {pi:g}")

# %%
# Two networks that start equal and see the same images in the same order. One is
# trained on the data alone, the other on all noise levels up to two levels of a pixel.

process = VPSDE.at_noise(2 * digits.lattice.width)
colours = {"ML": "#D55E00", "NCML": "#0072B2"}
models = {}
for name, times in {"ML": AtZero(), "NCML": UniformTimes(p_zero=0.2)}.items():
    torch.manual_seed(0)
    models[name] = MADE(
        (1, 8, 8),
        process,
        lattice=digits.lattice,
        hidden=(256, 256),
        components=4,
        dropout=0.2,
    )
    fit(
        models[name],
        NCMLObjective(process, times),
        digits.train,
        steps=800,
        learning_rate=3e-3,
        generator=torch.Generator().manual_seed(0),
    )

# %%
# Bits per dimension of test images at t = 0, exact for both models and both under the
# same level noise. NCML pays a little on clean digits and saves a lot on noisy ones.
# Some cost is right: noisy digits have more entropy, up to 1.5 bits per value.

pis = (0.0, 0.5, 1.0)
tables = {
    name: level_noise_table(
        model, digits.test, pis, generator=torch.Generator().manual_seed(0)
    )
    for name, model in models.items()
}
print("bits/dim" + "".join(f"{'pi = ' + format(pi, 'g'):>10}" for pi in pis))
for name, table in tables.items():
    print(f"{name:8}" + "".join(f"{row.bits.mean:10.3f}" for row in table))

# %%
# The same over the noise level. In the middle what the level noise costs at t; on the
# right the fit to the digits at t. For NCML the cost falls as the noise of the process
# drowns that of the levels. For ML it is small at every t > 0, but that is no virtue:
# it has never seen these noise levels, and fits none of them. (For t > 0 these are
# densities, in bits relative to one level: compare models at one t, not one t with
# another.)

times = process.time_at(torch.linspace(0, 2, 9) * digits.lattice.width)
curves = {
    name: robustness_curve(
        model,
        digits.test,
        times,
        pis=(1.0,),
        generator=torch.Generator().manual_seed(0),
    )
    for name, model in models.items()
}

figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(9, 3.2), layout="constrained"
)
for name, colour in colours.items():
    style = {"marker": "o", "markersize": 4, "color": colour, "label": name}
    left.plot(pis, [row.bits.mean for row in tables[name]], **style)
    curve = curves[name]
    middle.plot(curve.sigma, curve.delta[1.0], **style)
    right.plot(curve.sigma, [r.clean.mean for r in curve.results[1.0]], **style)
left.set(title="likelihood at t = 0", ylabel="bits/dim")
left.set(xlabel=r"level noise $\pi$", xticks=pis)
middle.set(title=r"cost of level noise, $\pi$ = 1", ylabel="bits/dim")
right.set(title="fit to the digits at t", ylabel="bits/dim")
for axis in (middle, right):
    axis.set_xlabel(r"noise $\sigma(t)$, levels")
for axis in (left, middle, right):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
left.legend(frameon=False)
middle.set_ylim(bottom=0)
