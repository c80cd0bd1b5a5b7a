"""One process or many: Lightning Fabric, and work that is divided without changing its result."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncml.errors import ArgumentError, MissingExtraError, UnsupportedError
from ncml.progress import progress_bar
from ncml.training.config import RunConfig
from ncml.training.draws import stream_seed
from ncml.training.signals import StopSignals

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["check_strategy", "finish", "in_blocks", "launch", "reduced"]

WHOLE_MODEL = (
    "expected 'auto' or a 'ddp' one: every process holds the whole model, of which checkpoints, the moving average and "
    "the likelihoods between steps are made; models that do not fit one GPU are out of reach: save memory with "
    "model.recompute, optim.accumulate and run.precision bfloat16"
)
SPLITTING = ("fsdp", "deepspeed", "tp", "xla", "model_parallel", "megatron")
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def launch(run: RunConfig, loggers: list[Any] | None = None) -> Fabric:
    """Fabric for this process, which ``torchrun`` may have started as one of many.

    Args:
        run: Accelerator, strategy, precision, threads.
        loggers: Fabric's loggers.

    Raises:
        MissingExtraError: Lightning Fabric is not installed.
        ArgumentError: A strategy that Fabric does not know.
        UnsupportedError: A strategy that splits the model.
    """
    if run.strategy.lower().startswith(SPLITTING):
        raise UnsupportedError(f"run.strategy: got {run.strategy!r}; {WHOLE_MODEL}")
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtraError("train: Lightning Fabric is not installed; pip install 'ncml[train]'") from error
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    if run.tf32:
        torch.set_float32_matmul_precision("high")
    # torchrun's environment says how many processes there are; nothing is launched here.
    accelerator = run.accelerator
    if accelerator == "auto":  # of those that have float64, in which results are collected
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // here
    try:
        fabric = Fabric(
            accelerator=accelerator,
            strategy=run.strategy,
            devices=here,
            num_nodes=nodes,
            precision=PRECISIONS[run.precision],  # type: ignore[arg-type]
            loggers=loggers,
        )
        fabric.launch()
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ArgumentError(f"run: got {run.accelerator!r} and {run.strategy!r}, refused by Fabric: {error}") from error
    return fabric


def finish() -> None:
    """Exit together: a process that ends while another still talks to it makes the other abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def in_blocks(
    fabric: Fabric,
    n: int,
    size: int,
    work: Callable[[slice, torch.Generator], dict[str, Tensor]],
    *,
    seed: int,
    label: str,
    progress: bool = False,
    signals: StopSignals | None = None,
) -> dict[str, Tensor]:
    """Do ``n`` pieces of work in blocks, divided over the processes; the result is that of one process.

    Block i draws from a generator that depends on the seed and on i alone.

    Args:
        fabric: Says which processes there are.
        n: Pieces of work.
        size: Pieces in a block.
        work: Maps a block's rows and generator to tensors with one row for each.
        seed: Seed of the generators.
        label: What the progress bar calls it, and the stream of random numbers.
        progress: Show a progress bar on the first process.
        signals: Once one has been received, stop after the current block.

    Returns:
        The tensors of all blocks in order, ``(n, ...)``, float64 on the CPU, on every process; stopped by a signal, the
        rows before the first block that was not done.
    """
    blocks = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    mine = range(fabric.global_rank, len(blocks), fabric.world_size)
    parts = {}
    # A process without a block of its own does the first one again, to learn names and shapes.
    for i in progress_bar(mine or range(1), progress and fabric.is_global_zero, label):
        generator = torch.Generator(fabric.device).manual_seed(stream_seed(seed, label, i))
        parts[i] = {name: value.detach().double().cpu() for name, value in work(blocks[i], generator).items()}
        if signals is not None and signals.received:
            break
    done = torch.zeros(len(blocks), dtype=torch.float64)
    done[[i for i in mine if i in parts]] = 1.0
    done = reduced(fabric, done, "sum").cpu()
    finished = [blocks[i] for i in range(int(done.cumprod(0).sum()))]
    gathered = {}
    for name, like in next(iter(parts.values())).items():
        total = torch.zeros(n, *like.shape[1:], dtype=torch.float64)
        for i in mine:
            if i in parts:
                total[blocks[i]] = parts[i][name]
        # Every row is zero on all processes but one: the sum is exact.
        gathered[name] = reduced(fabric, total, "sum").cpu()[: finished[-1].stop if finished else 0]
    return gathered


def reduced(fabric: Fabric, value: Tensor, how: str) -> Tensor:
    """The sum, mean or maximum over all processes, on the device."""
    result = fabric.all_reduce(value.to(fabric.device), reduce_op=how)
    assert isinstance(result, Tensor)
    return result


def check_strategy(fabric: Fabric) -> None:
    """Refuse strategies that split parameters, which checkpoints and the average would have to gather."""
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    if not isinstance(fabric.strategy, (DDPStrategy, SingleDeviceStrategy)):
        raise UnsupportedError(f"run.strategy: got {type(fabric.strategy).__name__}; {WHOLE_MODEL}")
