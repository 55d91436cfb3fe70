"Flow matching and consistency training against their definitions, and their samplers against exact models."
import math

import pytest
import torch
from torch import nn

from imm_edu.exact import Mixture
from imm_edu.flow import OTFM, Cosine
from imm_edu.neighbours import GMMN, Consistency, Drifting, Euler, FlowMatching, MeanFlow, ToEnd, drift
from imm_edu.objective import Draw, Objective
from imm_edu.precond import IMM, GaussianNet
from imm_edu.sample import grid, pushforward, sample

otfm, cosine = OTFM(), Cosine()


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def points(n, std=.5, seed=0): return std*randn(n, 4, 1, 1, seed=seed)


class Mixing(nn.Module):
    "Some network in float64 that knows nothing"
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(.3*randn(4, 6, seed=5))

    def forward(self, x, t, u, label=None):
        seen = torch.cat([x.flatten(1), torch.stack([t, u], 1)/1000], 1)
        return torch.tanh(seen @ self.weight.T).view_as(x)


class Spy(nn.Module):
    "Writes down what it is asked"
    classes = 10

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, u, label): self.seen.append((t/1000, u/1000, label)); return torch.zeros_like(x)


class Waves(nn.Module):
    "Some network with two times, ten classes, and a number on augmentation"
    classes, augment = 10, 1
    def forward(self, x, t, u, label, done=0): return torch.sin(3*x + (t - .5*u + label)[:, None]/300 + done)


class Denoiser(GaussianNet):
    "The network whose guess is the posterior mean of Gaussian data"
    def transport(self, x_t, t, s):
        f, shape = self.flow, (-1,) + (1,)*(x_t.dim() - 1)
        keeps = (f.alpha(s)*f.alpha(t)*self.std**2 + f.sigma(s)*f.sigma(t)*self.sigma_d**2) / self.spread(t)**2
        alpha_s, alpha_t, keeps = (v.reshape(shape) for v in (f.alpha(s), f.alpha(t), keeps))
        return alpha_s*self.mean + keeps*(x_t - alpha_t*self.mean)


def slope(loss, model): return torch.cat([g.flatten() for g in torch.autograd.grad(loss.mean(), model.parameters())])


# ---- flow matching

TARGETS = dict(euler_fm=lambda x, eps, t: (eps - x) / .5, identity=lambda x, eps, t: x,
               simple_edm=lambda x, eps, t: ((1 - t)*eps - t*x) / (.5*((1 - t)**2 + t**2).sqrt()))


@pytest.mark.parametrize("name", TARGETS)
def test_textbook_flow_matching(name):
    model, x = IMM(Mixing(), otfm, name), points(12)
    draw = FlowMatching().draw(model, x, torch.Generator().manual_seed(1))
    t = draw.t.view(-1, 1, 1, 1)
    G = model.G((1 - t)*x + t*draw.eps, draw.t, draw.s)
    if name == "identity":      # lands on x_eps and not on x; the part of the noise in it is known to the parameterisation
        target = x
    else: target = TARGETS[name](x, draw.eps, t)
    plain, ours = (G - target).square().mean((1, 2, 3)), FlowMatching()(model, x, draw=draw).loss
    assert torch.allclose(ours, plain, rtol=1e-7), "the loss is the mean squared error of the network's output"
    assert torch.allclose(slope(ours, model), slope(plain, model), rtol=1e-6, atol=1e-11), "and so is its gradient"


def test_flow_matching_asks_the_network_once():
    model = IMM(Spy(), otfm)
    FlowMatching()(model, points(8), torch.arange(8))
    (t, s, label), = model.net.seen
    assert torch.allclose(s, torch.full_like(s, model.eps)), "every jump ends at the smallest time"
    FlowMatching()(model, points(8), torch.arange(8), teacher=lambda *a, **k: pytest.fail("the data teach"))


def test_a_teacher_would_say_what_the_data_say():
    model, x = IMM(Mixing(), otfm), points(12)
    draw, obj = FlowMatching().draw(model, x), FlowMatching()
    assert torch.equal(draw.r, draw.s), "the teacher starts where it lands"
    asked, ours = Objective.__call__(obj, model, x, draw=draw), obj(model, x, draw=draw)
    assert torch.allclose(asked.mmd, ours.mmd, rtol=1e-9), "a teacher at r = s says x_s"


@pytest.mark.parametrize("flow, name", [(otfm, "euler_fm"), (otfm, "identity"), (cosine, "simple_edm")])
@pytest.mark.parametrize("t", [.1, .5, .9])
def test_the_perfect_denoiser_leaves_what_cannot_be_known(flow, name, t):
    model, x = IMM(Denoiser(flow, name, std=.4), flow, name), points(20_000, std=.4)
    T = torch.full((20_000,), t, dtype=torch.float64)
    s = torch.full_like(T, model.eps)
    draw = Draw(T, s, s, points(20_000, seed=1), torch.zeros(20_000, dtype=bool), 0)
    loss = FlowMatching()(model, x, draw=draw).loss
    spread = math.hypot(flow.alpha(T[0])*.4, flow.sigma(T[0])*.5)
    want = (.4 * .5 * flow.wedge(s[0], T[0]) / spread)**2 / model.param.c_out(flow, s[0], T[0])**2
    assert abs(loss.mean() - want) < 4.5*loss.std()/len(loss)**.5, "the loss of the posterior mean is the variance around it"


# ---- consistency training

def test_consistency_loss_as_defined():
    model, x, obj = IMM(Mixing(), otfm, "euler_fm"), points(12), Consistency(5)
    t, s, r = (draw := obj.draw(model, x))[:3]
    assert torch.equal(s, torch.full_like(s, model.eps)), "every jump ends at the smallest time"
    y, z = (model((1 - v.view(-1, 1, 1, 1))*x + v.view(-1, 1, 1, 1)*draw.eps, v, model.eps) for v in (t, r))
    z, c = z.detach(), .00054 * 4**.5
    huber = ((y - z).square().sum((1, 2, 3)) + c*c).sqrt() - c
    plain, ours = huber / (.5*(t/(1 - t) - r/(1 - r))), obj(model, x, draw=draw).loss
    assert torch.allclose(ours, plain, rtol=1e-6), "pseudo-Huber distance over the step in noise level"
    assert torch.allclose(slope(ours, model), slope(plain, model), rtol=1e-5, atol=1e-10), "the teacher is constant"


@pytest.mark.parametrize("N", [10, 1280])
def test_steps_of_improved_consistency_training(N):
    eps, T = (otfm.eta_inv(torch.tensor(v, dtype=torch.float64)).item() for v in (.004, 160.))
    model = IMM(nn.Identity(), otfm, eps=eps, T=T)
    sigma = torch.linspace(.002**(1/7), 80**(1/7), N + 1, dtype=torch.float64)**7
    r = Consistency(math.log2(N)).r(model, eps, otfm.eta_inv(2*sigma[1:]).clamp_max(T))
    assert torch.allclose(otfm.eta(r)/2, sigma[:-1], rtol=1e-5), f"each of {N} noise levels is taught by the next"


def test_the_number_of_steps_grows():
    obj, model = Consistency(), IMM(nn.Identity(), otfm)
    gaps = []
    for obj.progress in (0., .4, .9): gaps.append(.9 - obj.r(model, model.eps, .9).item())
    assert gaps[0] > gaps[1] > gaps[2] > 0, "steps become shorter as training goes on"
    assert round(2**obj.k[0]) == 10 and round(2**obj.k[1]) in (1278, 1279, 1280), "from 10 to 1280 of them"


def test_consistency_shares_dropout_masks():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(.5)
        def forward(self, x, t, u, label=None): return self.drop(self.weight*x)

    model, x, obj = IMM(Dropping(), otfm).train(), points(64).float(), Consistency()
    t = torch.full((64,), .7, dtype=torch.float64)
    draw = obj.draw(model, x)._replace(t=t + 1e-9, s=torch.full_like(t, model.eps), r=t)
    assert obj(model, x, draw=draw).mmd.abs().max() < 1e-6, "student and teacher must have the same mask"


# ---- both

@pytest.mark.parametrize("obj", [FlowMatching(), Consistency(9)], ids=lambda o: type(o).__name__)
def test_each_sample_counts_by_itself(obj):
    model, x, order = IMM(Mixing(), otfm), points(24), torch.randperm(24, generator=torch.Generator().manual_seed(2))
    draw = obj.draw(model, x)
    whole = obj(model, x, draw=draw).loss
    mixed = Draw(*(v[order] for v in draw[:5]), draw.seed)
    assert torch.allclose(obj(model, x[order], draw=mixed).loss, whole[order], rtol=1e-9), "order must not matter"
    halves = [obj(model, x[i], draw=draw.part(i)).loss for i in (slice(0, 9), slice(9, 24))]
    assert torch.allclose(torch.cat(halves), whole, rtol=1e-9), "two parts must give the numbers of the whole"


@pytest.mark.parametrize("obj, passes", [(FlowMatching(label_drop=.5), 1), (Consistency(label_drop=.5), 2)])
@pytest.mark.parametrize("label", [torch.arange(40) % 10, None, torch.full((40,), -1)], ids=["classes", "none", "null"])
def test_labels_and_their_drops(obj, passes, label):
    model = IMM(Spy(), otfm)
    obj(model, points(40), label, draw := obj.draw(model, points(40), torch.Generator().manual_seed(0)))
    want = torch.full((40,), -1) if label is None else torch.where(draw.dropped, -1, label)
    assert 5 < draw.dropped.sum() < 35, "half of the labels are dropped, one by one"
    assert len(model.net.seen) == passes, "one pass of flow matching, two of consistency training"
    assert all(torch.equal(seen, want) for *_, seen in model.net.seen), "both passes see the same label"


@pytest.mark.parametrize("obj", [FlowMatching("lognormal"), FlowMatching(label_drop=0.), Consistency(9, gap=1e-4), Consistency(), Consistency(mapping="eta", times="lognormal"), MeanFlow(.25), GMMN(8, 4.), Drifting(16)], ids=repr)
def test_settings_rebuild_the_objective(obj):
    again = eval(repr(obj))
    assert type(again) is type(obj) and vars(again) == vars(obj), "repr is the call that makes it"
    settings = dict(obj.settings())
    assert settings.pop("kind") == type(obj).__name__, "settings say which objective it is"
    assert type(obj)(**settings).settings() == obj.settings(), "settings are what it is made with, so that a run can be continued"
    assert "kind" not in Objective().settings(), "a plain objective has no kind"


@pytest.mark.parametrize("bad, kind, says", [
    (lambda: FlowMatching("normal"), ValueError, "times must be one of uniform, lognormal; got 'normal'"),
    (lambda: FlowMatching(M=4), TypeError, "unexpected keyword argument 'M'"),
    (lambda: FlowMatching(label_drop=2), ValueError, "label_drop must be a share"),
    (lambda: Consistency(k=0), ValueError, "k must be a positive number"),
    (lambda: Consistency(mapping="log"), ValueError, "mapping must be one of"),
    (lambda: Consistency(gap=-1), ValueError, "gap must be a time difference")])
def test_what_the_constructors_refuse(bad, kind, says):
    with pytest.raises(kind, match=says): bad()


def test_as_trained():
    model = IMM(Waves(), otfm)
    assert type(FlowMatching().as_trained(model)) is Euler, "a denoiser walks by Euler's steps"
    assert type(Consistency().as_trained(model)) is ToEnd, "consistency training teaches jumps to the end"
    assert Objective().as_trained(model) is model, "IMM's jumps go anywhere"


@pytest.mark.parametrize("kind", [Euler, ToEnd])
def test_network_and_settings_are_shared(kind):
    model = IMM(Waves(), otfm, "euler_fm", "t-s", .4, .01, .9, 500.).eval()
    other = kind(model)
    assert other.net is model.net and not other.training and not model.training, "same network, mode left as it was"
    assert other.extra_repr() == model.extra_repr() and other.time_scale == 500., "same settings"
    with pytest.raises(TypeError, match="model must be an IMM; got Identity"): kind(nn.Identity())


# ---- Euler

@pytest.mark.parametrize("t, s", [(.9, .7), (.5, .006), (.3, .3)])
@pytest.mark.parametrize("w, done", [(1., None), (2., None), (1., torch.ones(20, 1))])
def test_a_step_of_euler(t, s, w, done):
    model, x, label = IMM(Waves(), otfm, "euler_fm", "t-s"), .5*randn(20, 3), torch.arange(20) % 10
    velocity = .5*model.G(x, t, model.eps, label, w, done)
    assert torch.allclose(Euler(model)(x, t, s, label, w, done), x + (s - t)*velocity, atol=1e-9), "x + (s - t) v, with guidance and augmentation labels"


@pytest.mark.parametrize("flow, param", [(otfm, "identity"), (otfm, "simple_edm"), (otfm, "euler_fm"), (cosine, "identity"), (cosine, "simple_edm")])
@pytest.mark.parametrize("second", ["s", "t-s"])
@pytest.mark.parametrize("name, steps", [("uniform", 1), ("uniform", 7), ("edm", 5)])
def test_a_perfect_denoiser_multiplies_by_the_product(flow, param, second, name, steps):
    model, x = IMM(Denoiser(flow, param, second, mean=.3, std=.4), flow, param, second), .5*randn(20, 3)
    times, factor = grid(name, steps, model), 1.
    a, b = flow.alpha, flow.sigma
    for t, s in zip(times, times[1:]): factor *= (a(s)*a(t)*.16 + b(s)*b(t)*.25) / ((a(t)*.4)**2 + (b(t)*.5)**2)
    *_, y = pushforward(Euler(model), x, times)
    assert torch.allclose(y, .3*a(times[-1]) + factor*(x - .3*a(times[0])), atol=1e-8), "covariance over variance, step by step"


class PosteriorMean(nn.Module):
    "Euler-FM's output whose guess, at eps = 0, is the posterior mean of a mixture"
    def __init__(self, law):
        super().__init__()
        self.law = law

    def forward(self, x, t, u, label=None):
        t = t[0].item()/1000
        x_t = x * .5*math.hypot(t, 1 - t)
        return (x_t - self.law.denoise(x_t, 1 - t, t)) / (.5*t)


def test_euler_with_an_exact_denoiser():
    law = Mixture([.3, .5, .2], [-.6, .05, .775], [.1, .18, .09])
    model, x = Euler(IMM(PosteriorMean(law), otfm, "euler_fm", eps=0.)), law.noised(.006, .994).quantile((torch.arange(100) + .5).double()/100)
    assert torch.allclose(model(x, .8, .3), otfm.ddim(x, law.denoise(x, .2, .8), s=.3, t=.8), atol=1e-9), "a step is DDIM with the guess"
    exact = law.jump(x, (.006, .994), (1., 0.))
    def after(n): *_, y = pushforward(model, x, grid("uniform", n, model)); return y
    assert (after(1) - (law.weights*law.means).sum()).abs().max() < .02, "one step lands on the mean of the data"
    off = [(after(n) - exact).abs().mean() for n in (64, 128)]
    assert .45 < off[1]/off[0] < .55, "twice the steps halve the distance from the exact jump"
    assert (2*after(128) - after(64) - exact).abs().mean() < off[1]/5, "and the limit is the exact jump"


def test_euler_keeps_the_rules_of_time():
    model = Euler(IMM(Waves(), otfm))
    x, label = .5*randn(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match="s must not exceed t"): model(x, .2, .5, label)
    with pytest.raises(ValueError, match=r"s must lie in \[0.006, 0.994\]"): model(x, .5, 0., label)


# ---- ToEnd

class OnlyEnd(GaussianNet):
    "Makes every jump as if it were one to the end"
    config, classes = dict(size=8, channels=3), 10
    def transport(self, x_t, t, s): return super().transport(x_t, t, torch.full_like(s, .006))


def test_restarts_ask_for_jumps_to_the_end_only():
    model = IMM(OnlyEnd(otfm, mean=-.2, std=.3), otfm)
    x, astray = sample(ToEnd(model), 100, steps=4), sample(model, 100, steps=4)
    assert abs(x.mean() - .4) < .004 and abs(x.std() - .15) < .004, "restarts give the data's brightness and contrast"
    assert abs(astray.mean() - .4) > .05, "a pushforward goes astray"
    assert torch.equal(x, sample(model, 100, steps=4, sampler="restart")), "the same as asking for restarts by name"
    assert torch.equal(sample(ToEnd(model), 9, steps=1), sample(model, 9, steps=1)), "one jump goes to the end in any case"


def test_other_destinations_are_refused():
    model = ToEnd(IMM(OnlyEnd(otfm), otfm))
    with pytest.raises(ValueError, match="jump to eps = 0.006 only"): sample(model, 9, sampler="pushforward")
    with pytest.raises(ValueError, match="use sampler='restart'"): model(randn(4, 3), .5, torch.full((4,), .1, dtype=torch.float64))
    mixed = torch.tensor([.006, .006, .1, .006], dtype=torch.float64)
    with pytest.raises(ValueError, match="only"): model(randn(4, 3), .5, mixed)
    assert model(randn(4, 3), .5, .006).shape == (4, 3), "the end is fine"


# ---- MeanFlow

def test_meanflow_where_s_is_t_is_flow_matching():
    model, x, obj = IMM(Mixing(), otfm, "euler_fm"), points(12), MeanFlow(share=1.)
    draw = obj.draw(model, x)
    assert torch.equal(draw.s, draw.t)
    G = model.G(otfm.interpolate(x, draw.eps, draw.t), draw.t, draw.t)
    assert torch.allclose(obj(model, x, draw=draw).mmd, (.5*G - (draw.eps - x)).square().sum((1, 2, 3)), rtol=1e-9)


def test_meanflow_by_differences():
    model, x, obj = IMM(Mixing(), otfm, "euler_fm"), points(12), MeanFlow(share=.25)
    draw = obj.draw(model, x)
    t, s, v = draw.t, draw.s, draw.eps - x
    def u(e):
        e = torch.where(s < t, e, 0.).double()                  # where s = t there is nothing to differentiate
        return .5*model.G(otfm.interpolate(x, draw.eps, t) + e.view(-1, 1, 1, 1)*v, t + e, s)
    target = (v - (t - s).view(-1, 1, 1, 1) * (u(1e-6) - u(-1e-6)) / 2e-6).detach()
    off, ours = (u(0.) - target).square().sum((1, 2, 3)), obj(model, x, draw=draw)
    assert torch.allclose(ours.mmd, off, rtol=1e-6), "the derivative along the line, by central differences"
    assert torch.allclose(slope(ours.loss, model), slope(off / (off.detach() + 1e-3), model), rtol=1e-5, atol=1e-9), "the target is constant"
    assert (draw.s == draw.t).sum() == 3 and (draw.s < draw.t).sum() == 9, "a quarter of the batch has s = t"


def test_the_exact_mean_velocity_is_its_own_target_on_average():
    model = IMM(GaussianNet(otfm, "euler_fm", std=.3), otfm, "euler_fm")
    x, eps, t = points(20_000, .3), points(20_000, seed=1), torch.full((20_000,), .7, dtype=torch.float64)
    s, x_t = torch.full_like(t, .2), otfm.interpolate(x, eps, t)
    exact = .5*model.G(x_t, t, s)
    for scale, minimum in ((.9, False), (1., True), (1.1, False)):
        _, turn = torch.func.jvp(lambda x, t: scale*.5*model.G(x, t, s), (x_t, t), (eps - x, torch.ones_like(t)))
        residual = ((exact*scale - (eps - x) + .5*turn) * exact).flatten(1).sum(1)
        far = abs(residual.mean()) > 4.5*residual.std() / len(residual)**.5
        assert far != minimum, "only the exact velocity has no slope left"


# ---- sets from noise

def test_sets_are_made_from_noise_in_one_jump():
    model, x = IMM(Spy(), otfm), points(16)
    for obj in (GMMN(8, label_drop=.5), Drifting(8)):
        model.net.seen.clear()
        draw = obj.draw(model, x)
        found = obj(model, x, torch.arange(16) % 10, draw)
        (t, s, label), = model.net.seen
        assert torch.allclose(t, torch.full_like(t, model.T)) and torch.allclose(s, torch.full_like(s, model.eps)), "one pass, from T to eps"
        assert found.loss.shape == (2,) and torch.equal(label, torch.where(draw.dropped, -1, torch.arange(16) % 10))


def test_gmmn_of_two_points_each():
    y, x = torch.tensor([[[0.], [1.]]], dtype=torch.float64), torch.tensor([[[0.], [3.]]], dtype=torch.float64)
    k = lambda d: math.exp(-2*d)
    want = (2 + 2*k(1)) / 4 + (2 + 2*k(3)) / 4 - 2*(1 + k(3) + k(1) + k(2)) / 4
    assert GMMN(2).compare(y, x).item() == pytest.approx(want, rel=1e-6)


def test_drift_by_loops():
    y, x = randn(2, 5, 3), randn(2, 5, 3, seed=1)
    V = drift(y, x, 2.)
    for g in range(2):
        for i in range(5):
            p = torch.stack([torch.exp(-2*(y[g, i] - x[g, j]).norm()/3) for j in range(5)])
            q = torch.stack([torch.exp(-2*(y[g, i] - y[g, j]).norm()/3) * (i != j) for j in range(5)])
            assert torch.allclose(V[g, i], p @ x[g] / p.sum() - q @ y[g] / q.sum(), atol=1e-6)
    y.requires_grad_()
    Drifting(5).compare(y, x).sum().backward()
    assert torch.allclose(y.grad, -2*V/5, atol=1e-6), "the gradient is the drift, turned round"


def test_samples_that_are_right_do_not_drift():
    V = drift(randn(400, 16, 2), randn(400, 16, 2, seed=1), 2.).mean((0, 1))
    away = drift(randn(400, 16, 2) + .5, randn(400, 16, 2, seed=1), 2.).mean((0, 1))
    assert V.abs().max() < .04 and (away < -.3).all(), "back to the data, and no farther"


def test_what_the_new_ones_refuse():
    with pytest.raises(ValueError, match="share must lie in"): MeanFlow(share=2.)
    with pytest.raises(ValueError, match="MeanFlow needs a model with param='euler_fm'; got simple_edm"): MeanFlow()(IMM(Mixing(), otfm), points(4))
    model = IMM(Mixing(), otfm, "euler_fm")
    assert MeanFlow()(model, points(4), student=model).loss.shape == (4,)
    with pytest.raises(ValueError, match="train it in one process, and with compile=False"): MeanFlow()(model, points(4), student=lambda *a: 0)
    with pytest.raises(ValueError, match="must be a multiple|groups of M"): GMMN(64)(IMM(Mixing(), otfm), points(12))


@pytest.mark.parametrize("obj", [MeanFlow(), GMMN(4), Drifting(4)], ids=repr)
def test_dropout_masks_are_those_of_the_draw(obj):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(.5)
        def forward(self, x, t, u, label=None): return self.drop(self.weight*x)

    model, x = IMM(Dropping(), otfm, "euler_fm").train(), points(16).float()
    draw = obj.draw(model, x)
    a, b, c = (obj(model, x, draw=d).mmd for d in (draw, draw, draw._replace(seed=draw.seed + 1)))
    assert torch.equal(a, b) and not torch.equal(a, c), "the same draw, the same masks: a run that was stopped goes on as if it had not been"
