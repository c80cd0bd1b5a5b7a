r"""Independence of rows and coordinates, from draws that should be alike.

Values become normal scores, column by column: what is left of them is their order, so that any distribution will do.
Sums of products of such scores are quadratic forms in normals, whose tails are known (Laurent and Massart 2000,
`lemma 1 <https://doi.org/10.1214/aos/1015957395>`_): :math:`P(z^T A z \ge 2 \|A\|_2 \sqrt{l} + 2 \|A\|_\infty l) \le
e^{-l}` for a symmetric A with trace 0, of Frobenius norm :math:`\|A\|_2` and largest eigenvalue :math:`\|A\|_\infty`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncml.testing.expectations import expect
from ncml.testing.numerics import FALSE_ALARM

MAX_COLUMNS = 64
"""Most coordinates that are looked at, evenly spaced."""


def some_columns(x: Tensor) -> Tensor:
    """Rows flattened, and no more columns than the rows can tell apart."""
    x = x.flatten(1)
    most = max(1, min(MAX_COLUMNS, x.shape[0] // 8))
    return x if x.shape[1] <= most else x[:, torch.linspace(0, x.shape[1] - 1, most).long()]


def normal_scores(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each column's values by their rank, as quantiles of N(0, 1); ties are broken at random."""
    shuffle = torch.rand(x.shape, generator=generator, device=x.device).argsort(dim=0)
    ranks = x.gather(0, shuffle).argsort(dim=0, stable=True).argsort(dim=0)
    scores = torch.special.ndtri((ranks.double() + 0.5) / x.shape[0])
    return torch.empty_like(scores).scatter_(0, shuffle, scores)


def whitened(z: Tensor) -> Tensor:
    """Columns made uncorrelated, each with variance 1; those that others determine are left out."""
    values, vectors = torch.linalg.eigh(z.T @ z / z.shape[0])
    kept = values > 1e-6
    return z @ vectors[:, kept] / values[kept].sqrt()


def expect_independent_rows(x: Tensor, generator: torch.Generator, where: str, meaning: str) -> None:
    r"""Fail if rows of ``(n, d)`` repeat, mirror or follow each other, whatever the distance or the order.

    Sums over all pairs i, j with the same j - i, or with the same i + j, of the products of rows, and of their sizes:
    four families of n sums, with a false-alarm probability of 1e-9 each.
    """
    x = some_columns(x)
    n = x.shape[0] - 1 + x.shape[0] % 2  # odd, so that every i + j has one i = j
    for name, values in (("values", x), ("sizes", (x - x.mean(0)).abs())):
        z = whitened(normal_scores(values[:n], generator))
        size = z.numel()
        length = math.log(2.0 * n / FALSE_ALARM)
        spectrum = torch.fft.fft(z, dim=0)
        shifted = torch.fft.ifft(spectrum * spectrum.conj(), dim=0).real.sum(1)[1 : (n + 1) // 2]
        mirrored = torch.fft.ifft(spectrum.square(), dim=0).real.sum(1)
        middle = torch.arange(n, device=x.device) * ((n + 1) // 2) % n
        mirrored = mirrored - z.square().sum(1)[middle]
        for sums, squares, which in ((shifted, size / 2.0, "i + {}"), (mirrored, float(size), "{} - i")):
            if not sums.numel():
                continue
            bound = 2.0 * math.sqrt(squares * length) + 2.0 * length
            worst = int(sums.abs().argmax())
            expect(
                float(sums[worst].abs()) <= bound,
                f"a correlation of {float(sums[worst]) / size:.3f} between the {name} of row i and row "
                f"{which.format(worst + (which == 'i + {}'))} {where}",
                f"at most {bound / size:.3f}",
                meaning,
            )


def expect_independent_pairs(pairs: Tensor, where: str, meaning: str, generator: torch.Generator) -> None:
    """Fail if the two rows of batches of two, ``(m, 2, ...)``, depend on each other (false alarm: 1e-9)."""
    m = pairs.shape[0]
    z = normal_scores(some_columns(pairs.flatten(0, 1)), generator)
    z = whitened(z).reshape(m, 2, -1)
    total = float((z[:, 0] * z[:, 1]).sum())
    size = z[:, 0].numel()
    length = math.log(2.0 / FALSE_ALARM)
    bound = math.sqrt(2.0 * size * length) + length
    expect(
        abs(total) <= bound,
        f"a correlation of {total / size:.3f} between the rows of {m} batches of two {where}",
        f"at most {bound / size:.3f}",
        meaning,
    )


def expect_independent_columns(
    x: Tensor, generator: torch.Generator, where: str, meaning: str, slack: float = 0.0
) -> None:
    """Fail if coordinates of ``(n, d)``, or their sizes, are correlated (false alarm: 1e-9 each).

    Args:
        slack: Correlation that is allowed in addition.
    """
    x = x.flatten(1)[:, :MAX_COLUMNS]  # neighbours, which are most easily coupled
    n, d = x.shape
    if d < 2:
        return
    for name, values in (("values", x), ("sizes", (x - x.mean(0)).abs())):
        z = normal_scores(values, generator)
        sums = (z.T @ z).triu(1)
        length = math.log(d * (d - 1) / FALSE_ALARM)
        bound = (math.sqrt(2.0 * n * length) + length) / n + slack
        worst = int(sums.abs().argmax())
        expect(
            float(sums.flatten()[worst].abs()) / n <= bound,
            f"a correlation of {float(sums.flatten()[worst]) / n:.3f} between the {name} of coordinates {worst // d} "
            f"and {worst % d} {where}",
            f"at most {bound:.3f}",
            meaning,
        )
