"""The training loop: one process or many, stopped and resumed at will, without a number changing."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncml.density import NoiseConditionalDensity
from ncml.errors import ArgumentError, CheckpointError, NonFiniteError
from ncml.objective import NCMLObjective
from ncml.report import jsonable, write_report
from ncml.training.checkpoint import (
    MANIFEST,
    Checkpoint,
    check_kind,
    density_kind,
    load_state,
    remove_unfinished,
    save_checkpoint,
    step_folders,
)
from ncml.training.config import OptimConfig, RunConfig
from ncml.training.draws import Batch, BatchDraws, stream_seed
from ncml.training.ema import EMA
from ncml.training.examples import Examples
from ncml.training.inputs import check_connected, check_inputs, check_reached
from ncml.training.metrics import MetricsLog, numbers
from ncml.training.modes import training_mode
from ncml.training.parallel import reduced
from ncml.training.signals import StopSignals
from ncml.training.table_checks import warn_of_data
from ncml.training.window import Window, unit_of_bits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Periodic", "Trainer"]

LOOKED_AT = 2048  # examples, spread over the data, in which a lattice is looked for


@dataclass(frozen=True)
class Periodic:
    """Something to do at regular intervals, with the average of the parameters in the density.

    Args:
        every: Steps from one time to the next; 0 for never.
        name: What metrics.jsonl calls its result.
        action: Maps the step to JSON data, or None. Called on every process.
    """

    every: int
    name: str
    action: Callable[[int], Mapping[str, Any] | None]


class Trainer:
    """Trains a density on examples; :meth:`Trainer.run` starts, or continues from the state that was loaded.

    Everything random is a function of the seed and the step (:class:`~ncml.training.draws.BatchDraws`;
    dropout by seeding torch's generator each step), so that a run that was killed goes on bit for bit on
    the CPU, and several processes see the batches that one would; dropout, and the probes of ``fokker_planck``, are
    each one's own. In ``folder``: ``metrics.jsonl`` and ``checkpoints/``.

    Args:
        fabric: What :func:`ncml.training.launch` returned.
        density: The density. Its randomness while training may only come from torch's default generator.
        objective: The objective.
        examples: The training data.
        folder: The folder of the run.
        optim: Optimizer, schedule, average.
        run: Seed, intervals.
        periodic: What else to do during training.
        info: JSON data to keep in checkpoints, such as the configuration.
        use_labels: Pass the labels of the examples to the density, as its context.

    Raises:
        ArgumentError: A batch that does not divide into processes and parts, a process other than the density's, or
            data with NaN or infinity, whose row is named.

    Warns:
        LatticeDataWarning: The data lie on few evenly spaced values, and neither the density nor the objective knows
            their lattice.
        ColumnScaleWarning: The data are not of order one; columns of a table are constant, or of very different scales.
    """

    def __init__(
        self,
        fabric: Fabric,
        density: NoiseConditionalDensity,
        objective: NCMLObjective,
        examples: Examples,
        folder: str | Path,
        optim: OptimConfig,
        run: RunConfig,
        *,
        periodic: Sequence[Periodic] = (),
        info: Mapping[str, Any] | None = None,
        use_labels: bool = False,
    ) -> None:
        check_inputs(fabric, density, objective, examples, optim, run, use_labels)
        if fabric.is_global_zero:
            some = torch.arange(0, len(examples), -(-len(examples) // LOOKED_AT))
            warn_of_data(density, objective, examples.batch(some), stacklevel=2)
        self.fabric, self.density, self.examples = fabric, density, examples
        self.objective = objective
        self.folder, self.optim, self.run_config = Path(folder), optim, run
        self.periodic, self.info, self.use_labels = periodic, dict(info or {}), use_labels
        dtype = torch.float64 if density.dtype == torch.float64 else torch.float32
        self.draws = BatchDraws(len(examples), density.event_shape, objective, optim.batch_size, run.seed, dtype)
        named = dict(density.named_parameters())
        self.names, parameters = list(named), list(named.values())
        self.adam = torch.optim.Adam(parameters, lr=optim.learning_rate, betas=(optim.beta1, optim.beta2))
        # The density and Adam stay what they are: Fabric's wrappers are for the passes of a step only.
        self.module, self.optimizer = fabric.setup(density, self.adam)
        self.ema = EMA(density.parameters(), optim.ema)
        self.step = 0
        self.seconds = 0.0
        self.window = Window(density, objective.dequantize, unit_of_bits(getattr(examples, "rate", None)))

    # Going through the steps.

    def run(self, progress: bool = False) -> int:
        """Train up to the last step; saves at the end, and at a signal.

        Returns:
            0, or the number of the signal that stopped it.

        Raises:
            NonFiniteError: A loss or gradient is not finite. The parameters are those before that step;
                they are in ``bad_step_N`` beside the checkpoints, with the draws that led there.
        """
        checkpoints = self.folder / "checkpoints"
        if self.fabric.is_global_zero:
            remove_unfinished(checkpoints)
        later = [folder.name for folder in step_folders(checkpoints) if int(folder.name[5:]) > self.step]
        if later:
            raise ArgumentError(
                f"folder: got {self.folder}, which has {later[-1]}, later than step {self.step}; expected to go on "
                f"from there (load it), or another folder"
            )
        if self.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        log = MetricsLog(self.folder / "metrics.jsonl", self.step) if self.fabric.is_global_zero else None
        bar = self._bar(progress)
        with training_mode(self.density), StopSignals() as signals, torch.random.fork_rng(self._cuda_devices()):
            stopped = 0
            while self.step < self.optim.steps:
                start = time.perf_counter()
                batch = self.draws(self.step)
                try:
                    self._train_step(batch)
                except NonFiniteError as error:
                    raise self._bad_step(batch, error) from error
                self.seconds += time.perf_counter() - start
                bar.update()
                self._after_step(log, bar)
                if stopped := self._agreed(signals.received):
                    break
            self.save()  # with signals held back
        bar.close()
        return stopped

    def _train_step(self, batch: Batch) -> None:
        """One optimizer step on the global batch; nothing changes if something is not finite."""
        fabric, rank = self.fabric, self.fabric.global_rank
        torch.manual_seed(stream_seed(self.run_config.seed, "dropout", self.step, rank))
        mine = batch.part(rank, fabric.world_size)
        parts = []
        for i in range(self.optim.accumulate):
            part = mine.part(i, self.optim.accumulate)
            last = i == self.optim.accumulate - 1
            with fabric.no_backward_sync(self.module, enabled=not last):
                x = self.examples.batch(part.rows, device=fabric.device)
                x = x.to(self.draws.dtype) if x.is_floating_point() else x  # integers are refused, not converted
                context = self._labels(part.rows)
                t, weight, noise = (v.to(fabric.device) for v in (part.t, part.weight, part.noise))
                uniform = None if part.uniform is None else part.uniform.to(fabric.device)
                terms = self.objective.terms(self.module, x, context, t=t, weight=weight, noise=noise, uniform=uniform)
                check_connected(terms.loss, self.density)
                # Per dimension, so that a norm to clip at means the same for small and large images.
                fabric.backward(terms.loss.sum() / (len(mine.rows) * self.window.dims))
                parts.append(terms)
        if self.step == 0:
            check_reached(self.density)
        norm = fabric.clip_gradients(
            self.module, self.optimizer, max_norm=self.optim.clip_norm, error_if_nonfinite=False
        )
        self.window.norm = float(norm) if norm is not None else math.nan
        if not math.isfinite(self.window.norm):
            self.adam.zero_grad()
            raise NonFiniteError(
                f"gradient: got a norm of {self.window.norm}; expected a finite one; lower the learning rate"
            )
        for group in self.adam.param_groups:
            group["lr"] = self.optim.learning_rate_at(self.step)
        for terms in parts:
            self.window.add(terms)
        self.optimizer.step()
        self.adam.zero_grad()
        self.ema.update()
        self.step += 1

    def _labels(self, rows: Tensor) -> Tensor | None:
        labels = self.examples.labels
        return labels[rows].to(self.fabric.device) if self.use_labels and labels is not None else None

    def _after_step(self, log: MetricsLog | None, bar: Any) -> None:  # noqa: ANN401 -- tqdm's
        """Log, validate, sample, save, where the step says so."""
        lines = []
        if self.step % self.run_config.log_every == 0 or self.step == self.optim.steps:
            line = self.window.close(self.fabric)
            rate = self.optim.learning_rate_at(self.step - 1)
            speed = self.step * self.optim.batch_size / max(self.seconds, 1e-9)
            lines.append(
                {
                    "step": self.step,
                    "epoch": self.step * self.optim.batch_size / len(self.examples),
                    **line,
                    "learning_rate": rate,
                    "seconds": self.seconds,
                    "examples_per_second": speed,
                }
            )
            bar.set_postfix_str(f"{self.window.summary(line)}, {speed:.3g} examples/s")
        for task in self.periodic:
            if task.every and (self.step % task.every == 0 or self.step == self.optim.steps):
                result = self._averaged(task.action)
                if result is not None:
                    lines.append({"step": self.step, task.name: result})
        if log is not None:
            for line in lines:
                log.write(line)
        for line in lines:
            self.fabric.log_dict(dict(numbers(line)), step=self.step)
        if self.step % self.run_config.save_every == 0 and self.step < self.optim.steps:
            self.save()

    def _averaged(self, action: Callable[[int], Mapping[str, Any] | None]) -> Any:  # noqa: ANN401 -- JSON data
        with self.ema.applied(), torch.random.fork_rng(self._cuda_devices()):
            self.density.eval()
            try:
                return action(self.step)
            finally:
                self.density.train()

    def _agreed(self, received: int) -> int:
        """The signal that any process received, so that all stop after the same step."""
        if self.fabric.world_size == 1:
            return received
        flag = torch.tensor(received, device=self.fabric.device, dtype=torch.float32)
        return int(reduced(self.fabric, flag, "max"))

    def _cuda_devices(self) -> list[torch.device]:
        return [self.fabric.device] if self.fabric.device.type == "cuda" else []

    def _bar(self, progress: bool) -> Any:  # noqa: ANN401 -- tqdm's
        from tqdm.auto import tqdm

        hidden = not (progress and self.fabric.is_global_zero)
        return tqdm(total=self.optim.steps, initial=self.step, disable=hidden, unit="step", dynamic_ncols=True)

    # Saving and loading.

    def save(self, name: str | None = None) -> Path:
        """Write a checkpoint of the present step, unless it is there; returns its folder."""
        folder = self.folder / "checkpoints" / (name or f"step_{self.step:08d}")
        window = self.window.state(self.fabric)
        if self.fabric.is_global_zero and not (folder / MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)  # of someone who copied a part
            named = dict(self.density.named_parameters())
            training: dict[str, Tensor] = {f"parameter.{own}": p for own, p in named.items()}
            for own, p in named.items():
                training |= {f"{key}.{own}": value for key, value in self.adam.state.get(p, {}).items()}
            state = {"seconds": self.seconds, "window": window, "ema_updates": self.ema.updates}
            with self.ema.applied():
                model = {k: v.clone() for k, v in self.density.state_dict().items()}
            info = {**self.info, "density": density_kind(self.density), "trainer": jsonable(state)}
            save_checkpoint(folder, self.step, info, model, training)
            self._prune()
        self.fabric.barrier()
        return folder

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: It is of another model or has no training state; nothing is changed.
        """
        check_kind(self.density, checkpoint)
        model, tensors = checkpoint.model(), checkpoint.training()
        state = checkpoint.info.get("trainer")
        if state is None:
            raise CheckpointError(f"{checkpoint.folder}: got no training state; expected a checkpoint of a Trainer")
        absent = [name for name in self.names if name not in model or f"parameter.{name}" not in tensors]
        if absent:
            raise CheckpointError(f"{checkpoint.folder}: got weights of another model: without {absent[:10]}")
        own = {name: tensors.pop(f"parameter.{name}") for name in self.names}
        buffers = {name: model[name] for name, _ in self.density.named_buffers() if name in model}
        tied = {name: own[first] for name, first in self._tied().items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for i, name in enumerate(self.names):
            keys = {key: tensors.pop(f"{key}.{name}", None) for key in ("step", "exp_avg", "exp_avg_sq")}
            found = {key: value for key, value in keys.items() if value is not None}
            if found and (len(found) < 3 or any(found[k].shape != own[name].shape for k in ("exp_avg", "exp_avg_sq"))):
                raise CheckpointError(f"{checkpoint.folder}: got an optimizer state that does not fit {name}")
            if found:
                moments[i] = found
        if tensors:
            raise CheckpointError(f"{checkpoint.folder}: got training tensors of another model: {sorted(tensors)[:10]}")
        load_state(self.density, {**own, **tied, **buffers}, str(checkpoint.folder))
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": moments, "param_groups": groups})
        for average, name in zip(self.ema.average, self.names, strict=True):
            average.copy_(model[name])
        self.ema.updates = state["ema_updates"]
        self.step, self.seconds = checkpoint.step, float(state["seconds"])
        if self.fabric.is_global_zero:  # the sums are those of all processes
            self.window.restore(state["window"])
        steps = torch.tensor([self.step, -self.step], dtype=torch.float64)
        if reduced(self.fabric, steps, "max").tolist() != steps.tolist():
            raise CheckpointError(
                f"{checkpoint.folder}: got step {self.step} here and another elsewhere; expected one folder that all "
                f"machines see"
            )

    def _tied(self) -> dict[str, str]:
        """Other names under which state dicts have parameters, with their first names."""
        first = {id(p): name for name, p in self.density.named_parameters()}
        every = self.density.named_parameters(remove_duplicate=False)
        return {name: first[id(p)] for name, p in every if first[id(p)] != name}

    def _prune(self) -> None:
        """Remove all but the latest checkpoints."""
        for old in step_folders(self.folder / "checkpoints")[: -self.run_config.keep]:
            shutil.rmtree(old)

    def _bad_step(self, batch: Batch, error: NonFiniteError) -> NonFiniteError:
        """The error with what it takes to repeat it, which is also written down."""
        name = f"bad_step_{self.step:08d}"
        mine = batch.part(self.fabric.global_rank, self.fabric.world_size)
        self.adam.zero_grad()
        if self.fabric.world_size == 1:  # else the others wait in the backward pass, and cannot join in
            shutil.rmtree(self.folder / "checkpoints" / name, ignore_errors=True)  # of an earlier failure
            self.save(name)
        path = self.folder / f"{name}.json"
        draws = {"step": self.step, "seed": self.run_config.seed, "rows": mine.rows, "t": mine.t}
        write_report(path, {**draws, "error": str(error)})
        return NonFiniteError(
            f"{error} [step {self.step}, seed {self.run_config.seed}, rows of the data {_short(mine.rows)}, t in "
            f"[{float(mine.t.min()):.6g}, {float(mine.t.max()):.6g}]; nothing was changed; see {path}; a resumed run "
            f"draws the same: resume from an earlier checkpoint with a lower optim.learning_rate]"
        )


def _short(rows: Tensor) -> str:
    listed = rows.tolist()
    return json.dumps(listed[:8])[:-1] + (", ...]" if len(listed) > 8 else "]")
