"Chapter 06: times, r and the weight against numbers and laws; the loss against the formula in loops; each bug with a sentence of its own."
import math

import pytest
import torch
from torch import nn

from imm_edu.flow import OTFM, Cosine
from imm_edu.objective import MAPPINGS, TIMES, Draw, Objective
from imm_edu.precond import IMM

F64 = torch.float64
LATENTS = IMM(nn.Identity(), OTFM(), eps=0., T=.994)        # the range of times of ImageNet,
PIXELS = IMM(nn.Identity(), OTFM(), eps=.006, T=.994)       # and of CIFAR-10; neither needs a network for times


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n, *shape, seed=0, std=.5, dtype=F64):
    return std * torch.randn(n, *(shape or (3, 1, 1)), dtype=dtype, generator=gen(seed))


class Mixing(nn.Module):
    "A small network in float64 that knows its times and, if it has classes, its labels"
    def __init__(self, channels=3, classes=0):
        super().__init__()
        torch.manual_seed(5)
        self.mix, self.classes = nn.Conv2d(channels, channels, 1).double(), classes

    def forward(self, x, t, u, label=None):
        scale = 1 + (t - .4*u)/1000
        if self.classes:
            scale = scale + .3*label
        return self.mix(x).tanh() * scale[:, None, None, None]


class Notes(nn.Module):
    "Writes down what it is shown"
    classes = 10

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, u, label):
        self.seen.append((t/1000, u/1000, label))
        return 0*x


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(.5)

    def forward(self, x, t, u, label=None):
        return self.drop(x)


def at(model, x, s, r, t, M=4):
    "A draw with the same chosen times in every group"
    times = (torch.full((len(x)//M,), v, dtype=F64) for v in (t, s, r))
    return Draw(*times, points(len(x), *x.shape[1:], seed=9), torch.zeros(len(x), dtype=torch.bool), 0)


def grads(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# ---- r

KNOWN_R = [   # computed elsewhere, in float64
    (LATENTS, 12, 0., {.05: .0120389138, .1: .0660011655, .3: .2796040234, .5: .4896798040, .7: .6963151521,
                       .9: .8995938978, .99: .9899959538, .994: .9939985436}),
    (LATENTS, 12, 1e-4, {.9: .8995938978, .99: .9899, .994: .9939}),
    (PIXELS, 15, 0., {.05: .0454153368, .1: .0958862779, .5: .4987329068, .9: .8999494188, .994: .9939998180})]


@pytest.mark.parametrize("model, k, gap, table", KNOWN_R, ids=("ImageNet", "ImageNet with a gap", "CIFAR-10"))
def test_r_equals_the_known_numbers(model, k, gap, table):
    for t, r in table.items():
        got = Objective(k, gap=gap).r(model, model.eps, t).item()
        assert abs(got - r) < 6e-11, f"k = {k}, gap = {gap}: r(eps, {t}) is {r}, not {got:.10f}"


def by_name(name, flow, t):
    "How noisy a time is, written down without the code under test"
    alpha, sigma = (1 - t, t) if flow == "OTFM()" else (math.cos(math.pi*t/2), math.sin(math.pi*t/2))
    eta = sigma / alpha
    return dict(eta=eta, t=t, log_snr=2*math.log(eta), inv_eta=-1/eta, edm=eta**(1/7))[name]


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("flow", (OTFM(), Cosine()), ids=repr)
def test_each_mapping_falls_by_a_constant_step(name, flow):
    model = IMM(nn.Identity(), flow, eps=.005, T=.99)
    whole = by_name(name, repr(flow), .99) - by_name(name, repr(flow), .005)
    for t in (.55, .7, .9, .99):
        r = Objective(9, name).r(model, .005, t).item()
        step = (by_name(name, repr(flow), t) - by_name(name, repr(flow), r)) / whole
        assert abs(step * 2**9 - 1) < 1e-7, f"{name}, {flow}: from t = {t} the measure must fall by 1/2^9 of its range"


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("flow", (OTFM(), Cosine()), ids=repr)
@pytest.mark.parametrize("k", (.3, 2, 7.5, 12, 15))
def test_r_lies_between_s_and_t(name, flow, k):
    model = IMM(nn.Identity(), flow, eps=.005, T=.99)
    s, t = (.005 + .985*torch.rand(2, 2000, dtype=F64, generator=gen())).sort(0).values
    r = Objective(k, name, gap=1e-4 * (k == 12)).r(model, s, t)
    assert (s <= r).all() and (r <= t + 1e-15).all(), f"{name}, k = {k}: s <= r <= t"
    line = Objective(k, name).r(model, .2, torch.linspace(.2, .99, 300, dtype=F64))
    assert (line.diff() >= 0).all(), f"{name}, k = {k}: r must rise with t"


@pytest.mark.parametrize("name", MAPPINGS)
def test_r_at_extreme_k(name):
    s, t = (.006 + .988*torch.rand(2, 500, dtype=F64, generator=gen())).sort(0).values
    assert (t - Objective(60, name).r(PIXELS, s, t)).abs().max() < 1e-11, f"{name}: as k grows, r goes to t"
    assert (Objective(1e-9, name).r(PIXELS, s, t) - s).max() < 1e-6, f"{name}: as k goes to 0, r goes to s"


def test_eta_is_clamped_before_it_is_inverted():
    assert Objective(2).r(LATENTS, 0., .5).item() < 1e-9, "eta_t - u = -40 must become eta_eps = 0, not the time 1.025"


def test_number_of_links():
    t, links = .9, 0
    while t > 1e-9:
        t, links = Objective(8).r(LATENTS, 0., t).item(), links + 1
    assert links == math.ceil(9 / (.994/.006 / 2**8)), "eta falls by a constant, so eta(t)/u links lead to the data"


# ---- the laws of t and s

def ks(u):
    "Kolmogorov-Smirnov: below 2 in all but one case of a thousand"
    return (u.sort().values - (torch.arange(len(u)) + .5) / len(u)).abs().max().item() * len(u)**.5


@pytest.mark.parametrize("model", (LATENTS, PIXELS), ids=("eps 0", "eps .006"))
@pytest.mark.parametrize("law", TIMES)
def test_laws_of_the_times(model, law):
    t, s, r = Objective(times=law).times(model, 50_000, gen(3))
    def cdf(v):
        v = torch.as_tensor(v, dtype=F64)
        return v if law == "uniform" else .5 + .5*torch.erf((torch.log(v / (1 - v)) + 1.1) / 2 / 2**.5)
    lo, hi = cdf(model.eps + 1e-6), cdf(model.T)
    assert ks((cdf(t) - lo) / (hi - lo)) < 2, f"t must be {law} between eps and T"
    assert ks((s - model.eps) / (t - model.eps)) < 2, "s must be uniform between eps and t"
    assert all(v.dtype == F64 and v.shape == (50_000,) for v in (t, s, r)), "times are float64, one per group"
    assert (s <= r).all() and (r <= t).all() and s.min() >= model.eps and t.max() <= model.T, "eps <= s <= r <= t <= T"


@pytest.mark.parametrize("law", TIMES)
@pytest.mark.parametrize("model", (LATENTS, PIXELS), ids=("eps 0", "eps .006"))
@pytest.mark.parametrize("u", (0., 1 - 2**-53))
def test_no_jump_is_so_short_that_the_kernel_becomes_infinite(monkeypatch, law, model, u):
    monkeypatch.setattr(torch, "rand", lambda *a, **k: torch.tensor([[u], [1 - 2**-53]], dtype=F64))
    t, s, _ = Objective(times=law).times(model, 1)
    w = 1 / model.param.c_out(model.flow, s, t).abs()
    assert w.isfinite().all() and w.max() < 3e6, f"the shortest jump must keep the kernel finite; w~ = {w.item():g}"
    assert model.eps <= s <= t <= model.T + 1e-12, "the extreme draws must stay in the range of times"


def test_share_of_groups_taught_by_the_data():
    t, s, r = Objective(8).times(PIXELS, 50_000, gen())
    assert abs((r == s).double().mean().item() - .53) < .015, "at k = 8, 53 % of the teachers are the data"


# ---- the weight

@pytest.mark.parametrize("flow, a, b, t, w", [
    (OTFM(), 1, 4, .5, 3.928055160151634), (OTFM(), 2, 4, .9, .13547072250943304), (OTFM(), 1, 5, .3, 5.543757153243453),
    (Cosine(), 1, 5, .1, 7.91523), (Cosine(), 1, 5, .5, 2.20657), (Cosine(), 1, 5, .9, 1.59011)])
def test_weight_equals_the_known_numbers(flow, a, b, t, w):
    got = Objective(a=a, b=b).weight(flow, t).item()
    assert abs(got/w - 1) < 2e-6, f"{flow}, a = {a}, b = {b}: w({t}) is {w}, not {got}: a factor 1/2, the power of alpha or b is wrong"


def plain_weight(flow, a, b, t):
    "Eq. 13 in scalars"
    if flow == "OTFM()":
        alpha, sigma, rate = 1 - t, t, 2 / (t*(1 - t))
    else:
        alpha, sigma, rate = math.cos(math.pi*t/2), math.sin(math.pi*t/2), 2*math.pi / math.sin(math.pi*t)
    return .5 / (1 + math.exp(math.log(alpha**2/sigma**2) - b)) * rate * alpha**a / (alpha**2 + sigma**2)


@pytest.mark.parametrize("flow", (OTFM(), Cosine()), ids=repr)
@pytest.mark.parametrize("a, b", ((1, 4), (2, 4), (1, 5), (1.5, 3), (0, 5)))
def test_weight_is_eq_13(flow, a, b):
    for t in (.01, .2, .5, .8, .99):
        assert Objective(a=a, b=b).weight(flow, t).item() == pytest.approx(plain_weight(repr(flow), a, b, t), rel=1e-9), f"w({t})"
    if a >= 1:
        assert Objective(a=a, b=b).weight(flow, 1.).isfinite(), "the noisy end must be finite"
    assert 0 <= Objective(a=a, b=b).weight(flow, 0.) < 1e-8, "the weight vanishes at the data"


# ---- a draw

def test_noise_has_the_standard_deviation_of_the_data():
    for sigma_d in (.5, 1.3):
        model = IMM(nn.Identity(), OTFM(), sigma_d=sigma_d)
        eps = Objective().draw(model, torch.zeros(4000, 3, 2, 2), gen()).eps
        assert abs(eps.std().item() / sigma_d - 1) < .02, f"noise: its standard deviation must be sigma_d = {sigma_d}; got {eps.std():.3f}"
        assert abs(eps.mean().item()) < .02 * sigma_d, "noise: its mean must be 0"


def test_noise_is_not_shared_within_a_group():
    eps = Objective(M=4).draw(PIXELS, torch.zeros(40_000, 1, 1, 1), gen()).eps.view(-1, 4)
    corr = torch.corrcoef(eps.T)
    assert (corr - torch.eye(4)).abs().max() < .05, "noise: particles of a group must have noise of their own"


def test_labels_are_dropped_one_by_one():
    dropped = Objective(M=4, label_drop=.1).draw(PIXELS, torch.zeros(40_000, 1, 1, 1), gen()).dropped
    assert abs(dropped.double().mean().item() - .1) < .01, "labels: a tenth must be dropped"
    n = dropped.view(-1, 4).sum(1)
    share = [(n == i).double().mean().item() for i in range(5)]
    want = [math.comb(4, i) * .1**i * .9**(4 - i) for i in range(5)]
    assert max(abs(a - b) for a, b in zip(share, want)) < .02, "labels: drops within a group must be independent, not a group at a time"
    assert not Objective(label_drop=0.).draw(PIXELS, torch.zeros(64, 1, 1, 1)).dropped.any(), "labels: a share of 0 drops none"
    assert Objective(label_drop=1.).draw(PIXELS, torch.zeros(64, 1, 1, 1)).dropped.all(), "labels: a share of 1 drops all"


def test_equal_generators_give_equal_draws():
    a, b, c = (Objective().draw(PIXELS, points(24), gen(seed)) for seed in (7, 7, 8))
    same = [torch.equal(torch.as_tensor(u), torch.as_tensor(v)) for u, v in zip(a, b)]
    assert all(same), "equal generators must give equal draws"
    assert not torch.equal(a.t, c.t) and not torch.equal(a.eps, c.eps) and a.seed != c.seed, "another seed, another draw"


def test_a_draw_needs_only_the_shape_of_the_batch():
    x = points(24)
    small = Objective().draw(PIXELS, x[:1].expand(24, -1, -1, -1), gen(1))
    assert torch.equal(small.eps, Objective().draw(PIXELS, x, gen(1)).eps), "values of x must not matter"
    assert Objective().draw(PIXELS, x.float(), gen(1)).eps.dtype == torch.float32, "noise has the precision of x"


@pytest.mark.parametrize("which", (slice(0, 6), slice(2, 8), slice(0, 8, 2), slice(8, 8), slice(8, 4)))
def test_a_part_holds_whole_groups(which):
    draw = Objective().draw(PIXELS, points(12))
    with pytest.raises(ValueError, match="whole groups of 4 out of 12 samples"):
        draw.part(which)


# ---- the loss: one test for each classic bug, so that its name is the message

def exponent(s, r, t, delta):
    "w~ read off the loss: M = 1, student and teacher a distance delta apart"
    model, x = IMM(Mixing(), OTFM()), points(1)
    zero = torch.zeros(1, 3, 1, 1, dtype=F64)
    far = zero.clone(); far[0, 0] = delta
    mmd = Objective(M=1)(model, x, draw=at(model, x, s, r, t, 1), student=lambda *_: zero, teacher=lambda *_: far).mmd.item()
    return -math.log(1 - mmd/2) * 3 / delta


@pytest.mark.parametrize("s, r, t", ((.1, .3, .6), (.5, .55, .6), (.01, .98, .99)))
def test_width(s, r, t):
    right = math.hypot(t, 1 - t) / (.5*(t - s))
    got = exponent(s, r, t, .05)
    assert got != pytest.approx(.5*right, rel=1e-3), "width: sigma_d is missing in w~ = 1/|c_out(s, t)|"
    assert got != pytest.approx(math.hypot(t, 1 - t) / (.5*t), rel=1e-3), "width: w~ is made of c_out(t), the guess's, and not of the jump's c_out(s, t)"
    assert got == pytest.approx(right, rel=1e-5), f"width: w~ must be 1/|c_out(s, t)| = {right:.4f} at the student's times; got {got:.4f}"
    assert exponent(s, (s + r)/2, t, .05) == pytest.approx(right, rel=1e-5), "width: w~ must not depend on r"


def test_both_passes_share_the_noise():
    seen = {}
    def note(name): return lambda x_t, t, s, label: seen.setdefault(name, x_t)
    model, x = IMM(Mixing(), OTFM()), points(8)
    draw = at(model, x, .1, .5, .6)
    Objective()(model, x, draw=draw, student=note("student"), teacher=note("teacher"))
    assert torch.allclose(seen["student"], .4*x + .6*draw.eps), "noise: the student must start at alpha_t x + sigma_t eps"
    assert not torch.equal(seen["teacher"], seen["student"]), "teacher: it must start at x_r, not at the student's x_t"
    assert torch.allclose(seen["teacher"], .5*x + .5*draw.eps), "noise: the teacher must start at alpha_r x + sigma_r eps, with the same eps"


def test_grouping():
    model, x, obj = IMM(Mixing(), OTFM()), points(24), Objective(k=9)
    draw = obj.draw(model, x, gen(1))
    whole = obj(model, x, draw=draw).mmd
    def in_order(o): return obj(model, x[o], draw=draw._replace(eps=draw.eps[o])).mmd
    assert torch.allclose(in_order(torch.arange(24).view(6, 4).flip(1).flatten()), whole, rtol=1e-10), "grouping: the order inside a group must not matter"
    assert (in_order(torch.arange(24).roll(1)) / whole - 1).abs().max() > .01, "grouping: M samples in a row form a group, so which they are must matter"
    notes = IMM(Notes(), OTFM())
    obj(notes, x, draw=draw)
    (t, s, _), (r, s2, _) = notes.net.seen
    for name, seen, want in (("t", t, draw.t), ("s", s, draw.s), ("r", r, draw.r), ("s of the teacher", s2, draw.s)):
        assert torch.allclose(seen.view(6, 4), want[:, None].expand(6, 4), rtol=1e-12), f"grouping: {name} must be one value for a whole group"


def test_particles_are_mixed_and_compared_in_float64():
    seen = []
    def note(x_t, *_): seen.append(x_t); return x_t
    model, x = IMM(Mixing().float(), OTFM()), points(8, dtype=torch.float32)
    out = Objective(k=15)(model, x, student=note, teacher=note)
    assert all(v.dtype == F64 for v in seen), "x_t and x_r must be mixed in float64"
    assert out.mmd.dtype == out.loss.dtype == F64, "the MMD must be float64"
    assert Objective(k=15)(model, x).mmd.dtype == F64, "also behind a network in float32"


def test_the_gradient_passes_through_the_student_only():
    import copy
    net = Mixing()
    model, x, obj = IMM(net, OTFM()), points(24), Objective()
    draw, frozen = at(model, x, .1, .5, .6), copy.deepcopy(model)          # r > s: a teacher that jumps
    g = grads(obj(model, x, draw=draw).loss.mean(), model)
    assert torch.equal(g, grads(obj(model, x, draw=draw, teacher=frozen).loss.mean(), model)), "gradient: the teacher must get none"
    theta = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    def value(v):
        torch.nn.utils.vector_to_parameters(v, net.parameters())
        return obj(model, x, draw=draw, teacher=frozen).loss.mean().item()
    d = torch.randn(len(theta), dtype=F64, generator=gen(4))
    slope = (value(theta + 1e-5*d) - value(theta - 1e-5*d)) / 2e-5
    assert slope == pytest.approx((g @ d).item(), rel=1e-4), "gradient: it must agree with finite differences"


def test_one_particle_with_energy_is_a_consistency_loss():
    model, x, obj = IMM(Mixing(), OTFM()), points(24), Objective(k=9, M=1, kernel="energy")
    draw = obj.draw(model, x, gen(3))
    t, s, r = draw[:3]
    a, b = (v.view(-1, 1, 1, 1) for v in (t, r))
    y, z = model((1 - a)*x + a*draw.eps, t, s), model((1 - b)*x + b*draw.eps, r, s)
    want = [2 * plain_weight("OTFM()", 1, 4, v.item()) * d.item() for v, d in zip(t, (y - z).square().sum((1, 2, 3)))]
    assert torch.allclose(obj(model, x, draw=draw).loss, torch.tensor(want, dtype=F64), rtol=1e-8), "2 w ||y - z||²"


def test_three_particles_against_a_number():
    y = torch.tensor([[0, .1, .2, .3], [.4, .5, .6, .7], [.8, .9, 1, 1.1]], dtype=F64)
    z = y + torch.tensor([[.05, -.02, 0, .01], [0, .03, -.01, .02], [-.04, 0, .02, 0]], dtype=F64)
    model = IMM(nn.Identity(), OTFM(), "euler_fm")                     # its width for .85 to .05 is 2.5
    draw = at(model, torch.zeros(3, 4, 1, 1), .05, .5, .85, 3)
    got = Objective(M=3)(model, torch.zeros(3, 4, 1, 1), draw=draw, student=lambda *_: y, teacher=lambda *_: z).mmd.item()
    assert got == pytest.approx(.01859027172810226, rel=1e-6), "the value of Eq. 67 for three particles at w~ = 2.5"


# ---- labels, augmentation

@pytest.mark.parametrize("rule", ("clean", "dropped"))
def test_what_student_and_teacher_see(rule):
    notes, x, label = IMM(Notes(), OTFM()), points(400), torch.arange(400) % 10
    obj = Objective(label_drop=.5, teacher_label=rule)
    draw = obj.draw(notes, x, gen())
    obj(notes, x, label, draw)
    (_, _, student), (_, _, teacher) = notes.net.seen
    hidden = torch.where(draw.dropped, -1, label)
    assert not torch.equal(student, label), "labels: dropped labels must be hidden from the student"
    assert torch.equal(student[~draw.dropped], label[~draw.dropped]), "labels: each particle must keep its own label; they are not shared in a group"
    assert torch.equal(student, hidden), "labels: a dropped label is -1"
    assert torch.equal(teacher, label if rule == "clean" else hidden), f"labels: the teacher must see them {rule}"


def test_no_labels_are_null_labels():
    notes = IMM(Notes(), OTFM())
    Objective()(notes, points(8))
    assert all((seen[2] == -1).all() for seen in notes.net.seen), "labels: none given means null for both passes"


def test_augmentation_reaches_both_passes():
    heard = []
    def listening(x_t, t, s, label, augment): heard.append(augment); return x_t
    done, model = torch.randn(8, 9), IMM(Notes(), OTFM())
    Objective()(model, points(8), student=listening, teacher=listening, augment=done)
    assert len(heard) == 2 and heard[0] is heard[1] is done, "augmentation labels must reach student and teacher alike"


# ---- dropout

def test_student_and_teacher_have_the_same_masks():
    model, x = IMM(Dropping(), OTFM()).train(), points(64)
    draw = at(model, x, .2, .7, .7)
    assert Objective()(model, x, draw=draw).mmd.abs().max() < 1e-12, "masks: at r = t student and teacher do the same, so with the same masks the loss is 0"
    own = Objective()(model, x, draw=draw, teacher=lambda *a: (torch.manual_seed(77), model(*a))[1]).mmd
    assert own.mean() > .01, "with masks of their own the loss has a floor (or this test sees nothing)"


def test_masks_come_from_the_draw_and_leave_the_global_numbers_alone():
    model, x = IMM(Dropping(), OTFM()).train(), points(64)
    draw = at(model, x, .2, .5, .7)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = Objective()(model, x, draw=draw).mmd
    assert torch.equal(torch.get_rng_state(), before), "masks: the global random numbers must be left as they were"
    torch.manual_seed(4)
    assert torch.equal(first, Objective()(model, x, draw=draw).mmd), "masks: they must not depend on the global random numbers"
    assert not torch.equal(first, Objective()(model, x, draw=draw._replace(seed=1)).mmd), "masks: another seed in the draw, other masks"


def test_a_failing_network_leaves_the_global_numbers_alone():
    class Broken(nn.Module):
        def forward(self, x, t, u, label=None): torch.rand(5); raise RuntimeError("broken")
    model, before = IMM(Broken(), OTFM()).train(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        Objective()(model, points(8), generator=gen())
    assert torch.equal(torch.get_rng_state(), before), "masks: also after an error the global random numbers must be as before"


# ---- progress, settings, other students

def test_progress_moves_k_and_the_diagonal():
    obj = Objective(k=(7, 10), estimator=(1, 0))
    seen = []
    for obj.progress in (0, .4, .8, 1):
        seen.append((obj.now(obj.k), obj.now(obj.estimator), obj.r(PIXELS, .006, .6).item()))
    assert [v[0] for v in seen] == [7, 8.5, 10, 10], "k moves in a straight line until 80 % of the training, then stays"
    assert [v[1] for v in seen] == pytest.approx([1, .5, 0, 0]), "and so does the weight of the diagonal"
    assert seen[0][2] < seen[1][2] < seen[2][2] == seen[3][2], "r must follow the moving k"
    assert seen[0][2] == Objective(7).r(PIXELS, .006, .6).item() and seen[2][2] == Objective(10).r(PIXELS, .006, .6).item(), "r at both ends"
    model, x = IMM(Mixing(), OTFM()), points(8)
    draw = at(model, x, .1, .5, .6)
    assert torch.allclose(obj(model, x, draw=draw).mmd, Objective(estimator="u")(model, x, draw=draw).mmd), "at the end the diagonal is gone"
    obj.progress = 0.
    assert torch.allclose(obj(model, x, draw=draw).mmd, Objective()(model, x, draw=draw).mmd), "at the start it is the V-statistic"


@pytest.mark.parametrize("obj", (Objective(), Objective(k=(7, 10), times="lognormal", estimator=(1, .3), gap=1e-4), Objective(M=1)), ids=repr)
def test_repr_rebuilds_the_objective(obj):
    assert vars(eval(repr(obj))) == vars(obj), "repr must be the call that makes it"
    obj.progress = .7
    assert "progress" not in obj.settings() and "progress" not in repr(obj), "progress is a state, not a setting"
    assert Objective(**obj.settings()).settings() == obj.settings(), "settings must be what it takes to make it again"
    assert obj.as_trained(PIXELS) is PIXELS, "IMM's samplers take the model as it is"


def test_another_student_gives_the_same_loss():
    model, x, obj = IMM(Mixing(), OTFM()), points(16), Objective()
    draw, calls = obj.draw(model, x, gen()), []
    def wrapped(*a): calls.append(1); return model(*a)
    plain, other = obj(model, x, draw=draw), obj(model, x, draw=draw, student=wrapped)
    assert torch.equal(plain.loss, other.loss) and len(calls) == 1, "`student` is called once, in place of the model, and not for the teacher"


# ---- refusals

@pytest.mark.parametrize("kw, said", [
    (dict(k=0), "k must be a positive number"), (dict(k=math.inf), "k must be a positive number"), (dict(k=True), "k must be"),
    (dict(k=(7, 0)), "k must be"), (dict(k=(7, 8, 9)), "k must be"),
    (dict(mapping="sigma"), "mapping must be one of eta, t, log_snr, inv_eta, edm; got 'sigma'"),
    (dict(a=-1), "a must be a number from 0 up"), (dict(b=math.nan), "b must be a number"), (dict(b="5"), "b must be a number"),
    (dict(M=2.5), "M must be a whole number from 1 up; got 2.5"), (dict(M=0), "M must be a whole number"), (dict(M=True), "M must be"),
    (dict(kernel="gauss"), "kernel must be one of laplace, rbf, energy, pseudo_huber, or a function"),
    (dict(estimator="w"), "estimator must be 'v', 'u', or"), (dict(estimator=1.5), "estimator must be"), (dict(estimator=(1, -.1)), "estimator must be"),
    (dict(estimator=("v", "u")), "estimator must be"), (dict(estimator=(1, "u")), "estimator must be"),
    (dict(M=1, estimator="u"), "M = 1 has none"), (dict(M=1, estimator=0), "M = 1 has none"), (dict(M=1, estimator=(1, 0)), "M = 1 has none"),
    (dict(gap=-.1), r"gap must be a time difference in \[0, 1\); got -0.1"), (dict(gap=1), "gap must be"),
    (dict(times="normal"), "times must be one of uniform, lognormal; got 'normal'"),
    (dict(label_drop=10), r"label_drop must be a share in \[0, 1\]; got 10"), (dict(teacher_label="none"), "teacher_label must be 'clean' or 'dropped'")],
    ids=lambda v: str(v)[:40])
def test_settings_that_cannot_be_meant(kw, said):
    with pytest.raises(ValueError, match=said):
        Objective(**kw)


def test_batches_and_draws_that_do_not_fit():
    obj, model, x = Objective(), IMM(Mixing(), OTFM()), points(8)
    with pytest.raises(ValueError, match="a batch of 10 cannot be split into groups of M = 4; use 8 or 12 samples"):
        obj(model, points(10))
    with pytest.raises(ValueError, match="use 4 samples"):
        obj(model, points(3))
    with pytest.raises(ValueError, match="a batch of 0 cannot"):
        obj.draw(model, points(8)[:0])
    with pytest.raises(ValueError, match=r"draw is for samples \[4, 3, 1, 1\] in 1 groups"):
        obj(model, x, draw=obj.draw(model, points(4)))
    with pytest.raises(ValueError, match="in groups of 4"):
        obj(model, x, draw=Objective(M=2).draw(model, x))
    with pytest.raises(TypeError, match="turn images into floats"):
        obj(model, x.to(torch.uint8))


def test_labels_and_times_that_cannot_be_meant():
    obj, x = Objective(), points(8)
    with pytest.raises(ValueError, match="knows no classes"):
        obj(IMM(Mixing(), OTFM()), x, torch.arange(8))
    with pytest.raises(ValueError, match=r"label has shape \[5\]; give one for each of 8 samples"):
        obj(IMM(Notes(), OTFM()), x, torch.arange(5))
    with pytest.raises(ValueError, match=r"label must lie in 0 ... 9"):
        obj(IMM(Notes(), OTFM()), x, torch.full((8,), 10))
    with pytest.raises(ValueError, match="infinite for eps = 0.0, T = 0.994; build"):
        Objective(mapping="log_snr").r(LATENTS, .1, .5)
    with pytest.raises(ValueError, match="s must not exceed t"):
        obj.r(PIXELS, .7, .5)
    with pytest.raises(ValueError, match="t must lie in"):
        obj.r(PIXELS, .1, .999)
    with pytest.raises(TypeError, match="times are float64"):
        obj.r(PIXELS, torch.tensor(.1), torch.tensor(.5))


# ---- the loss as a whole, last: what nothing above has noticed

def test_parts_give_the_whole():
    model, x, obj = IMM(Mixing(), OTFM()), points(24), Objective(k=9)
    draw = obj.draw(model, x, gen(7))
    whole = obj(model, x, draw=draw).loss
    parts = [obj(model, x[p], draw=draw.part(p)).loss for p in (slice(0, 12), slice(12, 16), slice(16, None))]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-12), "parts of a batch must give the numbers of the whole"
    assert len({draw.part(slice(i, i + 4)).seed for i in range(0, 24, 4)}) == 6, "parts must not share a dropout seed"


def plain_loss(model, net, x, draw, M, kernel, diagonal, a, b, label=None, teacher_label="clean"):
    "Every group by loops, from closed forms; float64"
    flow, param, second = repr(model.flow), repr(model.param), model.second_time
    sd, losses, mmds = model.sigma_d, [], []
    def al(t): return 1 - t if flow == "OTFM()" else math.cos(math.pi*t/2)
    def si(t): return t if flow == "OTFM()" else math.sin(math.pi*t/2)
    def c_out(s, t):
        wedge = al(s)*si(t) - si(s)*al(t)
        return dict(identity=wedge/si(t), simple_edm=-sd*wedge/math.hypot(al(t), si(t)), euler_fm=-sd*(t - s))[param]
    def c_skip(s, t):
        return dict(identity=si(s)/si(t), simple_edm=(al(s)*al(t) + si(s)*si(t))/(al(t)**2 + si(t)**2), euler_fm=1.)[param]
    def jump(xt, t, s, lab):
        u = s if second == "s" else t - s
        G = net(xt[None] / (sd*math.hypot(al(t), si(t))), torch.tensor([1000*t], dtype=F64), torch.tensor([1000*u], dtype=F64),
                None if lab is None else torch.tensor([lab]))[0]
        return c_skip(s, t)*xt + c_out(s, t)*G
    for g, (t, s, r) in enumerate(zip(*(v.tolist() for v in draw[:3]))):
        y, z = [], []
        for j in range(g*M, g*M + M):
            lab = None if label is None else int(label[j])
            hidden = -1 if lab is not None and draw.dropped[j] else lab
            y.append(jump(al(t)*x[j] + si(t)*draw.eps[j], t, s, hidden))
            z.append(jump(al(r)*x[j] + si(r)*draw.eps[j], r, s, lab if teacher_label == "clean" else hidden).detach())
        D, w = x[0].numel(), 1 / abs(c_out(s, t))
        def k(p, q):
            d2 = ((p - q)**2).sum()
            if kernel == "laplace": return torch.exp(-w * d2.clamp_min(1e-16).sqrt() / D)
            if kernel == "rbf": return torch.exp(-w * d2 / (2*D))
            if kernel == "energy": return -d2
            c = .00054 * D**.5
            return c - (d2 + c*c).sqrt()
        total = norm = 0.
        for j in range(M):
            for l in range(M):
                count = diagonal if j == l else 1.
                total, norm = total + count * (k(y[j], y[l]) + k(z[j], z[l]) - 2*k(y[j], z[l])), norm + count
        mmds.append(total / norm)
        losses.append(plain_weight(flow, a, b, t) * total / norm)
    return torch.stack(losses), torch.stack(mmds)


SETTINGS = [
    (OTFM(), "simple_edm", "s", {}),
    (OTFM(), "euler_fm", "t-s", dict(a=2, b=5, gap=1e-2)),
    (OTFM(), "identity", "s", dict(kernel="rbf", mapping="t")),
    (Cosine(), "simple_edm", "t-s", dict(kernel="pseudo_huber", mapping="log_snr")),
    (Cosine(), "identity", "s", dict(kernel="energy", mapping="inv_eta", k=10.5)),
    (OTFM(), "simple_edm", "s", dict(estimator="u", mapping="edm")),
    (OTFM(), "simple_edm", "s", dict(estimator=.3, M=3, times="lognormal")),
    (OTFM(), "euler_fm", "s", dict(M=1)),
    (Cosine(), "simple_edm", "s", dict(M=6, estimator=(1, .4), k=(8, 12))),
]


@pytest.mark.parametrize("flow, param, second, kw", SETTINGS, ids=lambda v: str(v))
def test_loss_is_the_formula(flow, param, second, kw):
    net = Mixing()
    model, x, obj = IMM(net, flow, param, second_time=second), points(12), Objective(**{"k": 10, **kw})
    obj.progress = .4                                                    # moves pairs half of the way
    draw = obj.draw(model, x, gen(2))
    assert (draw.r > draw.s).any(), "this test needs a teacher that jumps: where r = s it is the data, and no mistake of it would show"
    diagonal = {"v": 1., "u": 0., (1, .4): .7}.get(obj.estimator, obj.estimator)
    loss, mmd = plain_loss(model, net, x, draw, obj.M, obj.kernel, diagonal, obj.a, obj.b)
    out = obj(model, x, draw=draw)
    assert torch.allclose(out.mmd, mmd, rtol=1e-6, atol=1e-12), "MMD of a group: width, norm, estimator or noise differ from Eq. 67"
    assert torch.allclose(out.loss, loss, rtol=1e-6, atol=1e-12), "the weight in front differs from Eq. 13"
    assert torch.allclose(grads(out.loss.mean(), net), grads(loss.mean(), net), rtol=1e-5, atol=1e-10), "the gradient differs"
    assert all(torch.equal(a, b) for a, b in zip((out.t, out.s, out.r), draw[:3])), "the times come back with the loss"


@pytest.mark.parametrize("rule", ("clean", "dropped"))
def test_loss_with_labels_is_the_formula(rule):
    net = Mixing(classes=4)
    model, x, label = IMM(net, OTFM()), points(24), torch.arange(24) % 4
    obj = Objective(k=10, label_drop=.5, teacher_label=rule)
    draw = obj.draw(model, x, gen(2))
    loss, _ = plain_loss(model, net, x, draw, 4, "laplace", 1., 1, 4, label, rule)
    assert torch.allclose(obj(model, x, label, draw).loss, loss, rtol=1e-6), f"the loss with labels (teacher: {rule}) differs from the formula; where the loss without labels differs too, labels are not to blame"


