"Chapter 01: schedules against closed forms, the interpolant and DDIM against their definitions, times as they enter."
import math
from fractions import Fraction

import pytest
import torch

from imm_edu.flow import OTFM, Cosine, as_times, readable

F64 = torch.float64
FLOWS = (OTFM(), Cosine())
CLOSED = {   # alpha, sigma, eta written down without the code under test
    "OTFM()": (lambda t: 1 - t, lambda t: t, lambda t: t / (1 - t)),
    "Cosine()": (lambda t: math.cos(math.pi*t/2), lambda t: math.sin(math.pi*t/2), lambda t: math.tan(math.pi*t/2)),
}
INSIDE = [.001, .006, .1, .25, .5, .73, .9, .99, .994]
flows = pytest.mark.parametrize("flow", FLOWS, ids=repr)


def T64(v):
    return torch.tensor(v, dtype=F64)


def triples(n=2000, seed=0):
    "Random s <= r <= t, with repeated times and s = 0 among them"
    s, r, t = torch.rand(3, n, dtype=F64, generator=torch.Generator().manual_seed(seed)).sort(0).values
    s, r = s.clone(), r.clone()
    s[:n//10], r[n//10:n//5] = 0., t[n//10:n//5]
    return s, r, t


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# ---- schedules

@flows
@pytest.mark.parametrize("t", INSIDE)
def test_schedule_equals_its_closed_form(flow, t):
    for method, form in zip(("alpha", "sigma", "eta"), CLOSED[repr(flow)]):
        assert getattr(flow, method)(T64(t)).item() == pytest.approx(form(t), rel=1e-9), f"{flow}.{method}({t})"
    assert flow.log_snr(T64(t)).item() == pytest.approx(-2*math.log(CLOSED[repr(flow)][2](t)), rel=1e-9, abs=1e-9)


@flows
def test_ends_are_exact(flow):
    zero, one, inf = T64(0.), T64(1.), T64(math.inf)
    assert (flow.alpha(zero), flow.sigma(zero)) == (1, 0) and (flow.alpha(one), flow.sigma(one)) == (0, 1), "ends"
    assert flow.eta(zero) == 0 and flow.eta(one) == math.inf, "eta runs from 0 to infinity"
    assert flow.eta_inv(zero) == 0 and flow.eta_inv(inf) == 1, "and its inverse back"
    assert flow.log_snr(zero) == math.inf and flow.log_snr(one) == -math.inf, "the log-SNR falls from infinity"


@flows
def test_eta_inv_undoes_eta(flow):
    t = torch.linspace(0, 1, 501, dtype=F64)
    assert torch.allclose(flow.eta_inv(flow.eta(t)), t, rtol=0, atol=1e-12)
    e = torch.logspace(-6, 3, 100, dtype=F64)
    assert torch.allclose(flow.eta(flow.eta_inv(e)), e, rtol=1e-6)


@flows
def test_dlog_snr_is_the_slope_of_log_snr(flow):
    t, h = T64([.01, .1, .3, .5, .7, .9, .99]), 1e-6
    difference = (flow.log_snr(t + h) - flow.log_snr(t - h)) / (2*h)
    assert torch.allclose(flow.dlog_snr(t), difference, rtol=1e-5), "finite differences"
    t.requires_grad_()
    slope, = torch.autograd.grad(flow.log_snr(t).sum(), t)
    assert torch.allclose(flow.dlog_snr(t), slope, rtol=1e-9), "automatic differentiation"


@flows
def test_dot_and_wedge_by_their_definitions(flow):
    alpha, sigma, _ = CLOSED[repr(flow)]
    for s in INSIDE + [0., 1.]:
        for t in INSIDE + [0., 1.]:
            assert flow.dot(T64(s), T64(t)).item() == pytest.approx(alpha(s)*alpha(t) + sigma(s)*sigma(t), abs=1e-12)
            assert flow.wedge(T64(s), T64(t)).item() == pytest.approx(alpha(s)*sigma(t) - sigma(s)*alpha(t), abs=1e-12)


@flows
def test_pythagoras(flow):
    s, _, t = triples()
    both = flow.dot(s, t)**2 + flow.wedge(s, t)**2
    assert torch.allclose(both, flow.dot(s, s)*flow.dot(t, t), rtol=1e-10), "cos² + sin² = 1, times the lengths"


@flows
def test_ratio_is_one_where_both_are_zero(flow):
    assert flow.ratio(T64(0.), T64(0.)) == 1 and flow.ratio(T64(.3), T64(.3)) == 1 and flow.ratio(T64(0.), T64(.5)) == 0
    assert flow.ratio(T64([0., .2]), T64([0., .4])).tolist() == pytest.approx(
        [1, CLOSED[repr(flow)][1](.2) / CLOSED[repr(flow)][1](.4)])


def test_numbers_of_the_paper():
    otfm, cosine = FLOWS
    assert otfm.eta(T64(.994)).item() == pytest.approx(165.6666667, abs=1e-6), "OT-FM's largest eta"
    assert cosine.eta(T64(.996)).item() == pytest.approx(159.15, abs=.01), "the cosine's largest eta"
    assert otfm.eta_inv(T64(1.4)).item() == pytest.approx(.583333, abs=1e-6), "the middle stop, OT-FM"
    assert cosine.eta_inv(T64(1.4)).item() == pytest.approx(.605137, abs=1e-6), "the middle stop, cosine"
    assert (repr(otfm), repr(cosine)) == ("OTFM()", "Cosine()")


@pytest.mark.parametrize("t, k, eps, expected", [
    (.1, 12, 0, .0340), (.3, 12, 0, .0204), (.5, 12, 0, .01032), (.7, 12, 0, .003685), (.9, 12, 0, 4.061e-4),
    (.99, 12, 0, 4.05e-6), (.994, 12, 0, 1.46e-6), (.5, 15, .006, 1.27e-3), (.9, 15, .006, 5.06e-5), (.994, 15, .006, 1.82e-7)])
def test_gap_between_student_and_teacher(t, k, eps, expected):
    flow, exact = OTFM(), lambda v: Fraction(str(v))
    u = (flow.eta(T64(.994)) - flow.eta(T64(float(eps)))) / 2**k
    gap = (T64(t) - flow.eta_inv(flow.eta(T64(t)) - u)).item()
    assert gap == pytest.approx(expected, rel=5e-3, abs=0), "the gaps listed for the paper's settings"
    v, w = exact(t), (exact(.994)/(1 - exact(.994)) - exact(eps)/(1 - exact(eps))) / 2**k
    fraction = w*(1 - v)**2 / (1 - w*(1 - v))                        # the gap simplified on paper, in exact fractions
    assert gap == pytest.approx(float(fraction), rel=1e-6, abs=0), "float64 keeps six digits of the smallest gap"


# ---- interpolate and ddim

@flows
@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 4, 4), ()])
def test_interpolate_and_ddim_with_numbers(flow, shape):
    alpha, sigma, _ = CLOSED[repr(flow)]
    x, eps = noise(*shape), noise(*shape, seed=1)
    at = lambda v: alpha(v)*x + sigma(v)*eps
    x_t = flow.interpolate(x, eps, .8)
    assert torch.allclose(x_t, at(.8), atol=1e-12), "x_t = alpha_t x + sigma_t eps"
    assert torch.allclose(flow.ddim(x_t, x, s=.3, t=.8), at(.3), atol=1e-12), "the pair's own x keeps the noise"
    assert torch.equal(flow.ddim(x_t, eps, s=.8, t=.8), x_t), "a step of length zero stays where it is, to the bit"
    assert torch.allclose(flow.ddim(x_t, eps, s=0, t=.8), eps, atol=1e-12), "DDIM to time 0 returns the guess"
    assert torch.equal(flow.interpolate(x, eps, 0), x) and torch.equal(flow.interpolate(x, eps, 1), eps), "the ends"
    assert torch.allclose(flow.ddim(eps, x, s=.4, t=1), at(.4), atol=1e-12), "from pure noise DDIM makes x_t"
    assert torch.equal(flow.ddim(x_t, x, s=0, t=0), x_t), "even at time 0 a step of length zero stays"


@flows
def test_each_sample_has_its_own_time(flow):
    s, _, t = triples(40)
    x, eps, guess = (noise(40, 3, 4, 4, seed=i) for i in range(3))
    x_t = flow.interpolate(x, eps, t)
    x_s = flow.ddim(x_t, guess, s=s, t=t)
    for i in range(40):
        one = slice(i, i + 1)
        assert torch.allclose(x_t[one], flow.interpolate(x[one], eps[one], t[i].item()), atol=1e-12)
        assert torch.allclose(x_s[one], flow.ddim(x_t[one], guess[one], s=s[i].item(), t=t[i].item()), atol=1e-9)
    mixed = flow.ddim(x_t, guess, s=0., t=t)
    assert torch.allclose(mixed, guess), "one s may go with many t"


@flows
def test_ddim_from_two_points_of_the_line(flow):
    s, r, t = triples()
    x, eps, guess = (noise(2000, 4, seed=i) for i in range(3))
    x_t = flow.interpolate(x, eps, t)
    assert torch.allclose(flow.ddim(x_t, x, s=r, t=t), flow.interpolate(x, eps, r), atol=1e-9), "the same noise"
    stop = flow.ddim(flow.ddim(x_t, guess, s=r, t=t), guess, s=s, t=r)
    once = flow.ddim(x_t, guess, s=s, t=t)
    scale = 1 + once.abs() + (flow.ratio(s, t)[:, None] * x_t).abs()
    assert ((stop - once).abs() / scale).max() < 1e-9, "a stop at r must not change where DDIM goes"


def test_ddim_keeps_its_digits_for_a_short_step():
    "alpha_s - sigma_s/sigma_t alpha_t would lose all but three digits here; the wedge does not"
    s, t = .6 - 2.**-43, .6
    x_t, x, step = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64), float(Fraction(t) - Fraction(s))
    for flow, expected in zip(FLOWS, (step / t, math.sin(math.pi/2*step) / math.sin(math.pi/2*t))):
        moved = flow.ddim(x_t, x, s=s, t=t).item()                                  # is the factor of x
        assert moved == pytest.approx(expected, rel=1e-6, abs=0), f"{flow}: the factor of x loses digits"


@flows
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("t", [.3, "each"])
def test_result_has_the_precision_of_the_samples(flow, dtype, tolerance, t):
    x, eps = noise(4, 3, 8, 8).to(dtype), noise(4, 3, 8, 8, seed=1).to(dtype)
    t = T64([.3, .3, .3, .3]) if t == "each" else t
    x_t, true = flow.interpolate(x, eps, t), flow.interpolate(x.double(), eps.double(), t)
    x_s, landed = flow.ddim(x_t, x, s=.1, t=t), flow.ddim(x_t.double(), x.double(), s=.1, t=t)
    assert x_t.dtype == x_s.dtype == dtype, "what comes out has the precision of what goes in"
    assert (x_t.double() - true).abs().max() < tolerance and (x_s.double() - landed).abs().max() < tolerance


def test_gradients_reach_the_guess():
    x_t, x = noise(3, 2), noise(3, 2, seed=1).requires_grad_()
    OTFM().ddim(x_t, x, s=.2, t=.8).sum().backward()
    assert torch.allclose(x.grad, torch.full((3, 2), .75, dtype=F64)), "the factor of x is wedge/sigma_t = .6/.8"


def test_marginal_of_the_interpolant_is_known_for_gaussian_data():
    x, eps = .3 + .4*noise(400_000), .5*noise(400_000, seed=1)
    for flow in FLOWS:
        for t in (.2, .6, .9):
            a, b = CLOSED[repr(flow)][0](t), CLOSED[repr(flow)][1](t)
            x_t = flow.interpolate(x, eps, t)
            assert abs(x_t.mean() - .3*a) < .005 and abs(x_t.std() - math.hypot(.4*a, .5*b)) < .005


@pytest.mark.parametrize("call, error, words", [
    (lambda f, x: f.interpolate(x, x[:2], .5), ValueError, r"x and eps must have one shape; got \[4, 3\] and \[2, 3\]"),
    (lambda f, x: f.ddim(x, x[:2], s=.1, t=.5), ValueError, r"x_t and x must have one shape; got \[4, 3\] and \[2, 3\]"),
    (lambda f, x: f.interpolate(x, x, T64([.1, .2])), ValueError, r"t has shape \[2\].*\[4\]"),
    (lambda f, x: f.ddim(x, x, s=T64([.1, .2]), t=.5), ValueError, r"s has shape \[2\].*\[4\]"),
    (lambda f, x: f.ddim(x, x, s=.8, t=.3), ValueError, "s must not exceed t"),
    (lambda f, x: f.ddim(x, x, s=T64([.1, .1, .6, .1]), t=.3), ValueError, "s must not exceed t"),
    (lambda f, x: f.ddim(x, x, .1, .3), TypeError, "positional"),
    (lambda f, x: f.interpolate(x, x, 1.2), ValueError, r"t must lie in \[0, 1\]; got 1.2"),
    (lambda f, x: f.interpolate(x, x, torch.rand(4)), TypeError, "times are float64"),
    (lambda f, x: f.interpolate(x[0, 0], x[0, 0], T64([.1, .2])), ValueError, r"t has shape \[2\]"),
    (lambda f, x: f.interpolate((9*x).byte(), (9*x).byte(), .5), TypeError, "samples are torch.uint8; turn images into floats"),
])
@flows
def test_misuse_is_refused_in_words(flow, call, error, words):
    with pytest.raises(error, match=words):
        call(flow, noise(4, 3).float())


# ---- times

def test_numbers_become_float64_tensors():
    for v in (.5, 0, 1, True, T64(.5)):
        t, = as_times(t=v)
        assert t.dtype == F64 and t.shape == () and t == float(v)
    s, t = as_times(s=.1, t=T64([.3, .4, .5]))
    assert s.shape == () and t.shape == (3,), "without samples, shapes stay"
    assert [v.item() for v in as_times(s=.3, t=.3)] == [.3, .3], "equal times are in order"
    assert as_times(t=[.1, .2])[0].tolist() == [.1, .2], "a list is one time for each sample"
    assert as_times() == []


@pytest.mark.parametrize("times, error, words", [
    (dict(t="noon"), TypeError, "t must be a time; got 'noon'"),
    (dict(s=None), TypeError, "s must be a time; got None"),
    (dict(t=1j), TypeError, "t must be a time"),
    (dict(t=torch.rand(3)), TypeError, "t is torch.float32, but times are float64"),
    (dict(r=torch.tensor(1)), TypeError, "r is torch.int64"),
    (dict(t=T64(.5).bfloat16()), TypeError, "t is torch.bfloat16"),
    (dict(t=torch.zeros(2, 2, dtype=F64)), ValueError, r"t has shape \[2, 2\]"),
    (dict(t=1.2), ValueError, r"t must lie in \[0, 1\]; got 1.2"),
    (dict(t=-.1), ValueError, r"got -0.1"),
    (dict(t=T64([.2, 1.5, .3])), ValueError, "got 0.2 to 1.5"),
    (dict(s=float("nan")), ValueError, "s must lie in .*nan"),
    (dict(t=T64([.5, float("nan")])), ValueError, "t must lie"),
    (dict(t=math.inf), ValueError, "got inf"),
    (dict(t=.993, hi=.9), ValueError, r"\[0, 0.9\]; got 0.993"),
    (dict(t=.001, lo=.006), ValueError, r"\[0.006, 1\]; got 0.001"),
    (dict(s=.7, t=.3), ValueError, "s must not exceed t"),
    (dict(s=.5, t=T64([.6, .4])), ValueError, "s must not exceed t"),
    (dict(s=T64([.1, .2]), t=T64([.3, .4, .5])), ValueError, r"t has shape \[3\].*\[2\]"),
])
def test_a_wrong_time_is_refused(times, error, words):
    with pytest.raises(error, match=words):
        as_times(**times)


@pytest.mark.parametrize("error, kwargs", [(ValueError, dict(x=torch.zeros(4, 2), t=T64([.1, .2]))),
    (TypeError, dict(x=torch.zeros(4, 2, dtype=torch.int64), t=.1)), (TypeError, dict(x=torch.zeros(4, dtype=torch.uint8), t=.1))])
def test_samples_that_do_not_fit_are_refused(error, kwargs):
    with pytest.raises(error):
        as_times(**kwargs)


def test_a_limit_that_was_stored_in_float32_is_moved_back():
    T, eps = torch.tensor(.994).double(), torch.tensor(.7).double()
    assert T > .994 and eps < .7, "float32 moves these limits outwards"
    s, t = as_times(None, .7, .994, s=eps, t=T)
    assert (s, t) == (.7, .994), "a limit that was once float32 passes, and is the limit again"
    assert as_times(t=1 + 5e-8)[0] == 1 and as_times(t=-5e-8)[0] == 0, "no alpha or sigma is ever negative"
    with pytest.raises(ValueError):
        as_times(t=1 + 1e-6)


@pytest.mark.parametrize("shape", [(), (4,), (4, 2), (4, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_times_are_shaped_to_multiply_samples(shape, dtype):
    x = torch.ones(shape, dtype=dtype)
    s, = as_times(x, s=.2)
    assert s.shape == () and s.dtype == F64, "one time for all"
    if shape:
        s, t = as_times(x, s=.1, t=T64([.1, .2, .3, .4]))
        assert s.shape == () and t.shape == (4,) + (1,)*(len(shape) - 1) and t.dtype == F64
        assert (t * x).shape == shape, "one number for each sample"
    empty, = as_times(x[:0] if shape else torch.ones(0), t=torch.zeros(0, dtype=F64))
    assert len(empty) == 0, "an empty batch has no wrong times"


def test_values_are_looked_at_on_the_cpu_only():
    meta = torch.full((4,), .5, dtype=F64, device="meta")
    assert readable(T64(.5), T64([.1, .2])) and readable() and not readable(meta) and not readable(T64(.5), meta)
    s, t = as_times(s=.1, t=meta)
    assert t.device.type == "meta", "a device that must be waited for is not looked at"
    t, = as_times(torch.empty(4, 3, device="meta"), t=T64([.1, .2, .3, .4]))
    assert t.device.type == "meta" and t.shape == (4, 1), "checked on the CPU, then sent to the samples"
    with pytest.raises(TypeError, match="times are float64"):
        as_times(t=meta.float())
    with pytest.raises(ValueError, match="shape"):
        as_times(torch.empty(3, 3, device="meta"), t=meta)
    x = torch.empty(4, 3, 8, 8, device="meta")
    assert FLOWS[0].ddim(x, x, s=.1, t=meta).shape == x.shape, "and all formulas run there"


# ---- compilers

class Mixing(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, eps, s, t):
        x_t = self.flow.interpolate(x, eps, t)
        return x_t, self.flow.ddim(x_t, eps, s=s, t=t)


@flows
def test_export_with_a_dynamic_batch(flow):
    def inputs(n):
        s, _, t = triples(n, seed=n)
        return noise(n, 3, 4, 4, dtype=torch.float32), noise(n, 3, 4, 4, seed=1, dtype=torch.float32), s, t
    B = torch.export.Dim("B", min=2, max=1024)
    program = torch.export.export(Mixing(flow), inputs(5), dynamic_shapes=({0: B}, {0: B}, {0: B}, {0: B}))
    for n in (2, 9):
        for got, want in zip(program.module()(*inputs(n)), Mixing(flow)(*inputs(n))):
            assert torch.allclose(got, want, atol=1e-5), f"the exported program at batch {n}"


@flows
def test_compiles_in_one_piece(flow):
    "fullgraph: nothing in the formulas makes the compiler stop; the eager backend needs no C++ compiler"
    fast = torch.compile(Mixing(flow), fullgraph=True, backend="eager", dynamic=True)
    for n in (3, 6):
        s, _, t = triples(n)
        x, eps = noise(n, 2, 4), noise(n, 2, 4, seed=1)
        for got, want in zip(fast(x, eps, s, t), Mixing(flow)(x, eps, s, t)):
            assert torch.allclose(got, want, atol=1e-9)
