"The mixture of Gaussians whose every property is a formula: each formula against another road to the same number."
import math

import pytest
import torch

from imm_edu.exact import Mixture

T64 = lambda v: torch.tensor(v, dtype=torch.float64)
DATA = Mixture([.3, .5, .2], [-.6, .05, .775], [.1, .18, .09])
LEVELS = (torch.arange(2000, dtype=torch.float64) + .5) / 2000
TIMES = [(.9, .1), (.5, .5), (.3, .7), (math.cos(.5), math.sin(.5))]          # alpha, sigma


@pytest.mark.parametrize("given, says", [
    (([.5, .6], [0, 1], [1, 1]), "sum to 1"),
    (([1.5, -.5], [0, 1], [1, 1]), "weights must be positive"),
    (([.5, .5], [0, 1], [1, 0]), "stds must be positive"),
    (([.5, .5], [0, 1], [1, -1]), "stds must be positive"),
    (([1.], [0, 1], [1, 1]), "one entry per component; got 1, 2 and 2"),
])
def test_numbers_that_describe_no_mixture_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Mixture(*given)


@pytest.mark.parametrize("p, says", [([.5, 1.5], "got 0.5 to 1.5"), ([-.1, .5], "got -0.1 to 0.5"), ([math.nan], r"probabilities in \[0, 1\]")])
def test_quantiles_are_asked_for_probabilities(p, says):
    with pytest.raises(ValueError, match=says):
        DATA.quantile(T64(p))


def test_the_book_s_data_have_mean_0_and_standard_deviation_one_half():
    mean = (DATA.weights * DATA.means).sum()
    var = (DATA.weights * (DATA.stds**2 + DATA.means**2)).sum() - mean**2
    assert abs(mean) < 1e-9 and abs(var.sqrt() - .5) < 1e-3, "the data must be centred and as wide as the noise"


def test_quantile_undoes_cdf_and_pdf_is_its_slope():
    x = DATA.quantile(LEVELS)
    assert (DATA.cdf(x) - LEVELS).abs().max() < 1e-10, "quantile must invert cdf"
    assert (x.diff() > 0).all(), "quantiles must rise"
    slope = (DATA.cdf(x + 1e-5) - DATA.cdf(x - 1e-5)) / 2e-5
    assert (slope - DATA.pdf(x)).abs().max() < 1e-6, "pdf must be the derivative of cdf"


def test_one_component_is_torch_s_normal():
    law, normal, x = Mixture([1.], [.3], [.7]), torch.distributions.Normal(T64(.3), T64(.7)), torch.linspace(-2, 2, 41, dtype=torch.float64)
    assert torch.allclose(law.pdf(x), normal.log_prob(x).exp()) and torch.allclose(law.cdf(x), normal.cdf(x)), "one component must be a Gaussian"
    assert torch.allclose(law.quantile(T64([.01, .5, .9])), normal.icdf(T64([.01, .5, .9]))), "and have its quantiles"


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_any_shape_goes_in_and_comes_out(shape):
    x = torch.full(shape, .4, dtype=torch.float64)
    for y in (DATA.pdf(x), DATA.cdf(x), DATA.quantile(x), DATA.denoise(x, .5, .5), DATA.jump(x, (.5, .5), (.9, .1))):
        assert y.shape == x.shape and y.dtype == torch.float64, "one value for each point"


def test_draws_have_the_law_and_follow_the_generator():
    draw = lambda: DATA.sample(50_000, torch.Generator().manual_seed(3))
    x = draw()
    assert torch.equal(x, draw()), "the same generator must give the same draws"
    gap = (DATA.cdf(x.sort().values) - (torch.arange(len(x)) + .5) / len(x)).abs().max()
    assert gap < 2.5 / len(x)**.5, "the empirical distribution function must be near the true one (Kolmogorov-Smirnov)"


@pytest.mark.parametrize("alpha, sigma", TIMES)
@pytest.mark.parametrize("sigma_d", [.5, 1.])
def test_noised_is_the_convolution(alpha, sigma, sigma_d):
    x, y = torch.linspace(-2, 2, 4001, dtype=torch.float64), torch.linspace(-2, 2, 9, dtype=torch.float64)
    noise = torch.distributions.Normal(T64(0.), T64(sigma * sigma_d))
    summed = torch.trapezoid(DATA.pdf(x) * noise.log_prob(y[:, None] - alpha*x).exp(), x)
    assert torch.allclose(DATA.noised(alpha, sigma, sigma_d).pdf(y), summed, atol=1e-8), "the marginal must be data and noise, convolved"


@pytest.mark.parametrize("alpha, sigma", TIMES)
@pytest.mark.parametrize("sigma_d", [.5, 1.])
def test_the_posterior_is_bayes_rule(alpha, sigma, sigma_d):
    x, x_t = torch.linspace(-2, 2, 8001, dtype=torch.float64), T64([-.7, 0., .3, .9])
    joint = DATA.pdf(x) * torch.distributions.Normal(T64(0.), T64(sigma * sigma_d)).log_prob(x_t[:, None] - alpha*x).exp()
    density = joint / torch.trapezoid(joint, x)[:, None]
    weights, means, stds = DATA.posterior(x_t, alpha, sigma, sigma_d)
    for i in range(len(x_t)):
        assert torch.allclose(Mixture(weights[i], means[i], stds).pdf(x), density[i], atol=1e-6), "q(x | x_t) must be likelihood times prior"
    assert torch.allclose(DATA.denoise(x_t, alpha, sigma, sigma_d), torch.trapezoid(x*density, x), atol=1e-7), "denoise must be the posterior's mean"


def test_the_posterior_mean_by_brute_force():
    g = torch.Generator().manual_seed(0)
    clean = DATA.sample(500_000, g)
    noisy = .6*clean + .4*.5*torch.randn(len(clean), dtype=torch.float64, generator=g)
    near = clean[(noisy - .3).abs() < .01]
    assert abs(DATA.denoise(T64([.3]), .6, .4)[0] - near.mean()) < 5 * near.std() / len(near)**.5, "the mean of all draws that look like this"


@pytest.mark.parametrize("start, end", [((.2, .8), (.8, .2)), ((0., 1.), (1., 0.)), ((.5, .5), (.5, .5)), ((1., 0.), (.3, .7))])
@pytest.mark.parametrize("sigma_d", [.5, 1.])
def test_a_jump_keeps_ranks_lands_on_the_law_and_can_be_undone(start, end, sigma_d):
    x = DATA.noised(*start, sigma_d).quantile(LEVELS)
    y = DATA.jump(x, start, end, sigma_d)
    assert (DATA.noised(*end, sigma_d).cdf(y) - LEVELS).abs().max() < 1e-9, "each point must land at its own rank of the law at the end"
    assert (DATA.jump(y, end, start, sigma_d) - x).abs().max() < 1e-7, "the jump back must undo the jump"
    half = DATA.jump(DATA.jump(x, start, (.6, .4), sigma_d), (.6, .4), end, sigma_d)
    assert (half - y).abs().max() < 1e-7, "two jumps must lead where one leads"


def test_the_jump_of_a_gaussian_in_closed_form():
    law, x = Mixture([1.], [.3], [.2]), T64([-1., 0., .4])
    std = lambda a, b: math.sqrt((a*.2)**2 + (b*.5)**2)
    want = .9*.3 + std(.9, .1)/std(.2, .8) * (x - .2*.3)
    assert torch.allclose(law.jump(x, (.2, .8), (.9, .1)), want, atol=1e-9), "a Gaussian's jump only shifts and scales"


def test_the_jump_solves_the_probability_flow_ode():
    "Runge-Kutta of fourth order on straight lines, against quantiles"
    v = lambda x, t: (x - DATA.denoise(x, 1 - t, t)) / t
    x = start = DATA.noised(.1, .9).quantile(LEVELS[::100])
    times = torch.linspace(.9, .1, 201, dtype=torch.float64).tolist()
    for t, s in zip(times, times[1:]):
        h = s - t
        k1 = v(x, t); k2 = v(x + h/2*k1, t + h/2); k3 = v(x + h/2*k2, t + h/2); k4 = v(x + h*k3, s)
        x = x + h/6 * (k1 + 2*k2 + 2*k3 + k4)
    assert (x - DATA.jump(start, (.1, .9), (.9, .1))).abs().max() < 1e-6, "the ODE must take each point where the exact jump takes it"


def test_far_out_nothing_breaks():
    x = T64([-8., 8.])
    assert torch.isfinite(DATA.denoise(x, .9, .1)).all() and torch.isfinite(DATA.jump(x, (.9, .1), (1., 0.))).all(), "extreme points must stay finite"
    assert torch.equal(DATA.cdf(T64([-math.inf, math.inf])), T64([0., 1.])), "all mass lies between minus and plus infinity"
