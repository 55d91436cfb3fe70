"The smallest network: sinusoids of the times, the checks all networks share, and the MLP."
import copy
import math

import pytest
import torch

from imm_edu import sample
from imm_edu.flow import OTFM
from imm_edu.mlp import MLP, check_inputs, sinusoid
from imm_edu.precond import IMM

TOY = dict(channels=2, size=1, width=32, depth=3, waves=8, scale=3.)


def spoken(**kwargs):
    "A network whose last layer is no longer zero"
    torch.manual_seed(0)
    net = MLP(**{**TOY, **kwargs})
    torch.nn.init.normal_(net.last.weight)
    return net


def inputs(net, B=5):
    torch.manual_seed(1)
    t = 1000 * torch.linspace(.5, .9, B, dtype=torch.float64)
    return torch.randn(B, net.channels, net.size, net.size), t, t / 3


# ---- sinusoid

def test_sinusoid_in_closed_form():
    t = torch.tensor([0., 1.5, 994.], dtype=torch.float64)
    e = sinusoid(t, 4, period=100.)
    w = [1., 100**-.25, 100**-.5, 100**-.75]
    want = torch.tensor([[math.cos(v * w_i) for w_i in w] + [math.sin(v * w_i) for w_i in w] for v in t.tolist()], dtype=torch.float64)
    assert e.shape == (3, 8) and torch.allclose(e, want, atol=1e-10), "cosines first, then sines, frequencies from fast to slow"


def test_sinusoid_with_endpoint_ends_at_one_over_period():
    slow = lambda endpoint: sinusoid(torch.tensor(1., dtype=torch.float64), 4, 100., endpoint)[3].acos()
    assert abs(slow(True) - 1/100) < 1e-9 and abs(slow(False) - 100**-.75) < 1e-9


def test_sinusoid_computes_in_float64_whatever_it_is_given():
    assert sinusoid(torch.tensor([1., 2.]), 4).dtype == sinusoid(torch.tensor([1, 2]), 4).dtype == torch.float64
    assert sinusoid(torch.zeros(2, 3), 4).shape == (2, 3, 8)


def test_similarity_of_times_depends_on_their_difference_only():
    d = torch.tensor([0., 1., 20.], dtype=torch.float64)
    near, far = ((sinusoid(a + d, 32) * sinusoid(torch.tensor(a).double(), 32)).sum(-1) for a in (3., 700.))
    assert torch.allclose(near, far, atol=1e-8) and abs(near[0] - 32) < 1e-8


# ---- the checks all networks share

@pytest.mark.parametrize("change, said", [
    (dict(x=torch.randn(5, 3, 1, 1)), "x must be torch.float32 [B, 2, 1, 1] for this network; got torch.float32 [5, 3, 1, 1]"),
    (dict(x=torch.randn(5, 2)), "got torch.float32 [5, 2]"),
    (dict(x=torch.randn(5, 2, 1, 1).double()), "got torch.float64"),
    (dict(t=torch.rand(5)), "t must be float64 [5], one time per sample; got torch.float32"),
    (dict(t=torch.rand(4).double()), "t must be float64 [5]"),
    (dict(u=torch.tensor(.5).double()), "u must be float64 [5]"),
    (dict(label=torch.zeros(5)), "label must be int64 [5], -1 for null; got torch.float32"),
    (dict(label=torch.zeros(4).long()), "label must be int64 [5]"),
])
def test_inputs_that_do_not_fit(change, said):
    net = MLP(**TOY, classes=3)
    x, t, u = inputs(net)
    good = dict(x=x, t=t, u=u, label=torch.zeros(5).long())
    check_inputs(net, **good)
    for call in (lambda **k: check_inputs(net, **k), net):
        with pytest.raises(ValueError) as e:
            call(**{**good, **change})
        assert said in str(e.value)


def test_a_label_for_a_network_without_classes():
    net = MLP(**TOY)
    with pytest.raises(ValueError, match="without classes"): net(*inputs(net), torch.zeros(5).long())


# ---- the network

@pytest.mark.parametrize("name, value", [("channels", 0), ("size", 0), ("width", 0), ("depth", 0), ("waves", -1), ("scale", -1.), ("classes", -1)])
def test_what_cannot_be_built(name, value):
    with pytest.raises(ValueError, match=name): MLP(**{**TOY, name: value})


@pytest.mark.parametrize("kwargs", [{}, dict(waves=0), dict(depth=1), dict(channels=3, size=4), dict(classes=3)], ids=str)
def test_shape_and_number_of_parameters(kwargs):
    net = MLP(**{**TOY, **kwargs})
    c, layer = net.config, lambda a, b: a*b + b
    dim = c["channels"] * c["size"]**2
    by_hand = (layer(dim + 2*c["waves"], 32) + 2*layer(64, 32) + (c["depth"] - 1)*layer(32, 32) + layer(32, dim)
               + (c["classes"] > 0)*(c["classes"] + 1)*32)
    assert sum(p.numel() for p in net.parameters()) == by_hand
    x, t, u = inputs(net)
    assert net(x, t, u).shape == x.shape and (net(x, t, u) == 0).all(), "a fresh network says G = 0"


def test_both_times_and_x_matter_and_samples_do_not_mix():
    net = spoken()
    x, t, u = inputs(net)
    y = net(x, t, u)
    for changed in (net(x + .1, t, u), net(x, t + 1, u), net(x, t, u + 1), net(x, u, t)):
        assert ((changed - y).abs() > 1e-4).flatten(1).any(1).all(), "x, t and u must each change the output, and t and u differ"
    alone = torch.cat([net(x[i:i+1], t[i:i+1], u[i:i+1]) for i in range(5)])
    assert torch.allclose(y, alone, atol=1e-4)


def test_null_is_minus_one_and_the_last_row():
    net = spoken(classes=3)
    x, t, u = inputs(net)
    null, none = net(x, t, u, torch.full((5,), -1)), net(x, t, u)
    assert torch.allclose(null, none), "no label is the null label"
    with torch.no_grad(): net.label.weight[3] += 1
    assert not torch.allclose(net(x, t, u), none), "null is the last row of the table"
    labels = torch.tensor([0, 1, 2, 0, 1])
    before = net(x, t, u, labels)
    with torch.no_grad(): net.label.weight[3] += 1
    assert torch.allclose(net(x, t, u, labels), before), "classes do not use null's row"


def test_every_parameter_learns():
    net = spoken(classes=3)
    net(*inputs(net), torch.tensor([0, 1, 2, -1, 0])).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters())


def test_config_and_weights_rebuild_the_network():
    net, other = spoken(classes=3), MLP(**spoken(classes=3).config)
    assert "frequencies" in net.state_dict(), "the random frequencies are saved with the weights"
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(*inputs(net)), net(*inputs(net))) and torch.equal(copy.deepcopy(net)(*inputs(net)), net(*inputs(net)))


def test_the_frequencies_are_normal_with_the_given_scale_and_not_trained():
    torch.manual_seed(0)
    net = MLP(waves=4000, scale=3.)
    assert net.frequencies.shape == (2, 4000) and abs(net.frequencies.std() - 3) < .15 and abs(net.frequencies.mean()) < .2
    assert not net.frequencies.requires_grad and "frequencies" not in dict(net.named_parameters())


def test_on_the_meta_device():
    net = spoken()
    with torch.device("meta"): empty = MLP(**net.config)
    assert all(v.is_meta for v in empty.state_dict().values()), "nothing is allocated"
    x, t, u = (v.to("meta") for v in inputs(net))
    assert empty(x, t, u).shape == x.shape
    empty.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(empty(*inputs(net)), net(*inputs(net)))


def test_times_stay_out_of_autocast():
    net, seen = spoken(), []
    for layer in (net.t, net.u): layer.register_forward_hook(lambda m, args, out: seen.append((args[0].dtype, out.dtype)))
    x, t, u = inputs(net)
    with torch.autocast("cpu", torch.bfloat16): y = net(x, t, u)
    assert seen == [(torch.float32,)*2]*2, "in bfloat16 neighbouring times would become one"
    plain = net(x, t, u)
    assert (y.float() - plain).abs().max() < .1 * plain.abs().max(), "autocast may round, not change"


def test_in_float64():
    net = spoken().double()
    x, t, u = inputs(net)
    assert net(x.double(), t, u).dtype == torch.float64


def test_inside_imm_and_the_sampler():
    model = IMM(spoken(classes=3), OTFM()).eval()
    x = .5 * torch.randn(6, 2, 1, 1)
    assert torch.allclose(model(x, .5, .5), x), "a jump of length zero stays"
    assert model(x.double(), .9, .2, 1, guidance=2.).dtype == torch.float64
    points = sample.points(model, 7, steps=2, label=1)
    assert points.shape == (7, 2, 1, 1) and points.isfinite().all()
    assert sample.image_shape(model) == (2, 1, 1)


def test_an_untrained_model_jumps_like_a_perfect_denoiser():
    model, s, t = IMM(MLP(**TOY), OTFM()), *torch.tensor([.1, .6], dtype=torch.float64)
    x = torch.randn(4, 2, 1, 1)
    assert torch.allclose(model(x, t, s), (model.flow.dot(s, t) / model.flow.dot(t, t)).float() * x)


def test_features_draw_edges_that_the_plain_network_blurs():
    def error(waves):
        torch.manual_seed(0)
        net = MLP(channels=2, width=64, depth=3, waves=waves, scale=3.)
        adam = torch.optim.Adam(net.parameters(), 3e-3)
        t = torch.zeros(256, dtype=torch.float64)
        for _ in range(200):
            x = 2*torch.rand(256, 2, 1, 1) - 1
            squares = (2*x).floor().sum(1, keepdim=True) % 2 * 2 - 1
            loss = (net(x, t, t) - squares).square().mean()
            adam.zero_grad(); loss.backward(); adam.step()
        return loss.item()
    assert error(32) < .6 * error(0), "random Fourier features must help with edges"
