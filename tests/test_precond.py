"The preconditioner: coefficients, the wrapped model, and the exact Gaussian network."
import math

import pytest
import torch
from torch import nn

from imm_edu.flow import OTFM, Cosine
from imm_edu.precond import IMM, PARAMS, GaussianNet

KNOWN = {("OTFM", "identity"): (.287671, .712329, 1.403846), ("Cosine", "identity"): (.355405, .799831, 1.250264),
         ("OTFM", "simple_edm"): (.605150, -.334048, 2.993583), ("Cosine", "simple_edm"): (.684547, -.364484, 2.743602),
         ("OTFM", "euler_fm"): (1., -.26, 3.846154)}
FLOWS = dict(OTFM=OTFM(), Cosine=Cosine())
PAIRS = [pytest.param(FLOWS[f], name, id=f"{f}-{name}") for f, name in KNOWN]
T64 = lambda v: torch.tensor(v, dtype=torch.float64)


class Tiny(nn.Module):
    "A small network with weights, two times and labels"
    def __init__(self, dim=4, classes=0, width=32):
        super().__init__()
        self.classes, self.label = classes, nn.Embedding(classes + 1, width)
        self.body, self.out = nn.Linear(dim + 2, width), nn.Linear(width, dim)

    def forward(self, x, t, u, label=None):
        h = self.body(torch.cat([x, torch.stack([t, u], 1).div(300).sin().to(x.dtype)], 1)).tanh()
        return self.out(h if label is None else h + self.label(label % (self.classes + 1)))


class Spy(nn.Module):
    "Remembers what it is called with"
    classes = 10

    def forward(self, *seen):
        self.seen = seen
        return torch.cos(seen[0])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def x_t():
    return .5 * torch.randn(6, 4)


# ---- coefficients

@pytest.mark.parametrize("flow, name", PAIRS)
def test_coefficients_against_independent_arithmetic(flow, name):
    p, s, t = PARAMS[name], T64(.21), T64(.73)
    out = p.c_out(flow, s, t)
    got = torch.stack([p.c_skip(flow, s, t), out, 1 / out.abs()])
    assert torch.allclose(got, T64(KNOWN[type(flow).__name__, name]), atol=6e-7)
    assert torch.allclose(p.c_out(flow, s, t, 1.), out * (1 if name == "identity" else 2)), "sigma_d scales c_out, except for identity"


@pytest.mark.parametrize("flow, name", PAIRS)
def test_a_jump_of_length_zero_keeps_everything(flow, name):
    t, p = torch.linspace(0, 1, 101, dtype=torch.float64), PARAMS[name]
    assert torch.allclose(p.c_skip(flow, t, t), torch.ones_like(t), atol=1e-14, rtol=0), "c_skip(t, t) = 1"
    assert (p.c_out(flow, t, t) == 0).all(), "c_out(t, t) = 0, so that the network has no say"
    assert p.c_skip(flow, t, t).shape == p.c_out(flow, t, t).shape == t.shape, "one coefficient a time"


@pytest.mark.parametrize("flow, name", PAIRS)
def test_short_jumps_from_the_data_approach_the_identity_except_for_identity(flow, name):
    out = PARAMS[name].c_out(flow, T64(0.), T64(1e-9)).abs()
    assert out > .99 if name == "identity" else out < 1e-8, "Identity has f_{0,t} = G for every t > 0; the others keep the boundary"


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_the_input_has_unit_variance_at_every_time(flow):
    x = .5 * (torch.randint(2, (200_000,)) * 2. - 1).double()
    eps = .5 * torch.randn_like(x)
    for t in torch.linspace(0, 1, 11, dtype=torch.float64):
        assert abs((PARAMS["simple_edm"].c_in(flow, t) * flow.interpolate(x, eps, t)).var() - 1) < .02


@pytest.mark.parametrize("flow, name", PAIRS)
def test_regression_targets_in_closed_form(flow, name):
    x, eps, t, p = .5 * torch.randn(50).double(), .5 * torch.randn(50).double(), T64(.7), PARAMS[name]
    x_t, v = flow.interpolate(x, eps, t), flow.dot(t, t).sqrt()
    want = {"identity": x, "simple_edm": (flow.alpha(t)*eps - flow.sigma(t)*x) / v / .5, "euler_fm": (eps - x) / .5}[name]
    for s in (0., .05, .5):
        got = (flow.interpolate(x, eps, s) - p.c_skip(flow, T64(s), t)*x_t) / p.c_out(flow, T64(s), t)
        assert torch.allclose(got, want, atol=1e-9), f"the pair's target must not depend on s; it does at s = {s}"


def test_simple_edm_on_the_cosine_schedule_is_a_rotation():
    s, t = T64(.2), T64(.7)
    assert torch.allclose(PARAMS["simple_edm"].c_skip(Cosine(), s, t), torch.cos(math.pi/2 * (t - s)))
    assert torch.allclose(PARAMS["simple_edm"].c_out(Cosine(), s, t), -.5 * torch.sin(math.pi/2 * (t - s)))


# ---- the wrapped model

@pytest.mark.parametrize("second", ["s", "t-s"])
@pytest.mark.parametrize("flow, name", PAIRS)
def test_the_jump_is_ddim_of_its_guess(flow, name, second, x_t):
    model = IMM(Tiny().double(), flow, name, second, eps=0., T=1.)
    x, t = x_t.double(), torch.rand(6, dtype=torch.float64)*.9 + .05
    s = t * torch.rand(6, dtype=torch.float64)
    assert torch.allclose(model(x, t, s), flow.ddim(x, model.g(x, t, s), s=s, t=t), atol=1e-10)
    assert torch.allclose(model(x, t, t), x, atol=1e-12), "f_{s,s} is the identity, with each sample at its own time"
    skip, out = (c[:, None] for c in (model.param.c_skip(flow, s, t), model.param.c_out(flow, s, t)))
    assert torch.allclose(model(x, t, s), skip*x + out*model.G(x, t, s), atol=1e-12), "f = c_skip x + c_out G"


@pytest.mark.parametrize("second, u", [("s", 300.), ("t-s", 500.)])
def test_what_the_network_is_shown(second, u, x_t):
    model = IMM(Spy(), OTFM(), second_time=second)
    model(x_t, t=.8, s=.3, label=torch.arange(6, dtype=torch.uint8))
    x, t1, u1, label = model.net.seen
    assert torch.allclose(x, x_t / (.5 * (.2**2 + .8**2)**.5)), "the input is scaled by c_in"
    assert x.dtype == x_t.dtype and t1.dtype == u1.dtype == torch.float64 and t1.shape == u1.shape == (6,)
    assert (t1 - 800).abs().max() < 1e-9 and (u1 - u).abs().max() < 1e-9, f"the second time is {second}, in thousands"
    assert label.tolist() == list(range(6)) and label.dtype == torch.int64
    model(x_t, .8, .3)
    assert (model.net.seen[3] == -1).all(), "no label means null for every sample"


def test_a_network_without_classes_is_shown_no_label(x_t):
    spy = Spy()
    spy.classes = 0
    IMM(spy, OTFM())(x_t, .8, .3)
    assert spy.seen[3] is None


def test_augmentation_labels_follow_the_label_and_are_doubled_by_guidance(x_t):
    spy, augment = Spy(), torch.randn(6, 9)
    spy.augment = 9
    model = IMM(spy, OTFM())
    model(x_t, .8, .3)
    assert len(spy.seen) == 4, "without augmentation labels the network is called with four arguments"
    for call in (model, model.g, model.G):
        call(x_t, .8, .3, torch.arange(6), augment=augment)
        assert torch.equal(spy.seen[4], augment)
        call(x_t, .8, .3, torch.arange(6), guidance=2., augment=augment)
        assert torch.equal(spy.seen[4], torch.cat([augment, augment]))
        assert spy.seen[3].tolist() == [-1]*6 + list(range(6)) and torch.equal(*spy.seen[0].chunk(2))


def test_numbers_scalars_and_one_a_sample_agree(x_t):
    model = IMM(Tiny(classes=10), OTFM())
    every = lambda v: torch.full((6,), v, dtype=torch.float64)
    numbers = model(x_t, .8, .3, 7)
    assert torch.allclose(numbers, model(x_t, T64(.8), T64(.3), torch.full((6,), 7)), atol=1e-6)
    assert torch.allclose(numbers, model(x_t, every(.8), every(.3), 7), atol=1e-6)
    t, s = torch.linspace(.5, .9, 6, dtype=torch.float64), torch.linspace(.1, .4, 6, dtype=torch.float64)
    alone = torch.cat([model(x_t[i:i+1], t[i], s[i], i) for i in range(6)])
    assert torch.allclose(model(x_t, t, s, torch.arange(6)), alone, atol=1e-6), "each sample uses its own times and label"


def test_precision_is_that_of_the_samples(x_t):
    model = IMM(Tiny(), OTFM())
    for dtype, want in ((torch.float32,)*2, (torch.float64,)*2, (torch.float16, torch.float32)):
        assert model(x_t.to(dtype), .8, .3).dtype == want
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x_t, .8, .3).dtype == torch.float32, "autocast stays inside the network"


def test_images_keep_their_shape():
    x = torch.randn(3, 2, 4, 4)
    model = IMM(GaussianNet(OTFM()), OTFM())
    assert model(x, T64([.5, .6, .7]), T64([.1, .2, .3])).shape == x.shape


@pytest.mark.parametrize("w", [0., 1., 1.5, 4.])
def test_guidance_is_a_line_through_the_null_jump_and_the_labelled_one(w, x_t):
    model, label = IMM(Tiny(classes=10), OTFM()), torch.tensor([0, 1, 2, 3, 9, -1])
    null, labelled = model(x_t, .8, .3), model(x_t, .8, .3, label)
    assert torch.allclose(model(x_t, .8, .3, label, guidance=w), null + w*(labelled - null), atol=1e-5)
    assert torch.allclose(labelled[5], null[5], atol=1e-6), "-1 is the null label"
    assert not torch.allclose(labelled[0], null[0], atol=1e-3), "labels matter"


def test_the_model_says_what_it_is():
    said = repr(IMM(Tiny(), Cosine(), "identity", "t-s"))
    assert "Cosine(), identity, second_time=t-s, sigma_d=0.5, eps=0.006, T=0.994" in said


def test_a_parameterisation_may_be_given_by_name_or_as_such():
    assert IMM(Tiny(), OTFM(), PARAMS["identity"]).param is IMM(Tiny(), OTFM(), "identity").param


# ---- bad input is met with a sentence

@pytest.mark.parametrize("kwargs, said", [
    (dict(param="edm"), "'edm' is unknown; choose one of identity, simple_edm, euler_fm"),
    (dict(flow=OTFM), "flow must be a schedule"),
    (dict(flow=Cosine(), param="euler_fm"), "straight lines"),
    (dict(second_time="r"), "'s' or 't-s'"),
    (dict(eps=.5, T=.4), "0 <= eps < T <= 1"),
    (dict(T=1.1), "0 <= eps < T <= 1"),
    (dict(sigma_d=0), "sigma_d must be positive"),
])
def test_what_cannot_be_built(kwargs, said):
    with pytest.raises(ValueError) as e:
        IMM(Tiny(), **{"flow": OTFM(), **kwargs})
    assert said in str(e.value)


@pytest.mark.parametrize("args, kwargs, said", [
    ((.3, .8), {}, "s must not exceed t"),
    ((.999, .3), {}, "t must lie in [0.006, 0.994]; got 0.999"),
    ((.8, 0.), {}, "s must lie in [0.006, 0.994]; got 0"),
    ((torch.full((4,), .8).double(), .01), {}, "t has shape [4]"),
    ((torch.full((6,), .8), .01), {}, "times are float64"),
    (("now", .01), {}, "t must be a time"),
    ((.8, .3, 10), {}, "label must lie in 0 ... 9, or be -1 for null; got 10"),
    ((.8, .3, -2), {}, "label must lie in 0 ... 9"),
    ((.8, .3, torch.rand(6)), {}, "integer class indices"),
    ((.8, .3, torch.arange(5)), {}, "label has shape [5]; give one for each of 6"),
    ((.8, .3, torch.zeros(6, 10).long()), {}, "label has shape [6, 10]"),
    ((.8, .3), dict(guidance=2.), "guidance = 2.0"),
    ((.8, .3, 1), dict(guidance=math.nan), "finite"),
    ((.8, .3, 1), dict(guidance=math.inf), "finite"),
    ((.8, .3, 1), dict(augment=torch.zeros(6, 9)), "Tiny does not take it (net.augment is 0 or absent)"),
])
def test_what_cannot_be_called(args, kwargs, said, x_t):
    model = IMM(Tiny(classes=10), OTFM())
    for call in (model, model.g, model.G):
        with pytest.raises((ValueError, TypeError)) as e:
            call(x_t, *args, **kwargs)
        assert said in str(e.value)


@pytest.mark.parametrize("augment", [torch.zeros(5, 9), torch.zeros(6, 8), torch.zeros(6, 9).long()])
def test_augmentation_labels_that_do_not_fit(augment, x_t):
    spy = Spy()
    spy.augment = 9
    with pytest.raises(ValueError, match=r"augment must be floats \[6, 9\]"):
        IMM(spy, OTFM())(x_t, .8, .3, augment=augment)


def test_a_network_without_classes_takes_neither_labels_nor_guidance(x_t):
    plain = IMM(Tiny(), OTFM())
    with pytest.raises(ValueError, match="knows no classes"): plain(x_t, .8, .3, 1)
    with pytest.raises(ValueError, match="no labels to be guided by"): plain(x_t, .8, .3, guidance=2.)


def test_samples_that_are_no_numbers(x_t):
    model = IMM(Tiny(), OTFM()).eval()
    with pytest.raises(ValueError, match="24 values that are NaN"): model(x_t * math.nan, .8, .3)
    with pytest.raises(TypeError, match="floats"): model(torch.zeros(6, 4, dtype=torch.uint8), .8, .3)
    assert model.train()(x_t * math.nan, .8, .3).isnan().all(), "a training loop sees NaN and handles the step itself"


# ---- the exact network

def gaussian(flow, name="simple_edm", second="s", **data):
    return IMM(GaussianNet(flow, name, second, **data), flow, name, second, eps=0., T=1.)


@pytest.mark.parametrize("second", ["s", "t-s"])
@pytest.mark.parametrize("flow, name", PAIRS)
def test_exact_jumps_have_the_right_marginal_and_compose(flow, name, second):
    n, model = 100_000, gaussian(flow, name, second, mean=.3, std=.4)
    x_t = flow.interpolate(.3 + .4*torch.randn(n, 1).double(), .5*torch.randn(n, 1).double(), .9)
    once, thrice = model(x_t, .9, .1), model(model(model(x_t, .9, .7), .7, .35), .35, .1)
    a, b = flow.alpha(T64(.1)), flow.sigma(T64(.1))
    std = ((.4*a)**2 + (.5*b)**2).sqrt()
    assert abs(once.mean() - .3*a) < 5*std/n**.5 and abs(once.std() - std) < 5*std/(2*n)**.5
    assert torch.allclose(once, thrice, atol=1e-8), "exact jumps compose point by point"
    assert torch.allclose(once, model.net.transport(x_t, .9, .1), atol=1e-10)
    assert torch.allclose(model(x_t[:9], .4, .4), x_t[:9], atol=1e-12), "a jump of length zero stays"


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("s, t", [(.1, .6), (0., .9), (.55, .6), (0., 1.)])
def test_centred_data_ask_for_the_tangent_of_half_the_angle(flow, s, t):
    x, model = torch.randn(50, 1, dtype=torch.float64), gaussian(flow)
    phi = torch.atan2(flow.wedge(T64(s), T64(t)), flow.dot(T64(s), T64(t)))
    assert torch.allclose(model.G(x, t, s), -torch.tan(phi/2) * model.param.c_in(flow, T64(t)) * x, atol=1e-10)


@pytest.mark.parametrize("flow, name", PAIRS)
def test_for_short_jumps_the_exact_network_is_the_conditional_mean_of_the_pairs(flow, name):
    x_t, t, mean, std = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None], T64(.6), .3, .4
    a, b, p = flow.alpha(t), flow.sigma(t), PARAMS[name]
    x = mean + a*std**2 / ((a*std)**2 + (.5*b)**2) * (x_t - a*mean)
    eps = (x_t - a*x) / b
    want = {"identity": x, "simple_edm": (a*eps - b*x) / flow.dot(t, t).sqrt() / .5, "euler_fm": (eps - x) / .5}[name]
    G = gaussian(flow, name, mean=mean, std=std).G
    assert (G(x_t, t, t - 1e-5) - want).abs().max() < 1e-4, "as s approaches t"
    assert (G(x_t, t, .1) - want).abs().max() > .01, "but not for long jumps"


@pytest.mark.parametrize("s, t", [(.5, .6), (.1, .6), (0., .9), (0., 1.)])
def test_a_perfect_denoiser_keeps_the_squared_cosine_of_the_variance(s, t):
    class Silent(nn.Module):
        def forward(self, x, t, u, label=None): return torch.zeros_like(x)
    n, flow = 100_000, OTFM()
    x, eps = .5*torch.randn(2, n, 1).double()
    y = IMM(Silent(), flow, eps=0., T=1.)(flow.interpolate(x, eps, t), t, s)
    theory = flow.dot(T64(s), T64(t))**2 / (flow.dot(T64(s), T64(s)) * flow.dot(T64(t), T64(t)))
    assert abs(y.var() / flow.interpolate(x, eps, s).var() - theory) < .02
