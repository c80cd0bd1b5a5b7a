"""How a density is evaluated: in eval mode, outside inference mode, and without talking to other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ncml.errors import InferenceTensorError

__all__ = ["check_gradients", "eval_mode", "evaluating", "usable"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a block in eval mode, outside inference mode, and restore every training flag after it.

    Calls of a ``DistributedDataParallel`` in the block exchange nothing, so that processes may make different
    numbers of them.

    Raises:
        InferenceTensorError: A parameter was created under ``torch.inference_mode``.
    """
    check_gradients(module)
    with eval_mode(module), _alone(module), torch.inference_mode(False):
        yield


def check_gradients(module: nn.Module) -> None:
    """Refuse a module with parameters that autograd cannot use."""
    if any(p.is_inference() for p in module.parameters()):
        raise InferenceTensorError(
            "density: got parameters created under torch.inference_mode(), which autograd cannot use; "
            "build or load the model outside of it"
        )


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Run a block in eval mode, and restore every training flag after it."""
    # Written past nn.Module.__setattr__, whose search for parameters would cost more than a small network.
    training = [vars(m) for m in module.modules() if m.training]
    for attributes in training:
        attributes["training"] = False
    try:
        yield
    finally:
        for attributes in training:
            attributes["training"] = True


@contextmanager
def _alone(module: nn.Module) -> Iterator[None]:
    """Let calls of a DDP in a block, or of one in a wrapper, neither copy buffers nor prepare for gradients."""
    parallel = next((m for m in module.modules() if isinstance(m, nn.parallel.DistributedDataParallel)), None)
    if parallel is None:
        yield
        return
    copies = parallel.require_forward_param_sync
    with parallel.no_sync():
        parallel.require_forward_param_sync = False
        try:
            yield
        finally:
            parallel.require_forward_param_sync = copies


def usable(tensor: Tensor) -> Tensor:
    """A tensor that autograd can use, also under a caller's ``inference_mode``."""
    return tensor.clone() if tensor.is_inference() else tensor
