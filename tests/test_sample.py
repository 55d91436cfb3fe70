"Grids against the paper's numbers, samplers against models that are right, and images that do not depend on their batch."
import math

import pytest
import torch
from torch import nn

from imm_edu.exact import Mixture
from imm_edu.flow import OTFM, Cosine
from imm_edu.precond import IMM, GaussianNet
from imm_edu.sample import GRIDS, SAMPLERS, edm_grid, grid, image_noise, image_shape, pushforward, restart, points, sample, walk

otfm, cosine = OTFM(), Cosine()
COMBOS = [(flow, param, second) for flow, param in ((otfm, "identity"), (otfm, "simple_edm"), (otfm, "euler_fm"), (cosine, "identity"), (cosine, "simple_edm"))
          for second in ("s", "t-s")]


def gaussian(flow=otfm, param="simple_edm", second="s", mean=.3, std=.4, **wrap):
    return IMM(GaussianNet(flow, param, second, mean=mean, std=std), flow, param, second, **wrap)


def model(flow=otfm, eps=0., T=.994):
    return gaussian(flow, eps=eps, T=T)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def last(steps):
    *_, x = steps
    return x


class Small(nn.Module):
    "A network with weights, labels and dropout"
    config, classes = dict(size=4, channels=1), 10

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.scale, self.drop = nn.Embedding(11, 1), nn.Dropout(.5)

    def forward(self, x, t, u, label): return self.drop(x * self.scale(label % 11)[..., None, None])


# ---- grids

class Probe(IMM):
    "Writes down what it is given, and stays where it is"
    def forward(self, x_t, t, s, label=None, guidance=1.):
        self.given = x_t
        return x_t


def test_sampling_starts_from_noise_with_the_standard_deviation_of_the_data():
    net = torch.nn.Linear(1, 1)
    net.config = dict(size=8, channels=1)
    for sigma_d in (.5, .25):
        probe = Probe(net, OTFM(), sigma_d=sigma_d)
        sample(probe, 40, steps=1)
        assert abs(probe.given.std() / sigma_d - 1) < .1, f"the noise must have standard deviation sigma_d = {sigma_d}; it has {probe.given.std():.3f}"


@pytest.mark.parametrize("name, steps, times", [
    ("uniform", 8, (.994, .86975, .7455, .62125, .497, .37275, .2485, .12425, 0.)),
    ("uniform", 2, (.994, .497, 0.)),
    ("uniform", 1, (.994, 0.)),
    ("edm", 4, (.994, .956736, .564132, .010010, 0.)),
    ("eta", 2, (.994, .583333, 0.)),
    ("eta", 1, (.994, 0.))])
def test_grids_of_the_paper(name, steps, times):
    t = grid(name, steps, model())
    assert t.dtype == torch.float64, "times are float64"
    assert torch.allclose(t, torch.tensor(times, dtype=torch.float64), atol=6e-7), f"the {name} grid of the paper with {steps} steps"


def test_two_step_stop_of_the_cosine_schedule():
    assert abs(grid("eta", 2, model(cosine, T=.996))[1] - .605137) < 6e-7


@pytest.mark.parametrize("flow", [otfm, cosine], ids=str)
@pytest.mark.parametrize("name", ["uniform", "edm"])
def test_steps_are_even_in_the_grids_own_coordinate(flow, name):
    coordinate = dict(uniform=lambda t: t, edm=lambda t: flow.eta(t)**(1/7))[name]
    steps = coordinate(grid(name, 13, model(flow, .006, .99))).diff()
    assert torch.allclose(steps, steps.mean().expand(13), rtol=1e-8), "all steps are equal where the rule makes them so"


def test_rho_between_its_limits():
    eta = otfm.eta(edm_grid(5, model(eps=.006), None, rho=1))
    assert torch.allclose(eta.diff(), eta.diff().mean()), "rho = 1 is even in eta"
    log_eta = otfm.eta(edm_grid(5, model(eps=.006), None, rho=1e6)).log()
    assert torch.allclose(log_eta.diff(), log_eta.diff().mean(), rtol=1e-3), "a large rho is even in log eta"


@pytest.mark.parametrize("flow", [otfm, cosine], ids=str)
def test_named_stops(flow):
    times = grid("eta", 4, model(flow, .006, .99), stops=(5, 1.4, .3))
    assert torch.allclose(flow.eta(times)[1:-1], torch.tensor([5, 1.4, .3], dtype=torch.float64)), "stops are where eta says"


@pytest.mark.parametrize("flow", [otfm, cosine], ids=str)
@pytest.mark.parametrize("eps, T", [(0., .994), (.006, .994), (.002, .9)])
@pytest.mark.parametrize("name", GRIDS)
def test_ends_are_exact(flow, eps, T, name):
    t = grid(name, 2, model(flow, eps, T))
    assert (t[0].item(), t[-1].item()) == (T, eps), "the ends are T and eps to the last bit"


def test_grid_without_a_name_and_times_as_they_are():
    m = model()
    assert torch.equal(grid(None, 2, m), grid("eta", 2, m)) and torch.equal(grid(None, 3, m), grid("uniform", 3, m)), "2 steps stop at eta = 1.4, others are uniform"
    assert grid([.9, .3, 0], 2, m).tolist() == [.9, .3, 0.], "given times are used"
    assert grid([.9, .3, 0], 2, m).dtype == torch.float64


@pytest.mark.parametrize("args, more, says", [
    (("cosine", 4), {}, "'cosine' is unknown; choose one of uniform, edm, eta"),
    (("uniform", 0), {}, "steps must be a whole number from 1 up; got 0"),
    (("uniform", 2.5), {}, "got 2.5"),
    (("uniform", True), {}, "got True"),
    (("eta", 4), {}, "4 steps need 3 stops, got 1"),
    (("eta", 3), dict(stops=(.3, 1.4)), "must descend"),
    (("eta", 2), dict(stops=(-1.,)), "must descend"),
    (("eta", 2), dict(stops=(1e6,)), "must descend"),
    (("edm", 2), dict(stops=(1.4,)), "stops go with the eta grid"),
    (([.9, .1], 3), {}, "1 jumps, but steps = 3")])
def test_grids_that_are_refused(args, more, says):
    with pytest.raises(ValueError, match=says): grid(*args, model(), **more)


def test_edm_needs_a_finite_start():
    with pytest.raises(ValueError, match="infinite for T = 1.0"): grid("edm", 4, model(T=1.))
    assert grid("uniform", 4, model(T=1.))[0] == 1, "the uniform grid starts at 1"


# ---- samplers, with models that are right

@pytest.mark.parametrize("flow, param, second", COMBOS)
def test_pushforward_lands_where_one_exact_jump_lands(flow, param, second):
    m, x = gaussian(flow, param, second), .5*randn(200, 3)
    a, s = (lambda t: flow.alpha(torch.tensor(t, dtype=torch.float64))), (lambda t: flow.sigma(torch.tensor(t, dtype=torch.float64)))
    spread = lambda t: ((a(t)*.4)**2 + (s(t)*.5)**2).sqrt()
    want = a(.006)*.3 + spread(.006)/spread(.994) * (x - a(.994)*.3)
    for name, steps in (("uniform", 1), ("uniform", 7), ("edm", 5), ("eta", 2)):
        y = last(pushforward(m, x, grid(name, steps, m)))
        assert y.dtype == torch.float64, "samples travel in float64"
        assert torch.allclose(y, want, atol=1e-8), f"{steps} {name} steps of a right model are one exact jump"


@pytest.mark.parametrize("flow, name, steps", [(otfm, "uniform", 4), (otfm, "edm", 4), (cosine, "eta", 2), (cosine, "uniform", 3)])
def test_restart_has_the_moments_of_its_law(flow, name, steps):
    m, n = gaussian(flow, eps=0.), 20_000
    times = grid(name, steps, m)
    mean, var = 0., .25
    for i, (t, y) in enumerate(zip(times[:-1], restart(m, .5*randn(n, 1), times, generator=torch.Generator().manual_seed(1)))):
        a, s = flow.alpha(t).item(), flow.sigma(t).item()
        if i: mean, var = a*mean, a*a*var + s*s*.25
        stretch = .4 / math.hypot(a*.4, s*.5)
        mean, var = .3 + stretch*(mean - a*.3), stretch**2 * var
        assert abs(y.mean() - mean) < 4.5*(var/n)**.5, f"mean after jump {i + 1}"
        assert abs(y.var()/var - 1) < 4.5*(2/n)**.5, f"variance after jump {i + 1}"


def test_restart_forgets_the_error_of_its_start():
    m, zero = gaussian(eps=0.), torch.zeros(1, dtype=torch.float64)
    times = grid("uniform", 4, m)
    landed = [x.item() - .3 for x in restart(m, zero, times, noise=[zero]*3)]
    a, s = 1 - times[:-1], times[:-1]
    corr = a*.4 / ((a*.4)**2 + (s*.5)**2).sqrt()
    assert torch.allclose(torch.tensor(landed, dtype=torch.float64), -.3*corr.cumprod(0)), "each restart multiplies the error of the mean by corr(x_0, x_t)"


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_both_samplers_give_a_mixture(sampler):
    law, g = Mixture([.3, .5, .2], [-.6, .05, .775], [.1, .18, .09]), torch.Generator().manual_seed(0)

    class Exact:
        flow, sigma_d, eps, T = otfm, .5, 0., .994
        def __call__(self, x, t, s, label=None, guidance=1.): return law.jump(x, (1 - t, t), (1 - s, s))

    more = dict(generator=g) if sampler is restart else {}
    y = last(sampler(Exact(), law.noised(.006, .994).sample(4000, g), grid("uniform", 4, Exact()), **more))
    ranks = (torch.arange(len(y)) + .5) / len(y)
    assert (law.cdf(y.sort().values) - ranks).abs().max() * len(y)**.5 < 2, "the samples must pass a Kolmogorov-Smirnov test"


def test_generators_yield_every_jump():
    m, x, times = model(), randn(5, 1), grid("uniform", 4, model())
    assert len(list(pushforward(m, x, times))) == len(list(restart(m, x, times))) == 4
    assert next(pushforward(m, x, times)).requires_grad is False
    path = list(pushforward(m, x, times))
    assert torch.allclose(path[1], m(path[0], times[1], times[2])), "each state is the jump from the one before"


def test_gradients_are_off():
    m = IMM(Small(), otfm)
    for sampler in SAMPLERS.values():
        assert not last(sampler(m, randn(2, 1, 4, 4), [.9, .5, .1], 3)).requires_grad, "sampling needs no gradients"


def test_restart_noise():
    m, x, times = model(), randn(5, 2), grid("uniform", 4, model())
    noise = [.5*randn(5, 2, seed=i) for i in (1, 2, 3)]
    a, b, c = (last(restart(m, x, times, noise=e)) for e in (noise, torch.stack(noise), noise[::-1]))
    assert torch.equal(a, b), "a list of tensors or one tensor are the same noise"
    assert not torch.allclose(a, c), "noise enters in its order"
    y = m(x, times[0], 0.)
    for e, t in zip(noise, times[1:]): y = m((1 - t)*y + t*e, t, 0.)
    assert torch.allclose(a, y), "restart is jump, noise, jump"
    again = [last(restart(m, x, times, generator=torch.Generator().manual_seed(k))) for k in (7, 7, 8)]
    assert torch.equal(again[0], again[1]) and not torch.allclose(again[0], again[2]), "a generator makes restart repeatable"


def test_restart_times_need_not_descend():
    assert len(list(restart(model(), randn(5, 1), [.5, .7, .7, 0.]))) == 3


def test_fresh_noise_has_the_datas_spread():
    class Still:       # jumps to 0, whatever comes
        flow, sigma_d = otfm, .5
        def __call__(self, x, t, s, *args): seen.append(x); return torch.zeros_like(x)

    seen = []
    list(restart(Still(), randn(10_000), [.9, .4, 0.], generator=torch.Generator().manual_seed(0)))
    assert abs(seen[1].std() - .4*.5) < .01, "fresh noise has standard deviation sigma_d, times sigma_t"


def test_what_samplers_refuse():
    m, x, times = model(), randn(5, 1), grid("uniform", 4, model())
    with pytest.raises(ValueError, match="must descend"): next(pushforward(m, x, times.flip(0)))
    with pytest.raises(ValueError, match="must be the smallest"): next(restart(m, x, times.flip(0)))
    with pytest.raises(ValueError, match=r"3 tensors \[5, 1\]; got"): next(restart(m, x, times, noise=[x]*2))
    with pytest.raises(ValueError, match=r"3 tensors \[5, 1\]"): next(restart(m, x, times, noise=[x[:4]]*3))
    with pytest.raises(ValueError, match=r"t must lie in \[0, 0.994\]"): next(pushforward(m, x, [.999, .1]))
    with pytest.raises(ValueError, match="NaN or infinite"): next(pushforward(m.eval(), x*math.nan, times))


# ---- sample and points

class Grey(GaussianNet):
    config, classes = dict(size=8, channels=3), 10


def test_images_of_known_brightness():
    x = sample(IMM(Grey(otfm, mean=-.2, std=.3), otfm), 300, steps=4)
    assert x.shape == (300, 3, 8, 8) and x.dtype == torch.float32 and x.device.type == "cpu", "float32 images, channels first, on the CPU"
    assert x.min() >= 0 and x.max() <= 1, "pixels lie in 0 ... 1"
    assert abs(x.mean() - .4) < .003 and abs(x.std() - .15) < .003, "a pixel v in -1 ... 1 becomes (v + 1)/2"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler):
    m = IMM(Grey(otfm, mean=-.2, std=.3), otfm)
    a, b, c = (sample(m, 23, steps=3, sampler=sampler, batch=k) for k in (1, 5, 64))
    assert torch.allclose(a, b, atol=1e-6) and torch.allclose(b, c, atol=1e-6), "the batch size must not change the images"
    assert torch.allclose(sample(m, 4, steps=3, sampler=sampler), a[:4], atol=1e-6), "the first four of many are the first four of four"
    assert not torch.allclose(sample(m, 23, steps=3, sampler=sampler, seed=1), a, atol=.1), "another seed, other images"


def test_noise_is_drawn_image_by_image():
    g = lambda: torch.Generator().manual_seed(0)
    whole, h = image_noise(3, 7, (2, 4), g()), g()
    parts = [image_noise(3, n, (2, 4), h) for n in (2, 4, 1)]
    assert whole.shape == (3, 7, 2, 4) and torch.equal(torch.cat(parts, 1), whole), "noise does not know its batch"
    assert abs(image_noise(2, 100, (10, 10), g()).std() - 1) < .02, "standard normal"


def test_the_random_numbers_of_others_are_left_alone():
    m = IMM(Grey(otfm), otfm)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for sampler in SAMPLERS: sample(m, 3, steps=3, sampler=sampler)
    assert torch.equal(torch.get_rng_state(), before), "noise comes from the seed's own generator"


def test_dropout_is_off_and_the_mode_restored():
    m, label = IMM(Small(), otfm).train(), torch.arange(10).repeat(2)
    assert torch.allclose(sample(m, 20, label=label, batch=3), sample(m, 20, label=label), atol=1e-6), "dropout must be off"
    assert m.training, "the mode must be restored"
    with pytest.raises(ValueError): sample(m, 2, guidance=math.nan)
    assert m.training, "and also after an error"
    assert not m.eval().training and sample(m, 1) is not None and not m.training


@pytest.mark.parametrize("w", [1., 1.5])
def test_sample_is_the_sampler_and_a_clip(w):
    m, label = IMM(Small(), otfm).eval(), torch.arange(10).repeat(2)
    start = .5*image_noise(1, 20, (1, 4, 4), torch.Generator().manual_seed(0))[0]
    want = (last(pushforward(m, start, grid("eta", 2, m), label, w)) + 1) / 2
    assert torch.allclose(sample(m, 20, label=label, guidance=w), want.clip(0, 1).float(), atol=1e-6), "labels and guidance arrive"
    assert torch.allclose(sample(m, 20, label=label, guidance=w, grid=grid("eta", 2, m)), want.clip(0, 1).float(), atol=1e-6), "times may be given"


def test_labels():
    m = IMM(Small(), otfm).eval()
    one, three, other, none, null = (sample(m, 3, label=v) for v in (7, [7, 7, 7], 1, None, -1))
    assert torch.allclose(one, three, atol=1e-6), "one label for all is that label for each"
    assert not torch.allclose(one, other), "labels matter"
    assert torch.allclose(none, null, atol=1e-6), "no label is the null label"
    mixed = sample(m, 3, label=torch.tensor([1, 7, -1]), batch=2)
    assert torch.allclose(mixed, torch.stack([other[0], one[1], null[2]]), atol=1e-6), "labels stay with their images in every batch"


def test_points_are_the_sampler_from_the_noise_of_a_seed():
    m = IMM(GaussianNet(otfm, mean=.3, std=.2), otfm)
    start = .5*torch.randn(9, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert torch.equal(points(m, 9, 3, seed=4), last(pushforward(m, start, grid("uniform", 3, m))))
    assert points(m, 9).shape == (9, 2, 1, 1) and points(m, 9).dtype == torch.float64


def test_a_model_may_have_a_sampler_of_its_own():
    m = IMM(Grey(otfm, mean=-.2, std=.3), otfm)
    m.sampler = "restart"
    assert torch.equal(sample(m, 4, steps=3), sample(m, 4, steps=3, sampler="restart")), "the model's own is the default"
    assert not torch.allclose(sample(m, 4, steps=3), sample(m, 4, steps=3, sampler="pushforward"), atol=.01), "and a wish comes first"


def test_walk_asks_for_as_much_noise_as_it_needs():
    asked, m = [], model()
    def draw(count): asked.append(count); return randn(count, 5, 1)
    walk(m, draw, [.9, .5, .2, 0.]), walk(m, draw, [.9, .5, .2, 0.], sampler="restart")
    assert asked == [1, 3], "one draw for a pushforward, one for each jump of restart"


def test_image_shape():
    assert image_shape(IMM(Grey(otfm), otfm)) == (3, 8, 8)


@pytest.mark.parametrize("kind, says, more", [
    (ValueError, r"shape \[2\]", dict(label=[1, 2])),
    (ValueError, "0 ... 9, or be -1 for null; got 12", dict(label=12)),
    (TypeError, "integer class indices", dict(label=.5)),
    (ValueError, "guidance = 2.0", dict(guidance=2.)),
    (ValueError, "n must be a whole number from 1 up; got 0", dict(n=0)),
    (ValueError, "n must be a whole number", dict(n=4.)),
    (ValueError, "steps must be", dict(steps=0)),
    (ValueError, "batch must be", dict(batch=.5)),
    (ValueError, "'euler' is unknown; choose one of pushforward, restart", dict(sampler="euler")),
    (ValueError, "1 jumps, but steps = 3", dict(steps=3, grid=[.9, .1])),
    (ValueError, "'even' is unknown", dict(grid="even"))])
def test_what_sample_refuses(kind, says, more):
    with pytest.raises(kind, match=says): sample(IMM(Small(), otfm).eval(), **{**dict(n=4), **more})


def test_what_else_is_refused():
    with pytest.raises(TypeError, match="GaussianNet does not say how large its images are"): sample(model(), 4)
    with pytest.raises(ValueError, match="knows no classes"): points(model(), 4, label=1)
    with pytest.raises(ValueError, match="n must be a whole number"): points(model(), -1)
    with pytest.raises(ValueError, match="steps must be"): points(model(), 4, 0)
