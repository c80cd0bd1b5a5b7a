"""Any function of (x, t) that returns log-densities, as a noise conditional density."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ncml.checks import Time, kind_of
from ncml.densities.adapters.drawing import library_draws
from ncml.densities.adapters.functions import modules_used, reached
from ncml.density import SampleableDensity
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.nn.conditioning import Conditioning
from ncml.noise import GaussianProcess, Lattice, NoiseProcess

__all__ = ["CallableDensity"]

Function = Callable[..., Tensor]


class CallableDensity(SampleableDensity):
    """Wraps ``module(x, t)``, or ``module(x, t, context)`` where a context is given.

    With ``features``, the functions get features of the noise level in place of the time: ``module(x, c)``,
    ``score(x, c)`` and ``sample(n, c, generator)``, where ``c`` of shape ``(B, C)`` is what
    :class:`ncml.nn.Conditioning` makes of the time and the context. Most conditional models of other libraries take
    just that.

    Modules contribute their parameters, and run in eval mode where a density does. They are found if a function holds
    them: a method's object, a closure, ``functools.partial``, a global variable. The first call that can train looks at
    what autograd recorded, and refuses a function of parameters that were not found.

    Args:
        module: Returns log-densities in nats, ``(B,)``, for ``x`` of shape ``(B, *event_shape)`` and
            ``t`` of shape ``(B,)``; with a ``lattice`` the likelihood, which is the mass of a bin over its
            width where the process keeps data on the lattice.
        event_shape: Shape of one example.
        process: The process that the module's noise conditioning refers to, if any.
        features: Number of noise features to give in place of t, at least 2; 0 to give t itself. Needs a process.
        context_features: With ``features``, width of a floating context, which comes after the noise features.
        classes: With ``features``, number of classes of an integer context, which is embedded; -1 is "no label".
        score: The score, shape of ``x``, for densities that autograd cannot differentiate (numpy, scipy,
            scikit-learn, JAX). Their functions get ``x`` without a graph.
        modules: The modules that the functions use, if they cannot be found, or if not all of those found are meant.
        sample: ``sample(n, t, context, generator)`` draws ``n`` examples at times ``t`` of shape ``(n,)``, from
            ``generator`` or from torch's global state, which is set from it; meanwhile torch's default dtype is the
            density's. Without it the density cannot sample.
        lattice: The lattice of the data, if ``module`` gives exact masses on it; needs a process.
        density: As ``module``, without lattice edges: what scores and samplers differentiate (see
            :mod:`ncml.density`). ``module`` itself if None; required with a lattice.

    Raises:
        ArgumentTypeError: Something given is not callable, or not with these arguments, or is a class in place of an
            instance.
        ArgumentError: A lattice without ``density``; a context without ``features``; modules that cannot be told
            apart. At a call: a result of the wrong shape, parameters that were not found, or, under a Gaussian process,
            values that do not depend on ``x``, which are masses of categories, not densities.
        UnsupportedError: The density was built without ``sample`` or ``score``, and needs it; a copy of a density whose
            functions would go on using the modules of the original.

    Example:
        >>> def log_p(x, t):
        ...     return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)
        >>> CallableDensity(log_p, event_shape=(3,)).log_prob(torch.zeros(1, 3))
        tensor([-2.7568])
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.moments = torch.nn.Linear(8, 6)
        ...     def normal(self, c):
        ...         mean, log_std = self.moments(c).chunk(2, dim=1)
        ...         return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
        >>> net = Net()
        >>> density = CallableDensity(
        ...     lambda x, c: net.normal(c).log_prob(x), (3,), VPSDE.at_noise(0.5), features=8,
        ...     sample=lambda n, c, generator: net.normal(c).sample(),
        ... )
        >>> density.sample(2, t=0.01).shape, len(list(density.parameters()))
        (torch.Size([2, 3]), 2)
    """

    def __init__(
        self,
        module: Function | nn.Module,
        event_shape: Sequence[int],
        process: NoiseProcess | None = None,
        *,
        features: int = 0,
        context_features: int = 0,
        classes: int = 0,
        score: Function | nn.Module | None = None,
        modules: Iterable[nn.Module] | None = None,
        sample: Callable[..., Tensor] | None = None,
        lattice: Lattice | None = None,
        density: Function | nn.Module | None = None,
    ) -> None:
        super().__init__(event_shape, process, lattice)
        given = ("x, c",) if features else ("x, t", "x, t, context")
        drawn = ("n, c, generator",) if features else ("n, t, context, generator",)
        _check_callable("module", module, given)
        for name, function, of in (("score", score, given), ("sample", sample, drawn), ("density", density, given)):
            if function is not None:
                _check_callable(name, function, of)
        if lattice is not None and density is None:
            raise ArgumentError(
                "density: got None with a lattice; expected the log-density without lattice edges, a callable of (x, t)"
            )
        if (context_features or classes) and not features:
            raise ArgumentError(
                "context_features, classes: got one without features; expected features=8, which they are appended "
                "to; a module of (x, t, context) takes any context as it is"
            )
        if features and process is None:
            raise ArgumentTypeError("process: got None with features; expected a NoiseProcess, which gives t a meaning")
        self.module = module
        self._density, self._score, self._sample = density, score, sample
        self.differentiable = score is None
        functions = [f for f in (module, density, score, sample) if f is not None]
        found, self._copied, names = modules_used(functions)
        if modules is None and names:
            raise ArgumentError(
                f"modules: got a function that mentions several global modules ({', '.join(names)}); expected to be "
                f"told which of them it uses: modules=[...]"
            )
        used = found if modules is None else list(modules)
        for part in used:
            if not isinstance(part, nn.Module):
                raise ArgumentTypeError(f"modules: got a {type(part).__name__}; expected instances of nn.Module")
        self._copied &= all(part in found for part in used)
        own = {part for f in functions if isinstance(f, nn.Module) for part in f.modules()}
        self.held = nn.ModuleList(part for part in used if part not in own)
        self.conditioning = Conditioning(process, features, context_features, classes) if features and process else None
        self._looked = self._moves = False

    def hidden_settings(self) -> dict[str, Any]:
        return {"features": 0 if self.conditioning is None else self.conditioning.noise.features}

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        function = self.module if edges or self._density is None else self._density
        given = self._given(x, t, context)
        looking = not self._moves and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if self._score is not None:
            x = x.detach()
        elif looking and not x.requires_grad and any(p.requires_grad for p in self.parameters()):
            x = x.detach().requires_grad_()
        log_p = _checked(function(x, *given), x)
        if looking:
            self._look(log_p, x, t, context)
        return log_p

    def forward_score(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, *, create_graph: bool = False
    ) -> Tensor:
        if self._score is None:
            try:
                return super().forward_score(x, t, context, create_graph=create_graph)
            except RuntimeError as error:
                if "numpy()" not in str(error):
                    raise
                raise UnsupportedError(
                    "score: got a module that turns x into a numpy array, which autograd cannot follow; expected the "
                    "score itself, CallableDensity(..., score=)"
                ) from error
        with torch.set_grad_enabled(create_graph):
            score = self._score(x if create_graph else x.detach(), *self._given(x, t, context))
        if not isinstance(score, Tensor) or score.shape != x.shape:
            raise ArgumentError(f"score: got {_shape_of(score)}; expected a tensor of the shape of x, {tuple(x.shape)}")
        if create_graph and not score.requires_grad:
            raise UnsupportedError(
                "create_graph: got True for a score that is given as a function without a graph; expected one that "
                "autograd can follow"
            )
        return score

    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples with the given function (see :meth:`ncml.SampleableDensity.sample`).

        Raises:
            UnsupportedError: The density was built without ``sample``.
            ArgumentError: The function returned the wrong shape.
        """
        if self._sample is None:
            raise UnsupportedError(
                "density: got a CallableDensity without sample, which cannot sample; expected one built with "
                "CallableDensity(..., sample=...); or refine samples of your own with sampler(density, x)"
            )
        with library_draws(generator, self.dtype, self.device):
            if self.conditioning is None:
                return self._sample(n, t, context, generator)
            return self._sample(n, self.conditioning(t, context).to(self.dtype), generator)

    def __deepcopy__(self, memo: dict[int, Any]) -> CallableDensity:
        if not self._copied:
            raise UnsupportedError(
                "copy: got a CallableDensity of a function that holds modules, which its copy would share with the "
                "original; expected module= to be an nn.Module, or a method of one"
            )
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def _given(self, x: Tensor, t: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        if self.conditioning is not None:
            return (self.conditioning(t, context).to(x.dtype),)
        return (t,) if context is None else (t, context)

    def _look(self, log_p: Tensor, x: Tensor, t: Tensor, context: Tensor | None) -> None:
        """Refuse what autograd shows to be wrong: parameters that are not the density's, values that do not need x."""
        if self._looked and not bool((t > 0).any()):
            return
        leaves, (moves, *_) = reached(log_p, (x, t, context))
        own = {id(p) for p in self.parameters()}
        if strangers := [tuple(leaf.shape) for leaf in leaves if id(leaf) not in own]:
            raise ArgumentError(
                f"modules: got a function of {len(strangers)} trainable tensors that the density does not have (the "
                f"first of shape {strangers[0]}): they would be neither trained, nor saved; expected modules=[...] "
                f"with all that it uses, or a module with a forward of (x, t)"
            )
        continuous = self.lattice is None and self._score is None and isinstance(self.process, GaussianProcess)
        if continuous and log_p.requires_grad and not moves and bool((t > 0).any()):
            raise ArgumentError(
                f"module: got log-densities that do not depend on x under {self.process}, where x is real; expected a "
                f"density of x. A model of categories gives masses: train it under LevelNoise, which keeps data on the "
                f"lattice, with lattice= and density=, or give it a head with a density"
            )
        self._looked, self._moves = True, moves or not (continuous and log_p.requires_grad)


def _check_callable(name: str, function: object, calls: tuple[str, ...]) -> None:
    """Refuse what cannot be called with the arguments of any of the calls, as far as its signature says."""
    if isinstance(function, type) or not callable(function):
        remedy = "; give an instance of the class" if isinstance(function, type) else ""
        raise ArgumentTypeError(f"{name}: got {kind_of(function)}; expected a callable of ({calls[0]}){remedy}")
    called: Callable[..., Any] = function
    if isinstance(function, nn.Module) and type(function).__call__ is nn.Module.__call__:
        called = function.forward
    try:
        signature = inspect.signature(called, follow_wrapped=False)
    except (TypeError, ValueError):  # as of builtins, and of compiled scripts
        return
    if not any(_binds(signature, call.split(", ")) for call in calls):
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        raise ArgumentTypeError(
            f"{name}: got a {type(function).__name__} of {inspect.Signature(bare)}, which cannot be called with "
            f"({calls[0]}); expected a callable of {' or '.join(f'({call})' for call in calls)}; wrap it: "
            f"lambda {calls[0]}: ..."
        )


def _binds(signature: inspect.Signature, arguments: list[str]) -> bool:
    """Whether a call with these positional arguments fits."""
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _checked(log_p: Any, x: Tensor) -> Tensor:  # noqa: ANN401 -- whatever a function of someone else returns
    if not isinstance(log_p, Tensor) or log_p.shape != x.shape[:1]:
        raise ArgumentError(
            f"module: got {_shape_of(log_p)}; expected one tensor of log-densities, ({x.shape[0]},), and nothing else: "
            f"summed over event dimensions, not over the batch"
        )
    return log_p


def _shape_of(result: object) -> str:
    return f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
