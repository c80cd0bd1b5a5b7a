r"""Likelihood of data in bits per dimension.

A density with a lattice gives the mass of lattice data exactly. One without sees uniformly dequantised
data, :math:`x + u`, and by Jensen its mean log-density only bounds the log-mass:

.. math:: -\log_2 P(x) \le E_u[-\log_2 p(x + u)] - D \log_2 \text{width}.

The mean of K densities under the logarithm gives a tighter bound (``importance=K``), which reaches the mass as K
grows.

Where data are not on the lattice (t > 0 under a Gaussian process) there is no mass. The value is then
that of the density in the same unit, bits relative to a bin: it can be negative, and compares models at
one t, not one t with another.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_count, check_generator, per_example
from ncml.density import (
    NoiseConditionalDensity,
    check_arguments,
    check_log_density,
    check_on_lattice,
    dims_of,
    evaluating,
    gaps_filled,
    inner_density,
    usable,
)
from ncml.density.lengths import padded
from ncml.errors import ArgumentError, FailedRowsWarning
from ncml.noise import BitsPerDim, Lattice
from ncml.progress import progress_bar

__all__ = ["batches", "bits_per_dim", "check_batch", "data_lattice", "log_prob_in_batches", "warn_of_failed"]


def bits_per_dim(
    density: nn.Module,
    x: Tensor,
    t: Time = 0.0,
    context: Tensor | None = None,
    *,
    lattice: Lattice | None = None,
    dequantisations: int = 1,
    importance: int = 1,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: bool = False,
    lengths: Tensor | None = None,
) -> BitsPerDim:
    """Bits per dimension of every example, and whether they are exact or an upper bound.

    Evaluates in eval mode, without gradients, in batches; training flags are restored.

    Args:
        density: The density, or a wrapper (DDP, compiled) of one, which is then what is called. With a ``lattice`` of
            its own the result is exact.
        x: Examples ``(B, *event_shape)`` in data units, already at time ``t``: nothing but the
            dequantisation is added. On the lattice where the process keeps data there.
        t: Time, a number or ``(B,)``.
        context: Conditioning with one row per example, or None.
        lattice: The lattice of the data, for a density without one. At times where data are on it,
            they are dequantised uniformly and the result is an upper bound; elsewhere the result is
            the exact value of the density, in bits relative to a bin.
        dequantisations: Draws to average over; one is unbiased for the bound, more lower its variance.
        importance: Draws whose densities are averaged before the logarithm is taken (Burda et al., 2016): K = 1 is
            the plain bound, and larger K tighten it towards the mass itself. Each costs a pass.
        batch_size: Examples per pass. The result does not depend on it.
        generator: Source of the dequantisation.
        progress: Show a progress bar (needs tqdm).
        lengths: For densities over sequences: the number of positions of each row that count, ``(B,)``; the bits of a
            row are divided by its own number of values.

    Returns:
        One value per example; ``inf`` where the density is zero, counted by ``.infinite``.

    Raises:
        ArgumentError: No examples; values off the lattice at a time when data are on it; no lattice, or one other than
            the density's.
        ArgumentTypeError: ``x`` is not floating, or not of the density's dtype.
        NonFiniteError: A log-density is NaN or ``+inf``.

    Example:
        >>> from ncml.densities import ToyLattice
        >>> from ncml.evaluation import bits_per_dim
        >>> density = ToyLattice(VPSDE.at_noise(0.1), torch.ones(3, 256))
        >>> print(bits_per_dim(density, Lattice(256).to_unit(torch.tensor([[0, 7, 255]]))))
        8.0000 bits/dim
    """
    lattice = data_lattice(density, lattice)
    inner = inner_density(density)
    x, more = padded(inner, x, lengths)
    x, times, context = check_batch(inner, x, t, context)
    dequantisations = check_count(dequantisations, "dequantisations")
    check_generator(generator, x.device)
    importance = check_count(importance, "importance")
    on_lattice = times == 0 if inner.process is None else inner.process.on_lattice(times)
    lattice.check(x[on_lattice])

    exact = inner.lattice is not None or not bool(on_lattice.any())
    dims = dims_of(inner, x, context)
    if more:
        dims = more["lengths"] * math.prod(x.shape[2:])
    draws = []
    for _ in range(1 if exact else dequantisations):
        parts = []
        for _ in range(1 if exact else importance):
            y = x
            if not exact:
                y = torch.where(per_example(on_lattice, x), lattice.dequantize(x, generator=generator), x)
            parts.append(log_prob_in_batches(density, y, times, context, batch_size, progress, check=True, **more))
        log_p = torch.stack(parts).logsumexp(0) - math.log(len(parts))
        draws.append(lattice.bits_per_dim(log_p, dims).values)
    return BitsPerDim(torch.stack(draws).mean(0), exact=exact, mass=bool(on_lattice.all()))


def data_lattice(density: nn.Module, lattice: Lattice | None) -> Lattice:
    """The lattice in whose bins bits are counted: the density's own, or the one given."""
    own = inner_density(density).lattice
    if own is None:
        if lattice is None:
            raise ArgumentError(
                "lattice: got None and a density without one; expected the lattice of the data, such as "
                "Lattice(256): bits/dim count bins"
            )
        return lattice
    if lattice is not None and lattice != own:
        raise ArgumentError(f"lattice: got {lattice}; expected {own}, the density's, or None")
    return own


def check_batch(
    density: NoiseConditionalDensity, x: Tensor, t: Time, context: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked arguments of a call over a whole data set, times as ``(B,)``, gaps filled; refuses an empty one."""
    x, times, context = check_arguments(density, x, t, context)
    if x.shape[0] == 0:
        raise ArgumentError(f"x: got an empty batch, shape {tuple(x.shape)}; expected at least one example")
    with torch.inference_mode(False):  # scores are asked of these
        return usable(gaps_filled(density, x, context)), usable(times), None if context is None else usable(context)


def batches(n: int, batch_size: int, progress: bool, label: str) -> Iterable[slice]:
    """Slices that cover ``n`` rows, every one of them once, behind a progress bar if wanted."""
    batch_size = check_count(batch_size, "batch_size")
    return progress_bar([slice(i, i + batch_size) for i in range(0, n, batch_size)], progress, label)


def log_prob_in_batches(
    density: nn.Module,
    x: Tensor,
    t: Tensor,
    context: Tensor | None,
    batch_size: int,
    progress: bool,
    *,
    check: bool = True,
    **more: Tensor,
) -> Tensor:
    """Log-likelihoods of checked arguments, ``(B,)`` float64, in eval mode and without gradients.

    NaN and ``+inf`` are refused, unless ``check`` is False. Anything in ``more``, with one row per example, is passed
    to the call.
    """
    inner = inner_density(density)
    check_on_lattice(inner, x, t, context)
    parts = []
    with evaluating(density), torch.no_grad():
        for rows in batches(x.shape[0], batch_size, progress, "log-likelihood"):
            also = {name: value[rows] for name, value in more.items()}
            log_p = density(x[rows], t[rows], None if context is None else context[rows], **also)
            parts.append(check_log_density(log_p, x[rows], t[rows], type(inner).__name__, finite=check))
    return torch.cat(parts).double()


def warn_of_failed(failed: Tensor, function: str, dtype: torch.dtype) -> None:
    """Warn of the examples, ``(B,)`` bools, for which the public function that calls this failed."""
    if rows := failed.nonzero().flatten().tolist():
        named = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        everything = "; check the parameters, and the input's range" if len(rows) == len(failed) else ""
        warnings.warn(
            f"{function}: the log-density or the score of {len(rows)} of {len(failed)} examples is NaN or infinite, "
            f"and NaN in what is returned (rows {named}): {dtype} cannot tell how far out they are{everything}",
            FailedRowsWarning,
            stacklevel=3,
        )
