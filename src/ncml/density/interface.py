r"""2. The noise conditional density: :math:`\log p_t(x)`.

One normalised density for every noise level :math:`t`, in **nats per example with respect to Lebesgue
measure on data units**. A subclass writes :meth:`~NoiseConditionalDensity.forward` and nothing else:

>>> class Normal(NoiseConditionalDensity):
...     def forward(self, x, t, context=None, *, edges=True):
...         return torch.distributions.Normal(0.0, 1.0 + t[:, None]).log_prob(x).sum(1)
>>> Normal(event_shape=(2,)).log_prob(torch.zeros(1, 2), t=0.0)
tensor([-1.8379])

There is one way into the model, its call ``density(x, t, context, edges=...)``: training, likelihoods, scores
and samplers all take it, so that hooks, ``density.compile()`` and wrappers take part in all of them.

===================  =======================================================
public, checked      what it calls
===================  =======================================================
``log_prob``         ``density(x, t, context)``, the likelihood
``log_density``      ``density(x, t, context, edges=False)``, any real x
``score``            ``forward_score``: the gradient of the latter in x
===================  =======================================================

**Mass and density.** Data on a lattice have a probability mass at t = 0 and a density at t > 0. A
density with a ``lattice`` reports the mass of a bin divided by its width, so that both are densities;
the first and last bin reach to infinity exactly where the process keeps data on the lattice
(``process.on_lattice(t)``), unless ``edges=False``. For the score, the samplers and anything else that
differentiates, ``log_density`` is the smooth function without those edges.

Capabilities are subclasses (:class:`SampleableDensity`, :class:`AutoregressiveDensity`), checked
where they are used.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ncml.checks import Time, is_whole
from ncml.density.checks import (
    check_arguments,
    check_log_density,
    check_on_lattice,
    check_score,
    checked_resample,
    checked_sample,
)
from ncml.density.gradient import gradient
from ncml.density.lengths import padded
from ncml.density.modes import eval_mode, evaluating, usable
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise import Lattice, NoiseProcess
from ncml.noise.process import as_process

__all__ = ["AutoregressiveDensity", "NoiseConditionalDensity", "SampleableDensity"]


class NoiseConditionalDensity(nn.Module, abc.ABC):
    """A density of ``x_t`` for every time ``t``.

    Args:
        event_shape: Shape of one example; ``x`` is ``(B, *event_shape)``.
        process: The noise process that the density's noise features or input scaling refer to, or
            None if it has no opinion. The objective and the samplers refuse any other.
        lattice: The lattice of the data, if ``forward`` gives exact masses there; needs a process,
            which knows when data are on it. Such a density heeds ``edges``.

    Attributes:
        dtype_follows_input: True for densities without a dtype of their own (closed forms).
        differentiable: False where autograd cannot differentiate ``forward`` in x, and ``forward_score`` is all there
            is.
        twice_differentiable: False where its second derivatives are wrong: ``create_graph=True`` is then refused.
    """

    dtype_follows_input: bool = False
    differentiable: bool = True
    twice_differentiable: bool = True

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls.forward).parameters.values()
        if not any(p.name == "edges" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise ArgumentTypeError(
                f"{cls.__name__}.forward: got ({', '.join(p.name for p in parameters)}); expected an argument edges "
                f"(since version 0.2): def forward(self, x, t, context=None, *, edges=True); it matters to densities "
                f"with a lattice, and takes the place of forward_density"
            )

    def __init__(
        self, event_shape: Sequence[int], process: NoiseProcess | None = None, lattice: Lattice | None = None
    ) -> None:
        super().__init__()
        shape = tuple(event_shape) if isinstance(event_shape, Sequence) else ()
        if not shape or not all(is_whole(n) and n >= 1 for n in shape):
            got = repr(event_shape) if isinstance(event_shape, (Sequence, int, float)) else type(event_shape).__name__
            raise ArgumentError(f"event_shape: got {got}; expected positive integers, as (2,) or (3, 32, 32)")
        if process is not None:
            as_process(process)
        if lattice is not None and not isinstance(lattice, Lattice):
            raise ArgumentTypeError(f"lattice: got {lattice!r}; expected a Lattice, such as Lattice(256), or None")
        if lattice is not None and process is None:
            raise ArgumentTypeError(
                "process: got None with a lattice; expected a NoiseProcess, which knows when data are on it"
            )
        if lattice is not None and getattr(process, "lattice", lattice) != lattice:
            raise ArgumentError(
                f"lattice: got {lattice}; expected that of {process}: its noise would leave the density's lattice"
            )
        self.event_shape: tuple[int, ...] = tuple(map(int, shape))
        self.process: Any = process  # a NoiseProcess or None: who built the density knows which kind
        self.lattice = lattice

    # What subclasses write.

    @abc.abstractmethod
    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        """Log-likelihood in nats, shape ``(B,)``. ``t`` is ``(B,)``; nothing needs checking.

        Args:
            x, t, context: As for :meth:`log_prob`.
            edges: For densities with a lattice: whether the first and last bin reach to infinity where the process
                keeps data on the lattice. False gives the density on all reals.

        For sequences it may name a further keyword, ``lengths=None``: as for :meth:`log_prob`, the padding a number.
        """

    def event_shape_for(self, x: Tensor) -> tuple[int, ...]:
        """The event shape that is expected of a batch: always ``event_shape``, unless a subclass takes others too.

        Override it if the marginal distribution of part of an event comes for free, like that of the first positions in
        a causal model; ``forward`` then takes such ``x``. For anything that does not fit, return ``event_shape``, which
        the error then names.
        """
        return self.event_shape

    def observed(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        """Which values of ``x`` the log-density covers, bool of its shape; None, as here, if all.

        Override it in densities of rows with gaps: formulas that use the number of values then count only these.
        """
        return None

    def forward_score(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, *, create_graph: bool = False
    ) -> Tensor:
        """Gradient of the density's call without edges in ``x``; override where a closed form exists.

        With ``create_graph`` it runs eagerly: what is compiled can be differentiated only once.
        """
        return self._gradient(x, t, context, create_graph=create_graph)

    def _gradient(self, x: Tensor, t: Tensor, context: Tensor | None, *, create_graph: bool, **more: Tensor) -> Tensor:
        if create_graph:
            self.check_twice_differentiable()
        return gradient(self, x, t, context, create_graph=create_graph, **more)[1]

    def check_twice_differentiable(self) -> None:
        """Raise :class:`~ncml.errors.UnsupportedError` where the graph of a score would lead to wrong gradients."""
        if not self.twice_differentiable:
            raise UnsupportedError(
                f"create_graph: got True for a {type(self).__name__}, which is differentiable only once; expected one "
                f"that is so twice; of zuko's flows take MAF or NSF"
            )

    def hidden_settings(self) -> dict[str, Any]:
        """Settings (JSON data) that names and shapes of the weights do not show, such as the number of attention heads.

        Checkpoints keep them, and weights are refused under other settings, where they would be another function.
        """
        return {}

    # The public edge.

    def log_prob(
        self,
        x: Tensor,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        check_finite: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Log-likelihood of ``x`` at time ``t`` in nats per example.

        Evaluates: dropout is off, and the training flags are restored. To train, call the density itself.

        Args:
            x: Batch of shape ``(B, *event_shape)``, floating, in data units. Half precision is
                computed in float32.
            t: A number, a 0-d tensor or ``(B,)``, ``0 <= t <= T``. The default is the data itself.
            context: Conditioning with one row per example, or None.
            check_finite: Refuse NaN or infinity in ``x`` (costs one reduction).
            lengths: For densities over sequences, whose ``forward`` takes them: the number of positions of each row
                that count, ``(B,)`` integers. What lies beyond them, whatever its value, is not part of the event.

        Returns:
            Tensor ``(B,)``, differentiable. ``-inf`` where the density is zero.

        Raises:
            ArgumentError: Shape, device or values do not fit; ``x`` is off the lattice at a time where
                the process keeps data on it.
            ArgumentTypeError: ``x`` is not floating, or not of the density's dtype.
            NonFiniteError: The result is NaN or ``+inf``.
            UnsupportedError: Lengths for a density whose events have one size.
        """
        x, more = padded(self, x, lengths)
        x, t, context = check_arguments(self, x, t, context, finite=check_finite)
        check_on_lattice(self, x, t, context)
        return self._evaluated(x, t, context, edges=True, **more)

    def log_density(
        self,
        x: Tensor,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        check_finite: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Log-density without lattice edges: finite and smooth for any real ``x`` at any ``t``.

        Equal to :meth:`log_prob` for continuous models. Arguments, result and errors as there.
        """
        x, more = padded(self, x, lengths)
        x, t, context = check_arguments(self, x, t, context, finite=check_finite)
        return self._evaluated(x, t, context, edges=False, **more)

    def _evaluated(self, x: Tensor, t: Tensor, context: Tensor | None, *, edges: bool, **more: Tensor) -> Tensor:
        """The call in eval mode, outside inference mode. An empty batch never reaches the model."""
        if not len(x):
            return x.flatten(1).sum(1)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                given = None if context is None else usable(context)
                return self._evaluated(usable(x), usable(t), given, edges=edges, **more)
        with eval_mode(self):
            return check_log_density(self(x, t, context, edges=edges, **more), x, t, type(self).__name__)

    def score(
        self,
        x: Tensor,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        create_graph: bool = False,
        check_finite: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        r"""The score :math:`\nabla_x \log p_t(x)`, gradient of :meth:`log_density`.

        Works under callers' ``no_grad`` and ``inference_mode``; runs in eval mode and restores the
        training flags; leaves no gradient on parameters.

        Args:
            x, t, context, check_finite, lengths: As for :meth:`log_prob`; positions that do not count have score 0.
            create_graph: Keep the graph, so that the score can be differentiated again.

        Returns:
            Tensor with the shape of ``x`` in nats per data unit, detached unless ``create_graph``.

        Raises:
            InferenceTensorError: The parameters were created under ``torch.inference_mode``.
            NonFiniteError: The score is NaN or infinite.
        """
        x, more = padded(self, x, lengths)
        x, t, context = check_arguments(self, x, t, context, finite=check_finite)
        if not len(x):
            return 0.0 * x if create_graph else torch.zeros_like(x)
        with evaluating(self):
            x, t, context = usable(x), usable(t), None if context is None else usable(context)
            if not more or "lengths" in inspect.signature(self.forward_score).parameters:
                score = self.forward_score(x, t, context, create_graph=create_graph, **more)
            else:  # a forward_score without lengths, such as the one above
                score = self._gradient(x, t, context, create_graph=create_graph, **more)
        check_score(score, t)
        return score if create_graph else score.detach()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating parameter or buffer, or torch's default."""
        own = self.own_tensor()
        return own.dtype if own is not None else torch.get_default_dtype()

    @property
    def device(self) -> torch.device:
        """Device of the first floating parameter or buffer, or the CPU."""
        own = self.own_tensor()
        return own.device if own is not None else torch.device("cpu")

    def own_tensor(self) -> Tensor | None:
        """The first floating parameter or buffer, or None."""
        for tensors in (self.parameters(), self.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point():
                    return tensor
        return None

    @property
    def max_time(self) -> float:
        """Largest time that the density accepts: its process's T, or infinity."""
        return self.process.T if self.process is not None else float("inf")

    def under(self, process: NoiseProcess) -> NoiseConditionalDensity:
        """This density, read under another Gaussian process; same parameters, no copy.

        Defined in :mod:`ncml.density.under`, which has the formula.

        Args:
            process: The other process. Its noise-to-signal ratio sigma / alpha may nowhere exceed the largest one of
                the density's own process.

        Raises:
            UnsupportedError: One of the two processes is not Gaussian, or is noisy at t = 0.
            ArgumentError: The other process has more noise at its T than this density knows.
        """
        from ncml.density.under import under_process

        return under_process(self, process)


class SampleableDensity(NoiseConditionalDensity):
    """A density that can draw samples.

    A subclass's ``sample`` is called in eval mode, without gradients and with autocast off, with checked arguments,
    times of shape ``(n,)`` and at least one sample to draw; what it returns is checked.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for name, checked in (("sample", checked_sample), ("resample", checked_resample)):
            method = vars(cls).get(name)
            if inspect.isfunction(method) and not getattr(method, "__isabstractmethod__", False):
                setattr(cls, name, checked(method))

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

        Raises:
            NonFiniteError: A sample is NaN or infinite.
            UnsupportedError: This density cannot sample after all.
        """


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
