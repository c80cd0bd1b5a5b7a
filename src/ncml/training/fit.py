"""A short training loop for data that fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ncml.checks import check_context, check_count, check_generator, check_positive, check_weights, is_real
from ncml.density import inner_density, unwrapped
from ncml.density.lengths import check_lengths, positions_that_count, with_padding
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ncml.objective import NCMLObjective
from ncml.progress import progress_bar
from ncml.training.inputs import check_connected, check_parameters, check_reached
from ncml.training.modes import training_mode
from ncml.training.table_checks import check_rows, warn_of_data

__all__ = ["fit"]


def fit(
    density: nn.Module,
    objective: NCMLObjective,
    x: Tensor,
    context: Tensor | None = None,
    *,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    clip_norm: float = 10.0,
    generator: torch.Generator | None = None,
    lengths: Tensor | None = None,
    row_weights: Tensor | None = None,
    progress: bool = False,
    label: str = "training",
    callback: Callable[[int], bool | None] | None = None,
) -> list[float]:
    """Minimise an objective with Adam and a cosine learning rate, in place; ends in eval mode.

    Args:
        density: The density to train.
        objective: The objective; its draws and the batches come from ``generator``.
        x: All training data in data units, ``(N, *event_shape)``, on the density's device.
        context: Conditioning with N rows, or None.
        steps: Number of optimizer steps. The learning rate falls to zero over them.
        batch_size: Examples per step, drawn with replacement.
        learning_rate: Adam's learning rate at the start.
        clip_norm: Gradients with a larger norm are scaled down to it; ``math.inf`` leaves them as they are.
        generator: Source of randomness (dropout aside, which uses torch's own); with the same one, on
            the same machine with the same number of threads, training is repeated bit for bit.
        lengths: For densities over sequences, how many positions of each row count, ``(N,)``; what lies beyond them is
            not part of the loss, and may be anything, NaN too.
        row_weights: How often every row is drawn relative to others, ``(N,)``, at least 0; all alike if None.
        progress: Show a progress bar (needs tqdm).
        label: What the progress bar calls it.
        callback: Called after every step with the number of steps taken; a true result ends the training.

    Returns:
        The loss of every step, in nats.

    Raises:
        NonFiniteError: The loss or a gradient is NaN or infinite; the parameters are those before that step.
        ArgumentError: ``x`` has NaN or infinity in a row, which is named before the first step; an empty data set, ...

    Warns:
        LatticeDataWarning: The data lie on few evenly spaced values, where the likelihood of a density without a
            lattice is unbounded, and the objective does not dequantise them.
        ColumnScaleWarning: The data are not of order one (by a hundred times); columns of a table are constant, or
            their standard deviations differ by more than a hundred times.
    """
    _check_data(objective, x, context, generator)
    steps = check_count(steps, "steps")
    batch_size = check_count(batch_size, "batch_size")
    check_positive(learning_rate, "learning_rate")
    if not is_real(clip_norm) or not clip_norm > 0.0:
        raise ArgumentError(f"clip_norm: got {clip_norm!r}; expected a number > 0; math.inf clips nothing")
    if lengths is not None:
        lengths = check_lengths(lengths, tuple(x.shape), x.device)
        x = with_padding(x, lengths)[0]
    x = x.detach()
    shares = None if row_weights is None else _cumulative(row_weights, x)
    check_rows(lambda rows: x[rows], len(x), "x")
    inner = unwrapped(density) if isinstance(density, nn.Module) else inner_density(density)
    if inner is not None:
        seen = x if lengths is None else x[positions_that_count(x, lengths).view(len(x), -1)][None]
        warn_of_data(inner, objective, seen, stacklevel=2)
    parameters = list(density.parameters())
    check_parameters(density)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5 * (1.0 + math.cos(math.pi * i / steps)))
    # Batches have a stream of their own: two objectives with the same generator see the same data.
    seed = torch.randint(2**62, (), generator=generator, device=x.device)
    batches = torch.Generator(x.device).manual_seed(int(seed))
    losses: list[float] = []
    with training_mode(density):
        for step in progress_bar(range(steps), progress, label):
            if shares is None:
                rows = torch.randint(x.shape[0], (batch_size,), generator=batches, device=x.device)
            else:
                u = torch.rand(batch_size, generator=batches, device=x.device, dtype=shares.dtype)
                rows = torch.searchsorted(shares, u, right=True)
            given, ends = (None if v is None else v[rows] for v in (context, lengths))
            loss = objective(density, x[rows], given, generator=generator, lengths=ends)
            check_connected(loss, density)
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                check_reached(density)
            norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm))
            if not math.isfinite(norm):
                raise NonFiniteError(
                    f"gradient: got a norm of {norm} at step {step}; expected a finite one; lower learning_rate"
                )
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if callback is not None and callback(step + 1):
                break
    return losses


def _cumulative(row_weights: Tensor, x: Tensor) -> Tensor:
    """The shares that rows up to each have of the sum of weights: 1 from the last one with a weight on."""
    # On the CPU: CUDA has no sum of this kind that is repeated bit for bit.
    sums = check_weights(row_weights, len(x), "row_weights").cpu().cumsum(0)
    return (sums / sums[-1]).to(x.device)


def _check_data(objective: NCMLObjective, x: Tensor, context: Tensor | None, generator: torch.Generator | None) -> None:
    """Refuse an objective without one loss for a batch, and data that are no tensor, are empty, or do not fit."""
    if not isinstance(objective, NCMLObjective):
        raise ArgumentTypeError(
            f"objective: got {getattr(objective, '__name__', type(objective).__name__)}; expected an NCMLObjective, "
            f"such as NCMLObjective(process)"
        )
    if objective.reduction == "none":
        raise ArgumentError("objective: got reduction='none', a loss per example; expected 'mean' (or 'sum')")
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(
            f"x: got {type(x).__name__}; expected one tensor of all training data: "
            f"torch.as_tensor(numpy.asarray(x)), or the stacked examples of a data set"
        )
    if x.ndim == 0 or len(x) == 0:
        raise ArgumentError(f"x: got an empty data set, shape {tuple(x.shape)}; expected at least one example")
    check_generator(generator, x.device)
    check_context(context, len(x), x.device)
