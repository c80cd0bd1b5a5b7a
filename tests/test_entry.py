"""One way into the model: its call. Compilers, hooks and wrappers take part in all that evaluates it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from ncml import VPSDE, Lattice, NCMLObjective, generate
from ncml.densities import MADE
from ncml.density import Target
from ncml.evaluation import bits_per_dim, delta_log_p, level_noise_table, ood_statistics, robustness_curve
from ncml.sampling import (
    AdaptiveHeun,
    AnnealedLangevin,
    DPMSolver2M,
    EulerMaruyama,
    HeunODE,
    MetropolisLangevin,
    Tweedie,
)
from ncml.score import exact_divergence, hutchinson_divergence, log_density_and_score, sliced_score_matching
from tests.problems import Wrapper, same_bits, seeded

F64 = torch.float64
LATTICE = Lattice(5)
PROCESS = VPSDE.at_noise(0.8 * LATTICE.width)
N = 4


def network(dtype=F64) -> MADE:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        density = MADE((3,), PROCESS, lattice=LATTICE, hidden=(8,), components=2, dropout=0.5).to(dtype)
        for p in density.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return density.train()


def points(dtype=F64) -> torch.Tensor:
    return LATTICE.to_unit(torch.randint(0, 5, (N, 3), generator=seeded(0)), dtype=dtype)


T = 0.5 * PROCESS.T

CALLS = {
    "call": lambda d, x: d(x, torch.full((N,), T, dtype=x.dtype)),
    "log_density_and_score": lambda d, x: log_density_and_score(d, x, T),
    "euler": lambda d, x: EulerMaruyama(steps=3)(d, x, generator=seeded(1)),
    "euler-lattice-points": lambda d, x: EulerMaruyama(steps=2)(d, x, T, 0.5 * T, generator=seeded(1)),
    "heun": lambda d, x: HeunODE(steps=3)(d, x),
    "langevin": lambda d, x: AnnealedLangevin(steps=2, moves=2)(d, x, generator=seeded(1)),
    "metropolis": lambda d, x: MetropolisLangevin(steps=2, moves=2)(d, x, generator=seeded(1)),
    "dpm": lambda d, x: DPMSolver2M(steps=3)(d, x),
    "tweedie": lambda d, x: Tweedie()(d, x),
    "adaptive": lambda d, x: AdaptiveHeun(rtol=1e3, atol=1e3, first_step=2.0)(d, x),
    "generate": lambda d, x: generate(d, N, sampler=EulerMaruyama(steps=2), generator=seeded(1)),
    "target": lambda d, x: on_a_target(Target(d), x),
    "bits_per_dim": lambda d, x: bits_per_dim(d, x, batch_size=2),
    "ood_statistics": lambda d, x: ood_statistics(d, x, batch_size=2),
    "level_noise_table": lambda d, x: level_noise_table(d, x, generator=seeded(1)),
    "delta_log_p": lambda d, x: delta_log_p(d, x, 0.5, T, generator=seeded(1)),
    "robustness_curve": lambda d, x: robustness_curve(d, x, [0.0, T], generator=seeded(1)),
    "objective": lambda d, x: NCMLObjective(PROCESS)(d, x, generator=seeded(1)),
}
"""What calls a density, or a wrapper of one, which is then what is called."""

METHODS = {
    "log_prob": lambda d, x: d.log_prob(x),
    "log_density": lambda d, x: d.log_density(x + 0.1, T),
    "score": lambda d, x: d.score(x, T),
}
"""Methods of a density itself."""

CALLED = {
    **dict.fromkeys(("call", "log_density_and_score", "tweedie", "objective", *METHODS), 1),
    "euler": 4,  # and Tweedie's step from 0.3 level
    "euler-lattice-points": 2,
    "heun": 7,
    "langevin": 5,
    "metropolis": 7,  # one more at each level
    "dpm": 4,
    "adaptive": 3,
    "generate": 3,
    "target": 4,
    "bits_per_dim": 2,
    "ood_statistics": 4,
    "level_noise_table": 3,
    "delta_log_p": 2,
    "robustness_curve": 6,
}
"""How many times each of them calls the density."""


def on_a_target(target: Target, x: torch.Tensor) -> None:
    target, x = target.bound(x, T)
    with target.evaluating():
        target.score(x, T), target.log_prob(x, 0.0), target.log_density(x, T), target.log_density_and_score(x, T)


class Counting:
    """A backend of ``torch.compile`` that counts how often what it compiled runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        def run(*args: object) -> object:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()


# Hooks.


@pytest.mark.parametrize("name", CALLED)
def test_every_evaluation_is_a_call_that_hooks_see(name):
    density, seen = network(), []
    density.register_forward_hook(lambda module, args, output: seen.append(module.training))
    {**CALLS, **METHODS}[name](density, points())
    assert len(seen) == CALLED[name]
    assert set(seen) == {name in ("call", "objective")}  # all else in eval mode
    assert density.training


@pytest.mark.parametrize("name", CALLED)
def test_a_forward_pre_hook_may_change_what_is_evaluated(name):
    """Power: a call of ``forward`` itself would not see the hook."""
    density = network()
    density.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(KeyError("hooked")))
    with pytest.raises(KeyError, match="hooked"):
        {**CALLS, **METHODS}[name](density, points())
    assert all(m.training for m in density.modules())


# Compilation.


@pytest.mark.parametrize("name", CALLED)
def test_a_density_compiled_in_place_runs_the_compiled_graph(name, backend):
    density, plain, x = network(), network(), points()
    density.compile(backend=backend, fullgraph=True, dynamic=False)
    if name in ("call", "objective"):  # dropout draws
        density.eval(), plain.eval()
    call = {**CALLS, **METHODS}[name]
    result = call(density, x)
    assert backend.runs == CALLED[name]
    assert equal(result, call(plain, x))
    call(density, x)
    assert backend.runs == 2 * CALLED[name]


@pytest.mark.parametrize("name", CALLS)
def test_a_compiled_wrapper_is_what_is_called(name, backend):
    density, plain, x = network(), network(), points()
    wrapper = torch.compile(density, backend=backend, fullgraph=True, dynamic=False)
    if name in ("call", "objective"):
        density.eval(), plain.eval()
    result = CALLS[name](wrapper, x)
    assert backend.runs == CALLED[name]
    assert equal(result, CALLS[name](plain, x))
    assert density.training is wrapper.training is (name not in ("call", "objective"))


def equal(a: object, b: object) -> bool:
    """Results of a call, to the last digits of float64."""
    if isinstance(a, torch.Tensor):
        return bool(torch.allclose(a.detach().double(), b.detach().double(), rtol=1e-10, atol=1e-10))
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if hasattr(a, "__dataclass_fields__"):
        return all(equal(getattr(a, key), getattr(b, key)) for key in a.__dataclass_fields__)
    return a == b


def test_a_second_derivative_stays_eager(backend):
    """A compiled graph can be differentiated only once; the same numbers come out of the eager model."""
    density, plain, x = network(), network(), points()
    density.compile(backend=backend)
    score = density.score(x, T, create_graph=True)
    assert backend.runs == 0
    assert same_bits(score.detach(), plain.score(x, T))
    for estimate in (
        lambda d: exact_divergence(d, x, T),
        lambda d: hutchinson_divergence(d, x, T, generator=seeded(2)),
        lambda d: sliced_score_matching(d, x, T, generator=seeded(2)).detach(),
    ):
        assert equal(estimate(density), estimate(plain))
    assert backend.runs == 0
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: density.score(x, T, create_graph=True), (leaf,))
    density.score(x, T)
    assert backend.runs == 1


def test_compiled_training_takes_the_same_steps(backend):
    losses = []
    for compiled in (False, True):
        density = network().eval()
        if compiled:
            density.compile(backend=backend, fullgraph=True, dynamic=False)
        optimizer = torch.optim.SGD(density.parameters(), 1e-3)
        for step in range(3):
            optimizer.zero_grad()
            loss = NCMLObjective(PROCESS)(density, points(), generator=seeded(step))
            loss.backward()
            optimizer.step()
            EulerMaruyama(steps=1)(density, points(), generator=seeded(step))
            losses.append(loss.detach())
    assert equal(losses[:3], losses[3:])
    assert backend.runs == 3 * (1 + 2)


# Wrappers in general.


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("depth", [1, 2])
def test_any_wrapper_is_what_is_called(name, depth):
    density, plain, x = network(), network(), points()
    wrapper = Wrapper(density)
    outer = wrapper if depth == 1 else Wrapper(wrapper)
    if name in ("call", "objective"):
        outer.eval(), plain.eval()
    result = CALLS[name](outer, x)
    assert outer.calls == wrapper.calls == CALLED[name]
    assert equal(result, CALLS[name](plain, x))
    assert all(p.grad is None for p in density.parameters())


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("call", "objective")])
def test_wrappers_get_their_own_training_flags_back(name):
    wrapper = Wrapper(network())
    wrapper.module.net.eval()
    flags = [m.training for m in wrapper.modules()]
    CALLS[name](wrapper, points())
    assert [m.training for m in wrapper.modules()] == flags


def test_a_ddp_exchanges_nothing_in_an_evaluation_and_all_after_it(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel, seen = nn.parallel.DistributedDataParallel(network()), []

        def exchanges():
            return parallel.require_backward_grad_sync, parallel.require_forward_param_sync

        parallel.register_forward_hook(lambda module, args, output: seen.append(exchanges()))
        for target in (parallel, Wrapper(parallel)):
            EulerMaruyama(2)(target, points(), generator=seeded(0))
            assert exchanges() == (True, True)
    finally:
        torch.distributed.destroy_process_group()
    assert set(seen) == {(False, False)}


# Two processes.

TWO = textwrap.dedent(
    """
    import os, sys, torch, torch.distributed as dist
    from datetime import timedelta
    from torch.nn.parallel import DistributedDataParallel
    from ncml import NCMLObjective, generate
    from ncml.evaluation import bits_per_dim, ood_statistics, robustness_curve
    from ncml.sampling import EulerMaruyama, MetropolisLangevin
    from ncml.score import log_density_and_score
    from tests.problems import Wrapper, seeded
    from tests.test_entry import PROCESS, T, network, points

    torch.set_num_threads(1)
    store, rank = "file://" + sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))

    def check(wrap):
        density = network()
        density.register_buffer("shared", torch.full((1,), float(rank)))  # DDP copies buffers where it synchronises
        parallel, calls = DistributedDataParallel(density), []
        ddp = wrap(parallel)
        ddp.register_forward_hook(lambda module, args, output: calls.append(1))
        density.shared.fill_(rank)
        objective, optimizer = NCMLObjective(PROCESS), torch.optim.SGD(ddp.parameters(), 1e-2)
        x = points()

        def train(seed):
            optimizer.zero_grad()
            objective(ddp, x, generator=seeded(2 * seed + rank)).backward()
            gradients = torch.cat([p.grad.flatten() for p in density.parameters()])
            optimizer.step()
            return gradients

        def same(tensor, what):
            both = [torch.empty_like(tensor) for _ in range(2)]
            dist.all_gather(both, tensor)
            assert torch.equal(*both), what

        def parameters():
            return torch.cat([p.detach().flatten() for p in density.parameters()])

        def evaluate():
            # Three steps here, five there: 4 and 6 calls with Tweedie's; tables on the first process only.
            before = len(calls)
            for call in (
                lambda: EulerMaruyama(steps=3 + 2 * rank)(ddp, x, generator=seeded(rank)),
                lambda: generate(ddp, 4, sampler=EulerMaruyama(steps=3 + 2 * rank), generator=seeded(rank)),
            ):
                call()
                assert len(calls) - before == 4 + 2 * rank, (rank, len(calls) - before)
                before = len(calls)
            if rank == 0:
                bits_per_dim(ddp, x, batch_size=2)
                ood_statistics(ddp, x)
                robustness_curve(ddp, x, [0.0, T], generator=seeded(0))
                log_density_and_score(ddp, x, T)
                MetropolisLangevin(steps=2, moves=2)(ddp, x, generator=seeded(0))
                assert len(calls) - before == 2 + 2 + 6 + 1 + 7, len(calls) - before
            assert float(density.shared) == rank, "buffers were copied between processes"

        same(train(0), "gradients")
        density.shared.fill_(rank)
        optimizer.zero_grad()
        evaluate()
        assert all(p.grad is None for p in density.parameters()), "an evaluation left gradients"
        assert ddp.training and density.training
        assert parallel.require_backward_grad_sync and parallel.require_forward_param_sync
        same(parameters(), "parameters after an evaluation")
        for step in (1, 2):
            same(train(step), "gradients after an evaluation")
        same(parameters(), "parameters after training")
        assert float(density.shared) == 0.0, "training copies buffers from the first process"
        density.shared.fill_(rank)
        evaluate()
        before = parameters()
        same(train(3), "gradients after another evaluation")
        same(parameters(), "parameters at the end")
        assert not torch.equal(before, parameters())

    for wrap in (lambda parallel: parallel, lambda parallel: torch.compile(parallel, backend="eager"), Wrapper):
        check(wrap)
        print("done", rank, flush=True)
    dist.destroy_process_group()
    os._exit(0)  # past the threads of torch's compiler, whose end now and then aborts the interpreter's
    """
)


def two_processes(code: str, tmp_path) -> list[tuple[int, str, str]]:
    """Status, output and errors of two processes that know each other."""
    (tmp_path / "two.py").write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    commands = [[sys.executable, str(tmp_path / "two.py"), str(tmp_path / "store"), str(rank)] for rank in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    said = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def test_two_processes_may_make_different_numbers_of_evaluations(tmp_path):
    """Of a DDP, or a wrapper of one, which is what is called; and training goes on as before."""
    for status, output, errors in two_processes(TWO, tmp_path):
        assert status == 0, errors[-3000:]
        assert output.count("done") == 3


def test_without_the_mode_of_evaluation_the_processes_would_wait_for_each_other(tmp_path):
    """Power: plain calls of a DDP copy buffers at every call, and one process waits for a call that never comes."""
    plain = TWO.replace("timedelta(seconds=60)", "timedelta(seconds=5)")
    start, end = plain.index("        for call in ("), plain.index("        if rank == 0:")
    zeros = "torch.zeros(4, dtype=torch.float64)"
    loop = f"        for _ in range(4 + 2 * rank):\n            ddp(x, {zeros})\n        return\n"
    done = two_processes(plain[:start] + loop + plain[end:], tmp_path)
    assert any(status != 0 for status, _, _ in done)
