"""Predictor and corrector."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ncml.checks import check_count, check_positive
from ncml.density import Target
from ncml.sampling.euler_maruyama import EulerMaruyama
from ncml.sampling.langevin import langevin_moves
from ncml.sampling.sampler import GridSampler, check_stepper

__all__ = ["PredictorCorrector"]


@dataclass(frozen=True)
class PredictorCorrector(GridSampler):
    r"""A step of any sampler, then Langevin moves where it leads (Song et al., 2021, algorithms 2 to 5).

    At the level s > 0 that the predictor reached,

    .. math:: x \leftarrow x + \epsilon\, \nabla\log p_s(x) + \sqrt{2\epsilon}\, z, \qquad
              \epsilon = 2 (r\, \sigma_s)^2.

    The paper has :math:`\|z\| / \|\nabla\log p_s(x)\|`, averaged over the batch, where this has :math:`\sigma_s`: its
    value for pure noise, and otherwise a lower bound in the mean. So rows do not interact, and a move is as safe as
    the noise of the level. With ``moves=0``, and the predictor's grid and ``denoise_last``, it is the
    predictor, bit for bit.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; those of the predictor are not used.
        predictor: Any :class:`~ncml.sampling.GridSampler`.
        moves: Corrector moves per step, one score each.
        ratio: The signal-to-noise ratio r of a move; 0.16 as in the paper for VE.
    """

    predictor: GridSampler = field(default_factory=EulerMaruyama)
    moves: int = 1
    ratio: float = 0.16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stepper(self.predictor, "predictor")
        check_count(self.moves, "moves", minimum=0)
        check_positive(self.ratio, "ratio")

    @property
    def needs_log_density(self) -> bool:  # type: ignore[override]
        """As the predictor."""
        return self.predictor.needs_log_density

    def check(self, target: Target, start: float, stop: float) -> None:
        super().check(target, start, stop)
        replace(self.predictor, steps=self.steps, grid=self.grid).check(target, start, stop)

    def begin(self, times: list[float]) -> Any:  # noqa: ANN401
        return self.predictor.begin(times)

    def step(self, target: Target, x: Tensor, t: float, s: float, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        x, state = self.predictor.step(target, x, t, s, state)
        epsilon = 2.0 * (self.ratio * target.sigma(s)) ** 2
        return langevin_moves(target, x, s, epsilon, self.moves), state

    def info(self, state: Any) -> dict[str, Any]:  # noqa: ANN401
        return self.predictor.info(state)
