"""The one way into a density: its call, even through a wrapper (DDP, a compiled module)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ncml.density.checks import observed_dims
from ncml.density.gradient import gradient, slopes
from ncml.density.interface import NoiseConditionalDensity, SampleableDensity
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise import NoiseProcess
from ncml.noise.gaussian import clean_at_zero
from ncml.noise.process import as_process

__all__ = [
    "check_process",
    "density_and_score_of",
    "dims_of",
    "inner_density",
    "process_of",
    "sampleable",
    "score_of",
    "slopes_of",
    "unwrapped",
]


def unwrapped(density: nn.Module) -> NoiseConditionalDensity | None:
    """The density inside wrappers, which DDP keeps as ``module`` and ``torch.compile`` as ``_orig_mod``."""
    inner: object = density
    while inner is not None and not isinstance(inner, NoiseConditionalDensity):
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    return inner


def inner_density(density: nn.Module) -> NoiseConditionalDensity:
    """As :func:`unwrapped`, for callers who need a density.

    Raises:
        ArgumentTypeError: There is none; the message says how to get one.
    """
    inner = unwrapped(density) if isinstance(density, nn.Module) else None
    if inner is None:
        if isinstance(density, type) and issubclass(density, NoiseConditionalDensity):
            raise ArgumentTypeError(
                f"density: got the class {density.__name__}; expected an instance, {density.__name__}(...)"
            )
        raise ArgumentTypeError(
            f"density: got {type(density).__name__}; expected a NoiseConditionalDensity; wrap a function or module "
            f"of (x, t) in ncml.densities.CallableDensity"
        )
    return inner


def sampleable(density: nn.Module, remedy: str, name: str = "density") -> SampleableDensity:
    """The density inside wrappers, if it can draw samples.

    Args:
        density: The density, or a wrapper of one.
        remedy: What the message advises else.
        name: The argument that needs it.

    Raises:
        ArgumentTypeError: There is no density.
        UnsupportedError: It cannot sample.
    """
    inner = inner_density(density)
    if not isinstance(inner, SampleableDensity):
        raise UnsupportedError(
            f"{name}: got {type(inner).__name__}, which cannot sample; expected a SampleableDensity; {remedy}"
        )
    return inner


def score_of(
    density: nn.Module, x: Tensor, t: Tensor, context: Tensor | None = None, *, create_graph: bool = False
) -> Tensor:
    """The score by the density's own closed form, or by differentiating the call of its wrapper."""
    if isinstance(density, NoiseConditionalDensity):
        return density.forward_score(x, t, context, create_graph=create_graph)
    if create_graph and (inner := unwrapped(density)) is not None:
        inner.check_twice_differentiable()
    return gradient(density, x, t, context, create_graph=create_graph)[1]


def density_and_score_of(
    density: nn.Module, x: Tensor, t: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The log-density without edges and its gradient, from one call where autograd can differentiate it."""
    inner = unwrapped(density)
    if inner is None or inner.differentiable:
        return gradient(density, x, t, context)
    with torch.no_grad():
        log_p: Tensor = density(x, t, context, edges=False)
    return log_p, inner.forward_score(x, t, context)


def slopes_of(density: nn.Module, x: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The score and the derivative of the log-density in t, from one call of a density or its wrapper, with graphs.

    Args:
        density: The density, or a wrapper of one.
        x, t: What to differentiate in; both require gradients, ``t`` is ``(B,)`` and above 0.
        context: Conditioning with one row per example, or None.

    Raises:
        UnsupportedError: Autograd cannot differentiate the density, or not twice, or it does not depend on t.
    """
    inner = unwrapped(density)
    if inner is not None:
        inner.check_twice_differentiable()
        if not inner.differentiable:
            raise UnsupportedError(
                f"density: got a {type(inner).__name__} whose score is a function of its own; expected a log-density "
                f"that autograd can differentiate in x and t"
            )
    return slopes(density, x, t, context)


def dims_of(density: nn.Module, x: Tensor, context: Tensor | None = None) -> int | Tensor:
    """How many values of each example the log-density of a density or its wrapper covers: D, or ``(B,)``."""
    inner = unwrapped(density)
    return observed_dims(None if inner is None else inner.observed(x, context), x)


def check_process(density: nn.Module, process: NoiseProcess) -> None:
    """Refuse a process that differs from the one the density was built for."""
    inner = unwrapped(density)
    own = None if inner is None else inner.process
    if own is None or own == process:
        return
    remedy = ""
    if clean_at_zero(own) and clean_at_zero(process):
        if float(process.log_snr(process.T)) >= float(own.log_snr(own.T)):
            remedy = "; density.under(process) is the same density, read under the other process"
        else:
            remedy = "; density.under(process) would read it under the other process, up to a smaller T"
    raise ArgumentError(
        f"process: got {process}; expected {own}, the one that the density was built for; its noise features would "
        f"refer to the wrong noise levels{remedy}"
    )


def process_of(density: nn.Module, process: NoiseProcess | None) -> NoiseProcess:
    """The process of a call: the one given, or the density's own.

    Raises:
        ArgumentTypeError: There is neither, or it is not a process.
        ArgumentError: They differ.
    """
    if process is None:
        inner = unwrapped(density)
        if inner is None or inner.process is None:
            raise ArgumentTypeError("process: got None and a density without one; expected process=, a NoiseProcess")
        return inner.process
    check_process(density, as_process(process))
    return process
