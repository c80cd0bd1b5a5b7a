"""The contract of noise processes, on every Gaussian process: time 0, perturbation, inverse, law."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncml import VESDE, VPSDE, GaussianProcess, Lattice, LinearSDE, LinearVESDE, SubVPSDE
from ncml.errors import ArgumentError, ArgumentTypeError
from tests.problems import LEVEL, LINEAR_SDES, PROCESSES, each_linear_sde, each_process, same_bits, seeded
from tests.statistics import assert_law, assert_mean, assert_variance, normal_cdf

processes = st.sampled_from(list(PROCESSES.values()))
fractions = st.floats(0.0, 1.0)
dtypes = st.sampled_from([torch.float32, torch.float64])
awkward = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, -7.5, 127.5])


@each_process
@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0.0), torch.zeros(3), torch.zeros(3, dtype=torch.float64)])
def test_time_zero_is_the_data(process, zero):
    """alpha(0) == 1 and sigma(0) == 0, exactly."""
    assert (process.alpha(zero) == 1.0).all()
    assert (process.sigma(zero) == 0.0).all()
    assert process.on_lattice(zero).all()
    assert (process.log_snr(zero) == math.inf).all()
    assert (process.time_at(zero) == 0.0).all()


@each_process
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_time_zero_returns_x_bit_for_bit(process, dtype):
    """Also the sign of zero, and whatever the noise is."""
    x = torch.nan_to_num(awkward.to(dtype)).reshape(4, 2)  # the largest number of float16 is 65504
    assert same_bits(process.perturb(x, 0.0, generator=seeded(0)), x)
    assert same_bits(process.perturb(x, 0.0, noise=torch.full_like(x, math.inf)), x)
    t = torch.tensor([0.0, process.T, 0.0, process.T])
    x_t = process.perturb(x, t, generator=seeded(0))
    assert same_bits(x_t[::2], x[::2])
    assert (x_t[1::2] != x[1::2]).any(1).all()


@given(process=processes, a=fractions, b=fractions)
def test_noise_grows_and_signal_does_not(process, a, b):
    s, t = sorted((a * process.T, b * process.T))
    assert float(process.sigma(s)) <= float(process.sigma(t))
    assert float(process.alpha(s)) >= float(process.alpha(t)) > 0.0
    if t > 1e-300:  # smaller times underflow
        assert float(process.sigma(t)) > 0.0
        assert not process.on_lattice(t)
        assert float(process.log_snr(t)) == pytest.approx(2 * math.log(process.alpha(t) / process.sigma(t)), rel=1e-12)


@given(process=processes, fraction=fractions, dtype=dtypes, rows=st.integers(1, 4))
def test_all_forms_of_time_give_the_same_bits(process, fraction, dtype, rows):
    t = fraction * process.T
    x, z = (torch.randn(rows, 3, generator=seeded(i), dtype=dtype) for i in (0, 1))
    results = [
        process.perturb(x, form, noise=z)
        for form in (t, torch.tensor(t, dtype=dtype), torch.full((rows,), t, dtype=dtype))
    ]
    assert all(same_bits(r, results[0]) for r in results)
    assert results[0].dtype == dtype


@given(process=processes, fraction=fractions, shape=st.sampled_from([(), (5,), (1, 2, 3)]))
def test_perturb_scales_and_adds(process, fraction, shape):
    t = fraction * process.T
    x, z = (torch.randn(3, *shape, generator=seeded(i), dtype=torch.float64) for i in (2, 3))
    expected = float(process.alpha(t)) * x + float(process.sigma(t)) * z
    assert torch.allclose(process.perturb(x, t, noise=z), expected, rtol=1e-14, atol=1e-15)


@given(process=processes, seed=st.integers(0, 2**31), dtype=dtypes)
def test_rows_do_not_interact(process, seed, dtype):
    """Every row has its own time; a batch is its rows."""
    g = seeded(seed)
    x, z, t = torch.randn(4, 2, generator=g, dtype=dtype), torch.randn(4, 2, generator=g, dtype=dtype), None
    t = torch.rand(4, generator=g, dtype=dtype) * process.T
    whole = process.perturb(x, t, noise=z)
    rows = [process.perturb(x[i : i + 1], t[i : i + 1], noise=z[i : i + 1]) for i in range(4)]
    assert same_bits(whole, torch.cat(rows))


@each_process
def test_given_noise_is_the_drawn_noise(process):
    x = torch.randn(5, 3, generator=seeded(0))
    drawn = process.draw_noise(x, generator=seeded(7))
    assert drawn.shape == x.shape
    assert same_bits(process.perturb(x, process.T, generator=seeded(7)), process.perturb(x, process.T, noise=drawn))
    other = process.perturb(x, process.T, generator=seeded(8))
    assert not torch.equal(other, process.perturb(x, process.T, noise=drawn))


@each_process
def test_inputs_are_left_alone(process):
    """Never written to; views equal their contiguous copies."""
    base, z = torch.randn(3, 4, generator=seeded(0)), torch.randn(4, 3, generator=seeded(1))
    x, before = base.t(), base.clone()
    assert same_bits(process.perturb(x, process.T, noise=z), process.perturb(x.contiguous(), process.T, noise=z))
    one = torch.ones(1, 3)
    assert same_bits(
        process.perturb(one.expand(4, 3), process.T, noise=z), process.perturb(torch.ones(4, 3), process.T, noise=z)
    )
    assert same_bits(base, before)
    assert process.perturb(torch.zeros(0, 3), process.T).shape == (0, 3)


@each_process
def test_gradient_in_x_is_alpha(process):
    x = torch.randn(4, 2, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64) * process.T
    (gradient,) = torch.autograd.grad(process.perturb(x, t, generator=seeded(1)).sum(), x)
    assert torch.allclose(gradient, process.alpha(t)[:, None].expand(4, 2), rtol=1e-15, atol=0)


@given(process=processes, fraction=fractions)
def test_time_at_inverts_sigma(process, fraction):
    """The round trip from a noise level is exact to 1e-13 levels."""
    std = fraction * float(process.sigma(process.T))
    t = float(process.time_at(std))
    assert 0.0 <= t <= process.T
    assert abs(float(process.sigma(t)) - std) < 1e-13 * LEVEL


def test_time_at_where_sigma_has_saturated():
    """A schedule so long that sigma(T) rounds to 1: the time of that noise is T."""
    for process in (VPSDE(beta_max=100.0), SubVPSDE(beta_max=100.0)):
        assert float(process.sigma(process.T)) == 1.0
        assert process.time_at(torch.tensor([0.0, 1.0])).tolist() == [0.0, process.T]


@each_process
def test_time_at_takes_tensors(process):
    top = float(process.sigma(process.T))
    std = torch.linspace(0.0, top, 7)
    t = process.time_at(std)
    assert t.dtype == torch.float32
    assert torch.allclose(process.sigma(t), std, rtol=2e-6, atol=0)
    assert float(process.time_at(top)) == pytest.approx(process.T, rel=1e-14)
    for bad in (-1e-9, 1.001 * top, math.nan):
        with pytest.raises(ArgumentError, match=r"^sigma: got"):
            process.time_at(bad)


@each_process
def test_law_of_the_noise(process):
    """x_t given x_0 is N(alpha x_0, sigma^2); statistical, false alarm 3e-9 per process."""
    n, t = 20_000, 0.7 * process.T
    x_t = process.perturb(torch.full((n, 1), 0.8, dtype=torch.float64), t, generator=seeded(11))
    mean, std = 0.8 * float(process.alpha(t)), float(process.sigma(t))
    assert_mean(x_t, mean, std)
    assert_variance(x_t, mean, std**2)
    assert_law(x_t, normal_cdf(mean, std))


@each_process
def test_times_outside_the_range(process):
    x = torch.zeros(2, 1)
    for bad in (-1e-9, 1.0001 * process.T, math.nan, torch.tensor([0.0, 2 * process.T])):
        with pytest.raises(ArgumentError, match=r"^t: got"):
            process.perturb(x, bad)


@each_process
def test_rounding_of_the_largest_time_is_forgiven(process):
    """T in float32 may lie a rounding error above T; it counts as T."""
    x, z = torch.zeros(1, 1), torch.ones(1, 1)
    t = torch.nextafter(torch.tensor(process.T), torch.tensor(math.inf))
    assert float(t) > process.T
    assert same_bits(process.perturb(x, t, noise=z), process.perturb(x, process.T, noise=z))
    x, z = x.double(), z.double()
    assert same_bits(process.perturb(x, t, noise=z), process.perturb(x, process.T, noise=z))
    assert same_bits(process.perturb(x, t.double(), noise=z), process.perturb(x, process.T, noise=z))
    with pytest.raises(ArgumentError, match=r"^t: got"):
        process.perturb(x, (1.0 + 1e-6) * t.double(), noise=z)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.zeros(1), ArgumentError, r"got shape \(1,\); expected a scalar or \(2,\)"),
        (torch.zeros(2, 1), ArgumentError, r"got shape \(2, 1\)"),
        (torch.zeros(2, dtype=torch.float16), ArgumentTypeError, "3 digits"),
        (torch.zeros(2, dtype=torch.bool), ArgumentTypeError, "got dtype torch.bool"),
        (True, ArgumentTypeError, "got bool"),
        ("0", ArgumentTypeError, "got str"),
    ],
)
def test_bad_times(t, error, message):
    with pytest.raises(error, match=message):
        VPSDE().perturb(torch.zeros(2, 1), t)


def test_bad_data_and_noise():
    process, x = VPSDE(), torch.zeros(2, 3)
    with pytest.raises(ArgumentTypeError, match=r"got dtype torch.uint8.*to_unit"):
        process.perturb(torch.zeros(2, 3, dtype=torch.uint8), 0.5)
    with pytest.raises(ArgumentError, match=r"^noise: got"):
        process.perturb(x, 0.5, noise=torch.zeros(3))
    with pytest.raises(ArgumentTypeError, match=r"^noise: got"):
        process.perturb(x, 0.5, noise=torch.zeros(2, 3, dtype=torch.float64))


def test_integer_times_are_times():
    x, z = torch.zeros(2, 1), torch.ones(2, 1)
    assert same_bits(
        VPSDE().perturb(x, torch.tensor([0, 1]), noise=z), VPSDE().perturb(x, torch.tensor([0.0, 1.0]), noise=z)
    )


def test_processes_are_compared_by_value():
    for name, process in PROCESSES.items():
        for other, another in PROCESSES.items():
            assert (process == another) == (name == other)
            assert name != other or hash(process) == hash(another)
    assert VPSDE(T=0.1) == VPSDE(T=0.1) != VPSDE(T=0.2)
    assert VESDE() != VESDE(song=True)
    assert GaussianProcess(torch.cos, torch.sin, T=0.1) == PROCESSES["cosine"]
    assert GaussianProcess(torch.cos, torch.sin, T=0.2) != PROCESSES["cosine"]


@pytest.mark.parametrize("process", LINEAR_SDES.values(), ids=LINEAR_SDES.keys())
def test_linear_processes_are_immutable_values(process):
    assert pickle.loads(pickle.dumps(process)) == process
    with pytest.raises(AttributeError):
        process.T = 1.0


def test_processes_of_two_functions_are_immutable_values():
    process = pickle.loads(pickle.dumps(PROCESSES["cosine"]))
    assert process == PROCESSES["cosine"]
    assert repr(process) == "GaussianProcess(alpha=cos, sigma=sin, T=0.1)"
    for change in (lambda: setattr(process, "T", 0.2), lambda: delattr(process, "T")):
        with pytest.raises(AttributeError, match="processes are immutable"):
            change()
    assert process.T == 0.1


def test_subclasses_of_the_process_of_two_functions_may_have_settings():
    class Cosine(GaussianProcess):
        def __init__(self, rate):
            super().__init__(lambda t: torch.cos(rate * t), lambda t: torch.sin(rate * t), T=0.1)
            self.rate = rate

    process = Cosine(2.0)
    assert repr(process) == "Cosine(alpha=<lambda>, sigma=<lambda>, T=0.1, rate=2.0)"
    with pytest.raises(AttributeError, match=r"^rate: got"):
        process.rate = 3.0


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE, VESDE, LinearVESDE])
@pytest.mark.parametrize("T", [0.0, -1.0, math.inf, math.nan, True])
def test_bad_largest_times(kind, T):
    with pytest.raises(ArgumentError, match=r"^T: got"):
        kind(T=T)


def test_a_process_starts_at_the_data():
    with pytest.raises(ArgumentError, match="time 0 is the data itself"):
        GaussianProcess(torch.cos, lambda t: 0.01 + t)
    with pytest.raises(ArgumentError, match="time 0 is the data itself"):
        GaussianProcess(lambda t: 0.9 - t, torch.sin)


def test_a_subclass_without_the_decorator_is_told_so():
    class Undecorated(LinearSDE):
        T: float = 1.0
        alpha = sigma = drift_coefficient = diffusion = lambda self, t: t

    with pytest.raises(ArgumentTypeError, match="decorate it with @dataclass"):
        Undecorated()


@each_linear_sde
def test_the_generic_kernel_equals_the_closed_form(process):
    """LinearSDE derives the kernel from alpha and sigma; the closed forms only avoid cancellation."""
    s, t = 0.3 * process.T, 0.8 * process.T
    for ours, generic in zip(process.transition(s, t), LinearSDE.transition(process, s, t), strict=True):
        assert float(ours) == pytest.approx(float(generic), rel=1e-12)


@each_process
def test_lattice_data_leave_the_lattice_only_with_noise(process):
    lattice = Lattice(17)
    x = lattice.points()[:, None]
    t = torch.tensor([0.0, 1e-30, 1e-3 * process.T])
    assert process.on_lattice(t).tolist()[0] is True
    assert process.on_lattice(t).tolist()[2] is False
    assert lattice.on_lattice(process.perturb(x, 0.0)).all()
    assert not lattice.on_lattice(process.perturb(x, process.T, generator=seeded(0))).all()


@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [(lambda t: 1 - t, lambda t: t), (lambda t: 1 - 2 * t, lambda t: t), (lambda t: 1 + 0 * t, lambda t: t / (1 - t))],
    ids=["no data left", "sign turned", "endless noise"],
)
def test_a_process_must_end_where_samplers_can_start(alpha, sigma):
    """Tweedie's formula divides by alpha(T): straight paths of flow matching need T < 1."""
    with pytest.raises(ArgumentError, match=r"^T: got"):
        GaussianProcess(alpha, sigma)
    assert float(GaussianProcess(alpha, sigma, T=0.4).alpha(0.4)) > 0
