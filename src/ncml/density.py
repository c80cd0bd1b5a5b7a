r"""2. The noise conditional density: :math:`\log p_t(x)`.

One normalised density for every noise level :math:`t`, in **nats per example with respect to Lebesgue
measure on data units**. A subclass writes :meth:`~NoiseConditionalDensity.forward` and nothing else:

>>> class Normal(NoiseConditionalDensity):
...     def forward(self, x, t, context=None):
...         return torch.distributions.Normal(0.0, 1.0 + t[:, None]).log_prob(x).sum(1)
>>> Normal(event_shape=(2,)).log_prob(torch.zeros(1, 2), t=0.0)
tensor([-1.8379])

Three pairs, each a checked public method around an unchecked one that subclasses write or override:

===================  ============================  ===========================================
public, checked      unchecked, ``t`` is ``(B,)``  what it is
===================  ============================  ===========================================
``log_prob``         ``forward``                   the likelihood; what training maximises
``log_density``      ``forward_density``           the same without lattice edges, any real x
``score``            ``forward_score``             gradient of ``log_density`` in x
===================  ============================  ===========================================

**Mass and density.** Data on a lattice have a probability mass at t = 0 and a density at t > 0. A
density with a ``lattice`` reports the mass of a bin divided by its width, so that both are densities;
the first and last bin reach to infinity exactly where the process keeps data on the lattice
(``process.on_lattice(t)``). For the score, the samplers and anything else that differentiates,
``log_density`` is the smooth function without those edges.

Capabilities are subclasses (:class:`SampleableDensity`, :class:`AutoregressiveDensity`), checked
where they are used.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ncml._checks import Time, check_context, check_count, check_generator, check_input, check_time
from ncml.errors import ArgumentError, ArgumentTypeError, InferenceTensorError, NonFiniteError
from ncml.lattice import Lattice
from ncml.noise import NoiseProcess

__all__ = [
    "AutoregressiveDensity",
    "NoiseConditionalDensity",
    "SampleableDensity",
    "check_process",
    "check_score",
    "eval_mode",
    "evaluating",
    "unwrapped",
]


class NoiseConditionalDensity(nn.Module, abc.ABC):
    """A density of ``x_t`` for every time ``t``.

    Args:
        event_shape: Shape of one example; ``x`` is ``(B, *event_shape)``.
        process: The noise process that the density's noise features or input scaling refer to, or
            None if it has no opinion. The objective and the samplers refuse another one.
        lattice: The lattice of the data, if ``forward`` gives exact masses there; needs a process,
            which knows when data are on it. Such a density also overrides ``forward_density``.

    Attributes:
        dtype_follows_input: True for densities without a dtype of their own (closed forms).
    """

    dtype_follows_input: bool = False

    def __init__(
        self, event_shape: Sequence[int], process: NoiseProcess | None = None, lattice: Lattice | None = None
    ) -> None:
        super().__init__()
        shape = tuple(event_shape) if isinstance(event_shape, Sequence) else ()
        if not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape):
            raise ArgumentError(
                f"event_shape: got {event_shape!r}; expected positive integers, such as (2,) or (3, 32, 32)"
            )
        if process is not None and not isinstance(process, NoiseProcess):
            raise ArgumentTypeError(
                f"process: got {type(process).__name__}; expected a NoiseProcess, such as VPSDE.at_noise(0.1)"
            )
        if lattice is not None and process is None:
            raise ArgumentTypeError(
                "process: got None with a lattice; expected a NoiseProcess, which knows when data are on it"
            )
        if lattice is not None and getattr(process, "lattice", lattice) != lattice:
            raise ArgumentError(
                f"lattice: got {lattice}; expected that of {process}: its noise would leave the density's lattice"
            )
        self.event_shape: tuple[int, ...] = shape
        self.process = process
        self.lattice = lattice

    # What subclasses write.

    @abc.abstractmethod
    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-likelihood in nats, shape ``(B,)``. ``t`` is ``(B,)``; nothing needs checking."""

    def forward_density(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density without lattice edges, shape ``(B,)``; :meth:`forward` unless overridden."""
        return self.forward(x, t, context)

    def forward_score(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, *, create_graph: bool = False
    ) -> Tensor:
        """Gradient of the summed :meth:`forward_density` in ``x``; override where a closed form exists.

        One backward pass serves the whole batch, since examples do not interact.
        """
        with torch.enable_grad():
            if not (create_graph and x.requires_grad):
                x = x.detach().requires_grad_()
            log_p = self.forward_density(x, t, context)
            self._check_shape(log_p, x)
            (score,) = torch.autograd.grad(log_p.sum(), x, create_graph=create_graph)
        return score

    # The public edge.

    def log_prob(self, x: Tensor, t: Time = 0.0, context: Tensor | None = None, *, check_finite: bool = True) -> Tensor:
        """Log-likelihood of ``x`` at time ``t`` in nats per example.

        Evaluates: dropout is off, and the training flags are restored. To train, call the density itself.

        Args:
            x: Batch of shape ``(B, *event_shape)``, floating, in data units. Half precision is
                computed in float32.
            t: A number, a 0-d tensor or ``(B,)``, ``0 <= t <= T``. The default is the data itself.
            context: Conditioning with one row per example, or None.
            check_finite: Refuse NaN or infinity in ``x`` (costs one reduction).

        Returns:
            Tensor ``(B,)``, differentiable. ``-inf`` where the density is zero.

        Raises:
            ArgumentError: Shape, device or values do not fit; ``x`` is off the lattice at a time where
                the process keeps data on it.
            ArgumentTypeError: ``x`` is not floating, or has another dtype than the density.
            NonFiniteError: The result is NaN or ``+inf``.
        """
        x, t, context = self._checked(x, t, context, finite=check_finite)
        if self.lattice is not None and self.process is not None:
            clean = self.process.on_lattice(t)
            self.lattice.check(x if bool(clean.all()) else x[clean])
        with eval_mode(self):
            return self._checked_result(self.forward(x, t, context), x, t)

    def log_density(
        self, x: Tensor, t: Time = 0.0, context: Tensor | None = None, *, check_finite: bool = True
    ) -> Tensor:
        """Log-density without lattice edges: finite and smooth for any real ``x`` at any ``t``.

        Equal to :meth:`log_prob` for continuous models. Arguments, result and errors as there.
        """
        x, t, context = self._checked(x, t, context, finite=check_finite)
        with eval_mode(self):
            return self._checked_result(self.forward_density(x, t, context), x, t)

    def score(
        self,
        x: Tensor,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        create_graph: bool = False,
        check_finite: bool = True,
    ) -> Tensor:
        r"""The score :math:`\nabla_x \log p_t(x)`, gradient of :meth:`log_density`.

        Works under callers' ``no_grad`` and ``inference_mode``; runs in eval mode and restores the
        training flags; leaves no gradient on parameters.

        Args:
            x, t, context, check_finite: As for :meth:`log_prob`.
            create_graph: Keep the graph, so that the score can be differentiated again.

        Returns:
            Tensor with the shape of ``x`` in nats per data unit, detached unless ``create_graph``.

        Raises:
            InferenceTensorError: The parameters were created under ``torch.inference_mode``.
            NonFiniteError: The score is NaN or infinite.
        """
        x, t, context = self._checked(x, t, context, finite=check_finite)
        with evaluating(self):
            x, t = _usable(x), _usable(t)
            context = None if context is None else _usable(context)
            score = self.forward_score(x, t, context, create_graph=create_graph)
        check_score(score, t)
        return score if create_graph else score.detach()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating parameter or buffer, or torch's default."""
        own = self._own_tensor()
        return own.dtype if own is not None else torch.get_default_dtype()

    @property
    def device(self) -> torch.device:
        """Device of the first floating parameter or buffer, or the CPU."""
        own = self._own_tensor()
        return own.device if own is not None else torch.device("cpu")

    def _own_tensor(self) -> Tensor | None:
        for tensors in (self.parameters(), self.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point():
                    return tensor
        return None

    @property
    def max_time(self) -> float:
        """Largest time that the density accepts: its process's T, or infinity."""
        return self.process.T if self.process is not None else float("inf")

    def _checked(
        self, x: Tensor, t: Time, context: Tensor | None, *, finite: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        own = self._own_tensor()
        dtype = None if own is None or self.dtype_follows_input else own.dtype
        x = check_input(x, self.event_shape, dtype, None if own is None else own.device, finite=finite)
        return x, check_time(t, x, self.max_time), check_context(context, x.shape[0], x.device)

    def _check_shape(self, log_p: Tensor, x: Tensor) -> None:
        if not isinstance(log_p, Tensor) or log_p.shape != x.shape[:1]:
            got = tuple(log_p.shape) if isinstance(log_p, Tensor) else type(log_p).__name__
            raise ArgumentError(
                f"{type(self).__name__}.forward: got {got}; expected ({x.shape[0]},); return the log-density of each "
                f"example: sum over event dimensions, not over the batch"
            )

    def _checked_result(self, log_p: Tensor, x: Tensor, t: Tensor) -> Tensor:
        self._check_shape(log_p, x)
        if math.isfinite(float(log_p.detach().sum())):  # then every term is
            return log_p
        bad = log_p.detach().isnan() | (log_p.detach() == float("inf"))
        if bool(bad.any()):
            _raise_non_finite("log-density", bad, t)
        return log_p


class SampleableDensity(NoiseConditionalDensity):
    """A density that can draw samples."""

    @abc.abstractmethod
    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``n`` samples of ``x_t``.

        Args:
            n: Number of samples; 0 gives an empty batch.
            t: Time, a number or ``(n,)``.
            context: Conditioning with ``n`` rows, or None.
            generator: Source of randomness; torch's default generator if None.

        Returns:
            Tensor ``(n, *event_shape)`` in data units, detached; on the lattice where the process is.
        """

    def _checked_draw(
        self, n: int, t: Time, context: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Checked ``(n,)`` times and context of a call of :meth:`sample`."""
        check_count(n, "n", minimum=0)
        check_generator(generator, self.device)
        rows = torch.empty(n, dtype=self.dtype, device=self.device)
        return check_time(t, rows, self.max_time), check_context(context, n, self.device)


class AutoregressiveDensity(SampleableDensity):
    r"""A density that factorises, :math:`p(x) = \prod_i p(x_i \mid x_{<i})`, along a fixed order.

    Sampling is a deterministic function of noise, so that two algorithms can be compared draw for
    draw: a sample is the fixed point ``x == resample(x, noise, t)``, reached after at most D sweeps.
    """

    @property
    @abc.abstractmethod
    def order(self) -> Tensor:
        """The flat event indices in the order in which they are sampled, ``(D,)`` int64."""

    @abc.abstractmethod
    def draw_noise(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The noise behind ``n`` samples, first dimension ``n``."""

    @abc.abstractmethod
    def resample(self, x: Tensor, noise: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        """Redraw every position given the ones before it in ``x``, all in one pass.

        Args:
            x: Current values, shape ``(B, *event_shape)``.
            noise: What :meth:`draw_noise` returned for B samples.
            t: Time, a number or ``(B,)``.
            context: Conditioning with B rows, or None.

        Returns:
            Tensor of the shape of ``x``, detached.
        """

    @abc.abstractmethod
    def sample(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draw ``n`` samples, from ``noise`` if it is given (see :meth:`SampleableDensity.sample`)."""

    def _check_noise(self, noise: Tensor, n: int) -> None:
        """Refuse noise that is not what :meth:`draw_noise` returns for ``n`` samples."""
        expected = (n, *self.draw_noise(0).shape[1:])
        if noise.shape != expected or noise.dtype != self.dtype or noise.device != self.device:
            raise ArgumentError(
                f"noise: got shape {tuple(noise.shape)}, {noise.dtype} on {noise.device}; expected {expected}, "
                f"{self.dtype} on {self.device}; use draw_noise({n})"
            )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a block in eval mode, outside inference mode, and restore every training flag after it.

    Raises:
        InferenceTensorError: A parameter was created under ``torch.inference_mode``.
    """
    if any(p.is_inference() for p in module.parameters()):
        raise InferenceTensorError(
            "density: got parameters created under torch.inference_mode(), which autograd cannot use; "
            "build or load the model outside of it"
        )
    with eval_mode(module), torch.inference_mode(False):
        yield


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


def unwrapped(density: nn.Module) -> NoiseConditionalDensity | None:
    """The density inside wrappers, which DDP keeps as ``module`` and ``torch.compile`` as ``_orig_mod``."""
    inner: object = density
    while inner is not None and not isinstance(inner, NoiseConditionalDensity):
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    return inner


def check_process(density: nn.Module, process: NoiseProcess) -> None:
    """Refuse a process that differs from the one the density was built for."""
    inner = unwrapped(density)
    own = None if inner is None else inner.process
    if own is not None and own != process:
        raise ArgumentError(
            f"process: got {process}; expected {own}, the one that the density was built for; "
            f"its noise features would refer to the wrong noise levels"
        )


def check_score(score: Tensor, t: Tensor) -> None:
    """Raise :class:`~ncml.errors.NonFiniteError` unless every score is finite."""
    if not bool(torch.isfinite(score).all()):
        _raise_non_finite("score", ~torch.isfinite(score.detach().flatten(1)).all(1), t)


def _usable(tensor: Tensor) -> Tensor:
    """A tensor that autograd can use, also under a caller's ``inference_mode``."""
    return tensor.clone() if tensor.is_inference() else tensor


def _raise_non_finite(what: str, bad: Tensor, t: Tensor) -> None:
    first = int(bad.nonzero()[0])
    raise NonFiniteError(
        f"{what}: got NaN or infinity for {int(bad.sum())} of {bad.numel()} examples, the first at index {first} "
        f"with t = {float(t[first]):.6g}; expected finite values; check the input's range and the parameters"
    )
