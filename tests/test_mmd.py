"The MMD against closed forms, known numbers and finite differences; what the kernels and the estimators promise; what is refused."
import math

import pytest
import torch

from imm_edu.mmd import KERNELS, as_kernel, as_width, energy, laplace, mmd2, pair_mean, pdist, pseudo_huber, rbf

ESTIMATORS = ("v", "u", .3)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_mmd2(y, z, k, delta):
    "The definition for one group, in Python numbers; k is a function of a distance"
    total = count = 0.
    for i in range(len(y)):
        for j in range(len(y)):
            weight = delta if i == j else 1.
            d_yy, d_zz, d_yz = math.dist(y[i], y[j]), math.dist(z[i], z[j]), math.dist(y[i], z[j])
            total += weight * (k(d_yy) + k(d_zz) - 2 * k(d_yz))
            count += weight
    return total / count


# ---- distances

def test_equal_clouds_are_at_distance_zero():
    y = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert mmd2(y, y).abs().max() < 1e-12, "K_yy + K_zz - 2 K_yz must vanish for equal clouds: the cross term counts twice"


@pytest.mark.parametrize("diagonal", (0., .3, 1.))
def test_the_mean_of_ones_is_one(diagonal):
    found = pair_mean(torch.ones(2, 4, 4, dtype=torch.float64), diagonal)
    assert (found - 1).abs().max() < 1e-12, f"weights of the pairs must sum to one when the diagonal counts {diagonal}; the mean of ones is {found[0]:.3f}"


@pytest.mark.parametrize("M", [4, 25, 26, 60])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_near_pairs_keep_their_distance(M, dtype, tolerance):
    a = draw(3, M, 3072, dtype=dtype)
    b = (a.double() + 1e-5 * draw(3, M, 3072, seed=1)).to(dtype)
    exact = (b.double() - a.double()).norm(dim=-1)
    error = (pdist(a, b).diagonal(dim1=1, dim2=2).double() / exact - 1).abs().max()
    assert error < tolerance, f"{M} points: cdist's matrix product, taken from 26 points on, would lose nearby distances; error {error:.1e}"
    assert not pdist(a, a).diagonal(dim1=1, dim2=2).any(), "a point is at distance 0 from itself"


def test_distances_of_clouds_of_different_size():
    a, b = draw(2, 3, 5), draw(2, 7, 5, seed=1)
    assert torch.allclose(pdist(a, b), (a[:, :, None] - b[:, None]).norm(dim=-1)), "each of a against each of b"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distances_have_at_least_float32(dtype):
    a = draw(2, 4, 5, dtype=dtype)
    assert pdist(a, a).dtype == torch.float32, "half precision is too coarse for distances"
    assert pdist(a, a.double()).dtype == torch.float64, "the finer of two precisions wins"


@pytest.mark.parametrize("a, b", [((2, 4, 3, 8, 8), (2, 4, 3, 8, 8)), ((4, 5), (4, 5)), ((2, 4, 3), (1, 4, 3)), ((2, 4, 3), (2, 4, 2))])
def test_clouds_that_do_not_match_are_refused(a, b):
    with pytest.raises(ValueError, match=r"x\.reshape\(groups, particles, -1\)"):
        pdist(torch.zeros(a), torch.zeros(b))


# ---- kernels

def test_kernels_at_a_distance_of_two():
    two = torch.tensor(2., dtype=torch.float64)
    assert laplace(two).item() == pytest.approx(math.exp(-2)) == rbf(two).item(), "both are exp(-2) for w = D = 1"
    assert laplace(two, 3., 4).item() == pytest.approx(math.exp(-1.5)) == rbf(two, 3., 4).item(), "the exponent is w/D times d, or d²/2"
    assert energy(two).item() == -4 and pseudo_huber(two, c=1.5).item() == pytest.approx(-1), "-2², and 1.5 - sqrt(4 + 2.25)"
    assert pseudo_huber(two, D=9).item() == pytest.approx(.00162 - math.hypot(2, .00162)), "c is 0.00054 sqrt(D)"


def test_laplace_has_a_floor_and_the_other_two_have_no_width():
    d = torch.tensor([0., 1e-9, 1e-8], dtype=torch.float64)
    assert (laplace(d, 1e7) - math.exp(-.1)).abs().max() < 1e-12, "distances below 1e-8 count as 1e-8"
    for k in (energy, pseudo_huber):
        assert torch.equal(k(d + 2, 1., 4), k(d + 2, 9., 4)), f"{k.__name__} ignores w"


def test_the_laplace_force_is_a_unit_vector():
    x, y = draw(1, 1, 50).requires_grad_(), draw(1, 1, 50, seed=1)
    k = laplace(pdist(x, y), 3., 50)
    force, = torch.autograd.grad(k.sum(), x)
    assert torch.allclose(force, -3/50 * k * (x - y) / (x - y).norm()), "-w/D k times a unit vector"


def test_kernels_by_name_and_by_function():
    assert as_kernel("rbf") is rbf and as_kernel(rbf) is rbf, "a name or a function"
    y, z = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    mine = mmd2(y, z, 2., lambda d, w, D: torch.exp(-w * d / D))
    assert torch.allclose(mine, mmd2(y, z, 2.), atol=1e-7), "a function of (d, w, D) serves as a kernel"
    with pytest.raises(ValueError, match="'gauss' is unknown; choose one of laplace, rbf"):
        mmd2(y, z, kernel="gauss")


# ---- the estimate, against numbers and closed forms

def test_a_number_computed_by_hand_elsewhere():
    y = (torch.arange(12, dtype=torch.float64) / 10).view(1, 3, 4)
    z = y + torch.tensor([[.05, -.02, 0, .01], [0, .03, -.01, .02], [-.04, 0, .02, 0]], dtype=torch.float64)
    assert mmd2(y, z, 2.5).item() == pytest.approx(.01859027172810226, abs=1e-13), "V-statistic, Laplace, w = 2.5, computed elsewhere"


FORMULAS = dict(laplace=lambda d, w, D: math.exp(-w * max(d, 1e-8) / D), rbf=lambda d, w, D: math.exp(-w * d * d / 2 / D),
                energy=lambda d, w, D: -d * d, pseudo_huber=lambda d, w, D: .00054 * D**.5 - math.hypot(d, .00054 * D**.5))

@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator, delta", [("v", 1), ("u", 0), (.3, .3), (1, 1), (0, 0)])
def test_the_estimate_is_the_weighted_mean_over_pairs(kernel, estimator, delta):
    y, z, w = draw(3, 4, 5), draw(3, 4, 5, seed=1) + .5, [.5, 1., 2.]
    want = [plain_mmd2(a.tolist(), b.tolist(), lambda d: FORMULAS[kernel](d, v, 5), delta) for a, b, v in zip(y, z, w)]
    found = mmd2(y, z, torch.tensor(w), kernel, estimator)
    assert found.shape == (3,) and found.dtype == torch.float64, "one float64 number per group"
    assert found.tolist() == pytest.approx(want, rel=1e-9), f"{kernel}, {estimator}: the loops of the definition say otherwise"


@pytest.mark.parametrize("M", [2, 3, 8])
@pytest.mark.parametrize("delta", [0., .1, .5, 1.])
def test_the_weight_of_the_diagonal(M, delta):
    y, z = draw(5, M, 6), draw(5, M, 6, seed=1)
    u, v, at = (mmd2(y, z, estimator=e) for e in ("u", "v", delta))
    alone = mmd2(y.reshape(-1, 1, 6), z.reshape(-1, 1, 6)).view(5, M).mean(1)
    assert torch.allclose(at, u + delta * M / (M - 1 + delta) * (v - u), atol=1e-13), "on the line from U to V, at δM/(M-1+δ)"
    assert torch.allclose(at, ((M - 1) * u + delta * alone) / (M - 1 + delta), atol=1e-13), "a mean of U and of groups of one"


def test_pair_mean_of_known_matrices():
    K = torch.tensor([[[5., 1.], [3., 7.]]], dtype=torch.float64)
    assert [pair_mean(K, v).item() for v in (1., 0., .5)] == pytest.approx([4, 2, 10 / 3]), "16/4, 4/2, (4 + 6)/(2 + 1)"


@pytest.mark.parametrize("M", [1, 5])
def test_two_point_masses(M):
    y, z = torch.zeros(2, 1, M, 2, dtype=torch.float64)
    z += torch.tensor([3., 4.])
    c = .00054 * 2**.5
    for kernel, want in dict(laplace=2 - 2*math.exp(-5), rbf=2 - 2*math.exp(-12.5), energy=50, pseudo_huber=2*(math.hypot(5, c) - c)).items():
        assert mmd2(y, z, 2., kernel).item() == pytest.approx(want, rel=1e-7), f"{kernel}: 2 k(0) - 2 k(5)"


def test_one_particle_is_a_consistency_loss():
    y, z = draw(7, 1, 12), draw(7, 1, 12, seed=1)
    d = (y - z).norm(dim=-1)[:, 0]
    assert torch.allclose(mmd2(y, z, kernel="energy"), 2 * d**2), "with energy the squared distance"
    assert torch.allclose(mmd2(y, z, 3.), 2 * (1 - torch.exp(-3 * d / 12)), atol=1e-7), "with Laplace a bounded one"


@pytest.mark.parametrize("estimator", ["v", "u"])
def test_energy_sees_means_only(estimator):
    y, z = draw(5, 8, 6), 3 * draw(5, 8, 6, seed=1) + 1
    found, gap = mmd2(y, z, kernel="energy", estimator=estimator), 2 * (y.mean(1) - z.mean(1)).square().sum(-1)
    if estimator == "u":                             # the mean over all pairs less the share of the diagonal
        gap = (8 * gap - 2 * (y - z).square().sum(-1).mean(1)) / 7
    assert torch.allclose(found, gap), "V is twice the squared distance of the means"


def test_uniform_clouds_under_laplace():
    n, w, a = 1000, 3., 1.2
    grid = ((torch.arange(n, dtype=torch.float64) + .5) / n).view(1, n, 1)
    within = 2 * (w - 1 + math.exp(-w)) / w**2
    across = math.exp(-w * a) * (math.exp(w) - 1) * (1 - math.exp(-w)) / w**2
    assert mmd2(grid, grid + a, w).item() == pytest.approx(2 * within - 2 * across, abs=1e-5), "an even grid is a midpoint rule for the integral"


@pytest.mark.parametrize("paired", [False, True])
def test_bias_of_the_estimators_for_gaussians(paired):
    G, M, D, w, a, c = 6000, 3, 2, 4., .6, .5
    b, mu = math.hypot(a, c), torch.tensor([.4, -.2], dtype=torch.float64)

    def mean_k(gap2, variance):
        v = 1 + w / D * variance
        return v**(-D / 2) * math.exp(-w * gap2 / (2 * D * v))
    gap2 = mu.square().sum().item()
    truth = mean_k(0, 2*a*a) + mean_k(0, 2*b*b) - 2 * mean_k(gap2, a*a + b*b)
    partner = 2 - 2 * mean_k(gap2, c*c if paired else a*a + b*b)
    y = a * draw(G, M, D)
    z = mu + (y + c * draw(G, M, D, seed=1) if paired else b * draw(G, M, D, seed=1))
    for estimator, want in dict(u=truth, v=truth + (partner - truth) / M).items():
        found = mmd2(y, z, w, "rbf", estimator)
        off = abs(found.mean().item() - want) / (found.std().item() / G**.5)
        assert off < 5, f"{estimator}: U is unbiased, V off by (P - MMD²)/M; here it is {off:.1f} standard errors away"
    if paired:                                       # the usual U-statistic keeps the diagonal of the cross term
        k = lambda a, b: rbf(pdist(a, b), w, D)
        usual = pair_mean(k(y, y) + k(z, z), 0.) - 2 * k(y, z).mean((1, 2))
        assert abs(usual.mean() - truth) > .02, "partners are not independent, so the diagonal of yz must be left out as well"


# ---- symmetries

@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_symmetries(kernel, estimator):
    y, z, w = draw(6, 4, 10), draw(6, 4, 10, seed=1), torch.linspace(.5, 2, 6, dtype=torch.float64)
    f = lambda y, z, w=w: mmd2(y, z, w, kernel, estimator)
    v, order = f(y, z), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(f(y[:, order], z[:, order]), v, atol=1e-12), "the order of the pairs inside a group must not matter"
    assert torch.allclose(f(z, y), v, atol=1e-12), "y and z may change places"
    assert torch.allclose(f(y + 3, z + 3), v, atol=1e-10), "only differences count"
    assert not torch.allclose(f(y.flatten(0, 1).roll(1, 0).view_as(y), z), v, rtol=1e-3), "who is in which group must matter"
    for g in range(6):
        assert torch.allclose(f(y[g:g+1], z[g:g+1], w[g]), v[g]), "each group stands alone, with its own width"
    assert f(y, y).abs().max() < 1e-12, "a cloud is at distance 0 from itself"
    if estimator == "v":
        assert torch.allclose(f(y[:, order], z), v, atol=1e-12), "all pairs: the two orders need not even agree"
        assert (v > 0).all(), "the V-statistic is the squared distance of two empirical distributions"
    else:
        assert not torch.allclose(f(y[:, order], z), v, rtol=1e-3), "partners have one index, so they must keep it together"


def test_groups_are_independent_in_the_gradient():
    y, z = draw(3, 4, 5).requires_grad_(), draw(3, 4, 5, seed=1)
    g, = torch.autograd.grad(mmd2(y, z)[1], y)
    assert g[1].abs().min() > 0 and not g[[0, 2]].any(), "the loss of a group moves its own particles only"


# ---- gradients

@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_against_finite_differences(kernel, estimator):
    y, z = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    if kernel in ("rbf", "energy"):
        z[0, 1] = y[0, 1]                            # smooth there, so coincident particles may join
    f = lambda y, z: mmd2(y, z, 2., kernel, estimator)
    assert torch.autograd.gradcheck(f, (y.requires_grad_(), z.requires_grad_()), eps=1e-6, atol=1e-7), f"{kernel}, {estimator}"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_coincident_particles_feel_no_force(kernel, estimator, dtype):
    y = torch.zeros(2, 4, 5, dtype=dtype, requires_grad=True)
    g, = torch.autograd.grad(mmd2(y, torch.zeros(2, 4, 5, dtype=dtype), 1., kernel, estimator).sum(), y)
    assert g.abs().max() == 0, f"{kernel}: all at one point, so every force is 0, never nan"


@pytest.mark.parametrize("kernel", KERNELS)
def test_some_coincident_particles_leave_the_others_their_gradient(kernel):
    y, z = draw(1, 4, 5), draw(1, 4, 5, seed=1)
    y[0, 1] = y[0, 0]
    z[0, 2] = y[0, 2]
    g, = torch.autograd.grad(mmd2(y.requires_grad_(), z, 1., kernel).sum(), y)
    assert g.isfinite().all() and g[0, 3].abs().min() > 0, f"{kernel}: finite everywhere, and felt where particles are apart"


# ---- precision of the particles

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 1e-4), (torch.float16, 1e-4)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_particles_of_lower_precision(dtype, tolerance, kernel):
    y, z = draw(3, 4, 10, dtype=dtype).requires_grad_(), (draw(3, 4, 10, seed=1) + 1).to(dtype)
    low, high = mmd2(y, z, 2., kernel), mmd2(y.double(), z.double(), 2., kernel)
    assert low.dtype == torch.float64, "the result is float64 whatever comes in"
    assert torch.allclose(low, high, rtol=tolerance), "rounded particles are compared without further rounding"
    g, = torch.autograd.grad(low.sum(), y)
    assert g.dtype == dtype and g.isfinite().all(), "the gradient comes back in the precision of the particles"


# ---- what is refused, and what is not

@pytest.mark.parametrize("y, z", [((3, 4, 5), (3, 3, 5)), ((3, 4, 5), (3, 1, 5)), ((3, 4, 5), (2, 4, 5)), ((3, 4, 5), (3, 4, 6)),
                                  ((4, 5), (4, 5)), ((5,), (5,)), ((2, 4, 3, 8, 8), (2, 4, 3, 8, 8))])
def test_clouds_must_have_one_shape(y, z):
    with pytest.raises(ValueError, match=r"one shape \[groups, particles, numbers\]; got"):
        mmd2(torch.zeros(y), torch.zeros(z))


@pytest.mark.parametrize("estimator", ["w", "V", None, -.1, 1.1, math.nan, (1, 0)])
def test_estimators_that_do_not_exist(estimator):
    with pytest.raises(ValueError, match="estimator must be 'v', 'u'"):
        mmd2(torch.zeros(3, 4, 5), torch.zeros(3, 4, 5), estimator=estimator)


@pytest.mark.parametrize("estimator", ["u", 0, 0.])
def test_u_needs_two_particles(estimator):
    with pytest.raises(ValueError, match="at least two particles"):
        mmd2(torch.zeros(3, 1, 5), torch.zeros(3, 1, 5), estimator=estimator)
    assert mmd2(torch.zeros(3, 1, 5), torch.ones(3, 1, 5), estimator=.5).isfinite().all(), "with any weight on the diagonal one will do"


def test_no_particles_are_refused_and_no_groups_are_not():
    with pytest.raises(ValueError, match="estimator"):
        mmd2(torch.zeros(3, 0, 5), torch.zeros(3, 0, 5))
    assert mmd2(torch.zeros(0, 4, 5), torch.zeros(0, 4, 5)).shape == (0,), "no groups, no numbers"


@pytest.mark.parametrize("w, says", [(torch.ones(2), r"one per group \(\[3\]\)"), (torch.ones(3, 1), "one per group"), (0., "positive and finite"),
                                     (-1., "positive and finite"), (math.inf, "got inf"), (math.nan, "positive and finite"),
                                     (torch.tensor([1., 0., 1.]), "is s = t somewhere")])
def test_widths_that_cannot_be(w, says):
    with pytest.raises(ValueError, match=says):
        mmd2(torch.zeros(3, 4, 5), torch.zeros(3, 4, 5), w)


def test_widths_as_numbers_tensors_and_lists():
    y, z = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    for w in (2, torch.tensor(2), torch.tensor(2., dtype=torch.float32), [2., 2., 2.], torch.full((3,), 2.)):
        assert torch.allclose(mmd2(y, z, w), mmd2(y, z, 2.)), "one number for all, or one for each"
    assert as_width(torch.ones(3), 3).shape == (3, 1, 1) and as_width(2.).dtype == torch.float64, "shaped for [G, M, M]"
