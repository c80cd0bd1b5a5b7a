"""
Completing digits
=================

Keep the upper half of a digit and draw the rest. For an autoregressive density this is
exact conditional sampling, and needs no training of its own.
"""

# %%
# A :class:`~ncml.densities.MADE` draws pixels row by row: the lower half comes after
# the upper half, and is drawn given it. With ``classes=10`` it also takes the class of
# a digit as context, and the label -1 means "no label": every image is in the data
# twice with its label and once without, so that one network learns both.

import matplotlib.pyplot as plt
import torch

from ncml import VPSDE, NCMLObjective
from ncml.data import load_digits
from ncml.densities import MADE
from ncml.training import fit

# sphinx_gallery_thumbnail_number = 2
torch.manual_seed(0)
digits = load_digits()
process = VPSDE.at_noise(digits.lattice.width)
density = MADE(
    (1, 8, 8),
    process,
    lattice=digits.lattice,
    hidden=(256, 256),
    components=4,
    dropout=0.2,
    classes=10,
)
labels = digits.train_labels
losses = fit(
    density,
    NCMLObjective(process),
    digits.train.repeat(3, 1, 1, 1),
    torch.cat([labels, labels, torch.full_like(labels, -1)]),
    steps=1000,
    learning_rate=3e-3,
)

# %%
# A sample is a function of its noise: the image that stays as it is when every pixel is
# drawn anew, from the same noise, given the pixels before it. So put the kept rows back
# after every such sweep. Each sweep settles at least one more pixel, and after 32
# sweeps the 32 pixels of the lower half are an exact draw given the upper half.


def complete(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    noise = density.draw_noise(len(x))
    y = x.clone()
    for _ in range(32):
        y = density.resample(y, noise, context=labels)
        y[:, :, :4] = x[:, :, :4]
    settled = density.resample(y, noise, context=labels)[:, :, 4:]
    assert torch.equal(settled, y[:, :, 4:])
    return y


test, classes = digits.test[:8], digits.test_labels[:8]
draws = 7
x = test.repeat_interleave(draws, dim=0)
free = complete(x, torch.full((len(x),), -1)).unflatten(0, (8, draws))
kept = test.clone()
kept[:, :, 4:] = torch.nan

gray = plt.colormaps["gray_r"].with_extremes(bad="#cfe3f0")
figure, axes = plt.subplots(8, 2 + draws, figsize=(6, 5.6), layout="constrained")
for row, image, half, drawn in zip(axes, test, kept, free, strict=True):
    for axis, picture in zip(row, [image, half, *drawn], strict=True):
        axis.imshow(picture[0], cmap=gray, vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
axes[0, 0].set_title("test")
axes[0, 1].set_title("kept")
axes[0, 2 + draws // 2].set_title("completed, no label")

# %%
# The same halves completed as each of the ten classes. The model does what the label
# asks for as far as the upper half allows. The digit's own class is framed.

x = test[:6].repeat_interleave(10, dim=0)
asked = complete(x, torch.arange(10).repeat(6)).unflatten(0, (6, 10))

figure, axes = plt.subplots(6, 11, figsize=(7.2, 4.2), layout="constrained")
for row, half, drawn, own in zip(axes, kept[:6], asked, classes[:6], strict=True):
    for axis, picture in zip(row, [half, *drawn], strict=True):
        axis.imshow(picture[0], cmap=gray, vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[1 + int(own)].spines[:].set(color="#0072B2", linewidth=3)
axes[0, 0].set_title("kept")
for label in range(10):
    axes[0, 1 + label].set_title(f"as {label}")

# %%
# What does an upper half leave open? Complete each without a label 200 times: the mean
# of the completions, their standard deviation, and which digit they are. The last is
# read by the same model, by Bayes' rule from its ten likelihoods, which on whole test
# images is right as often as this:


def classify(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        log_p = [
            density.log_prob(x, context=torch.full((len(x),), k)) for k in range(10)
        ]
    return torch.stack(log_p, dim=1).argmax(dim=1)


right = (classify(digits.test) == digits.test_labels).float().mean()
print(f"test images classified correctly: {right:.1%}")

shown = [0, 3, 5, 6, 7]
figure, axes = plt.subplots(
    4, len(shown), figsize=(8, 5.6), height_ratios=(1, 1, 1, 0.8), layout="constrained"
)
for column, i in zip(axes.T, shown, strict=True):
    many = complete(test[i : i + 1].repeat(200, 1, 1, 1), torch.full((200,), -1))
    column[0].imshow(kept[i, 0], cmap=gray, vmin=-1, vmax=1)
    column[1].imshow(many.mean(dim=0)[0], cmap=gray, vmin=-1, vmax=1)
    column[2].imshow(many.std(dim=0)[0], cmap="magma", vmin=0, vmax=1)
    share = torch.bincount(classify(many), minlength=10) / 200
    bars = column[3].bar(range(10), share, color="0.7")
    bars[int(classes[i])].set_color("#0072B2")
    column[3].set(xticks=range(10), yticks=[0, 1], ylim=(0, 1))
    column[3].spines[["top", "right"]].set_visible(False)
    for axis in column[:3]:
        axis.set(xticks=[], yticks=[])
for axis, name in zip(axes[:, 0], ("kept", "mean", "std", "read as"), strict=True):
    axis.set_ylabel(name)
