"""What a trainer takes, and whether it can work with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ncml.density import NoiseConditionalDensity, check_process
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.objective import NCMLObjective
from ncml.training.config import OptimConfig, RunConfig
from ncml.training.examples import Examples
from ncml.training.parallel import check_strategy
from ncml.training.table_checks import check_rows

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["check_connected", "check_inputs", "check_parameters", "check_reached"]


def check_inputs(
    fabric: Fabric,
    density: NoiseConditionalDensity,
    objective: NCMLObjective,
    examples: Examples,
    optim: OptimConfig,
    run: RunConfig,
    use_labels: bool,
) -> None:
    """Refuse what a :class:`~ncml.training.Trainer` cannot work with, before anything is changed."""
    if not isinstance(density, NoiseConditionalDensity):
        raise ArgumentTypeError(f"density: got {type(density).__name__}; expected a NoiseConditionalDensity")
    check_process(density, objective.process)
    check_strategy(fabric)
    parts = fabric.world_size * optim.accumulate
    if optim.batch_size % parts:
        raise ArgumentError(
            f"optim.batch_size: got {optim.batch_size}; expected a multiple of {parts}, the processes "
            f"({fabric.world_size}) times the parts of a batch ({optim.accumulate})"
        )
    scored = next((name for name in ("score_matching", "fokker_planck") if getattr(objective, name)), None)
    if scored and run.precision != "float32":
        raise UnsupportedError(
            f"run.precision: got {run.precision!r} and {scored}, whose score takes a derivative of its own, which "
            f"Fabric refuses in half precision; expected 'float32'"
        )
    if isinstance(examples, Tensor) or not hasattr(examples, "batch"):
        raise ArgumentTypeError(
            f"examples: got {type(examples).__name__}; expected a data set, such as ncml.data.Arrays(x)"
        )
    if not len(examples):
        raise ArgumentError("examples: got an empty data set; expected at least one example")
    if use_labels and examples.labels is None:
        raise ArgumentError("use_labels: got True and examples without labels; expected one label per example")
    if getattr(examples, "lattice", None) is None:  # integers are finite
        check_rows(lambda rows: examples.batch(torch.arange(rows.start, rows.stop)), len(examples), "examples")
    check_parameters(density)


def check_parameters(density: nn.Module) -> None:
    """Refuse a density of which nothing can be trained."""
    if not any(p.requires_grad for p in density.parameters()):
        raise ArgumentError("density: got one without parameters to train; expected some that require gradients")


def check_connected(loss: Tensor, density: nn.Module) -> None:
    """Refuse a loss that autograd connects with nothing."""
    if not loss.requires_grad:
        raise _disconnected(density)


def check_reached(density: nn.Module) -> None:
    """Refuse a density of whose parameters a backward pass gave none a gradient: the loss hung on something else."""
    if all(p.grad is None for p in density.parameters()):
        raise _disconnected(density)


def _disconnected(density: nn.Module) -> UnsupportedError:
    return UnsupportedError(
        f"density: got log-densities of a {type(density).__name__} that autograd does not connect with its parameters; "
        f"expected a differentiable function of them; look for detach(), torch.no_grad(), .item() or numpy in its "
        f"forward"
    )
