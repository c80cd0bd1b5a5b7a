r"""Do two sets of vectors come from one distribution? Two measures with a p-value.

They complement the Fréchet distance, which compares only means and covariances and is dominated by a few far values:
the energy distance (Székely and Rizzo, 2013, https://doi.org/10.1016/j.jspi.2013.03.018)

.. math:: 2\,E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\| \ge 0,

which is 0 only for equal distributions and grows with distances, not with their squares; and the accuracy of a small
classifier that is trained to tell the two apart (Lopez-Paz and Oquab, 2017, https://arxiv.org/abs/1610.06545).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncml.checks import check_count, check_finite, check_floating, check_generator
from ncml.errors import ArgumentError

__all__ = ["ClassifierTest", "EnergyTest", "classifier_test", "energy_distance", "energy_test"]

CHUNK = 1024  # rows of the matrix of distances at a time

Sums = TypeVar("Sums", float, Tensor)  # of one deal of the rows, or of many


@dataclass(frozen=True)
class EnergyTest:
    """An energy distance, the size it reaches by chance, and the p-value of the permutation test.

    Args:
        distance: The energy distance, in data units; around 0, on either side, for equal distributions.
        floor: Its 95 % quantile when the rows are dealt out at random: anything less is no difference that this many
            rows can show.
        p_value: Share of the deals whose distance is at least as large, the observed one counted among them.
        permutations: Number of deals.
    """

    distance: float
    floor: float
    p_value: float
    permutations: int


@dataclass(frozen=True)
class ClassifierTest:
    """How well a classifier tells two sets apart.

    Args:
        accuracy: Balanced accuracy on held-out rows; one half if they cannot be told apart.
        p_value: Chance of at least as many right answers by guessing (binomial, one-sided).
        rows: Number of held-out rows, half of them from each set.
    """

    accuracy: float
    p_value: float
    rows: int


def energy_distance(a: Tensor, b: Tensor) -> float:
    r"""The energy distance of two samples, without bias.

    .. math:: \frac{2}{nm}\sum_{ij}\|a_i - b_j\| - \frac{1}{n(n-1)}\sum_{i \ne j}\|a_i - a_j\|
              - \frac{1}{m(m-1)}\sum_{i \ne j}\|b_i - b_j\|

    In float64. Scale columns of different units first: the norm is that of the whole row.

    Args:
        a: Rows ``(n, ...)``, at least two; each is flattened.
        b: Rows ``(m, ...)`` of the same shape, at least two.

    Raises:
        ArgumentError: Fewer than two rows, other shapes, NaN or infinity.

    Example:
        >>> from ncml.evaluation import energy_distance
        >>> a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])
        >>> energy_distance(a, b)
        4.0
    """
    a, b = _rows(a, b)
    n, m = len(a), len(b)
    between, within_a, within_b = _sum_of_distances(a, b), _sum_of_distances(a, a), _sum_of_distances(b, b)
    return _distance(between, within_a, within_b, n, m)


def energy_test(
    a: Tensor, b: Tensor, *, permutations: int = 999, generator: torch.Generator | None = None
) -> EnergyTest:
    """The energy distance with its noise floor and the p-value of a permutation test.

    The p-value is exact for independent rows: under equal distributions it is at most alpha with probability at most
    alpha. Memory and time grow with the square of the number of rows (0.5 GB for 4,000 and 4,000).

    Args:
        a, b: As for :func:`energy_distance`.
        permutations: Random deals of the rows; the smallest p-value is 1 / (permutations + 1).
        generator: Source of the deals, on the CPU.

    Raises:
        ArgumentError: As :func:`energy_distance`.
    """
    permutations = check_count(permutations, "permutations")
    check_generator(generator, torch.device("cpu"))
    a, b = _rows(a, b)
    n, m = len(a), len(b)
    rows = torch.cat([a, b])
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    total = float(distances.sum())
    deals = torch.zeros(n + m, permutations + 1, dtype=torch.float64, device=rows.device)
    deals[:n, 0] = 1.0  # the observed one
    for k in range(1, permutations + 1):
        deals[torch.randperm(n + m, generator=generator)[:n].to(rows.device), k] = 1.0
    towards_a = distances @ deals
    within_a = (deals * towards_a).sum(0)
    between = towards_a.sum(0) - within_a
    within_b = total - within_a - 2.0 * between
    statistics = _distance(between, within_a, within_b, n, m)
    observed, others = float(statistics[0]), statistics[1:]
    # Rounding must not make a deal that equals the observed one smaller than it.
    slack = 1e-12 * abs(total) / (n + m) ** 2
    p_value = (1 + int((others >= observed - slack).sum())) / (permutations + 1)
    return EnergyTest(observed, float(others.quantile(0.95)), p_value, permutations)


def classifier_test(
    a: Tensor, b: Tensor, *, hidden: int = 128, steps: int = 500, generator: torch.Generator | None = None
) -> ClassifierTest:
    """Train a small network to tell two sets apart, and count its right answers on held-out rows.

    Half of the rows of each set train it (two hidden layers, Adam, columns scaled by the quartiles of both sets);
    an equal number from the other half of each is the test. It sees any difference that the network can learn; a
    p-value that is not small proves nothing.

    Args:
        a, b: As for :func:`energy_distance`, at least four rows each.
        hidden: Width of the hidden layers.
        steps: Optimizer steps of 128 rows of each set.
        generator: Source of the split, the initialisation and the batches, on the CPU.

    Raises:
        ArgumentError: As :func:`energy_distance`, or fewer than four rows.
    """
    hidden = check_count(hidden, "hidden")
    steps = check_count(steps, "steps")
    check_generator(generator, torch.device("cpu"))
    a, b = _rows(a, b, least=4)
    with torch.inference_mode(False), torch.enable_grad():  # it trains, whatever the caller does
        return _trained(a.clone(), b.clone(), hidden, steps, generator)


def _trained(a: Tensor, b: Tensor, hidden: int, steps: int, generator: torch.Generator | None) -> ClassifierTest:
    rows = torch.cat([a, b])
    low, middle, high = rows.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=rows.dtype, device=rows.device), dim=0)
    scale = torch.where(high > low, high - low, 1.0)
    parts = []
    for x in (a, b):
        # asinh keeps far values apart without letting them rule the network.
        x = ((x - middle) / scale).asinh().float().cpu()[torch.randperm(len(x), generator=generator)]
        parts.append((x[: len(x) // 2], x[len(x) // 2 :]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        width = rows.shape[1]
        net = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sign = torch.tensor([-1.0, 1.0]).repeat_interleave(128)
    for _ in range(steps):
        x = torch.cat([half[torch.randint(len(half), (128,), generator=generator)] for half, _ in parts])
        loss = F.softplus(sign * net(x)[:, 0]).mean()  # logits are those of a
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    held = min(len(held_out) for _, held_out in parts)
    with torch.no_grad():
        logits = torch.stack([net(held_out[:held])[:, 0] for _, held_out in parts])
    right = int((logits[0] > 0).sum() + (logits[1] < 0).sum())
    return ClassifierTest(right / (2 * held), _binomial_tail(right, 2 * held), 2 * held)


def _rows(a: Tensor, b: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both samples as float64 matrices."""
    for x, name in ((a, "a"), (b, "b")):
        check_floating(x, name)
        if x.ndim < 2 or len(x) < least or x.shape[1:] != a.shape[1:]:
            raise ArgumentError(
                f"{name}: got shape {tuple(x.shape)}; expected (n, ...), n >= {least} rows of one shape"
            )
        check_finite(x, name, "leave such rows out, and count them")
    return a.detach().flatten(1).double(), b.detach().flatten(1).double()


def _distance(between: Sums, within_a: Sums, within_b: Sums, n: int, m: int) -> Sums:
    """The energy distance from the sums over all pairs."""
    return 2.0 * between / (n * m) - within_a / (n * (n - 1)) - within_b / (m * (m - 1))


def _sum_of_distances(a: Tensor, b: Tensor) -> float:
    """The sum over all pairs, a part of the matrix at a time."""
    return math.fsum(
        float(torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").sum()) for rows in a.split(CHUNK)
    )


def _binomial_tail(right: int, n: int) -> float:
    """The chance of at least ``right`` heads in ``n`` tosses of a fair coin."""
    k = torch.arange(right, n + 1, dtype=torch.float64)
    size = torch.tensor(float(n), dtype=torch.float64)
    log_terms = (size + 1).lgamma() - (k + 1).lgamma() - (size - k + 1).lgamma() - size * math.log(2.0)
    return min(1.0, float(log_terms.exp().sum()))
