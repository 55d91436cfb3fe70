"The U-Net: against a literal twin, in its corner cases, and what it refuses."
import copy
import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from imm_edu.flow import OTFM
from imm_edu.precond import IMM
from imm_edu.unet import Conditioning, PixelAttention, ResBlock, UNet, conv, ddpmpp_cifar10, down, norm, small, up


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def awake(net):
    "Every weight at its usual size, norms and biases random as well"
    for name, p in net.named_parameters():
        if p.dim() > 1:
            nn.init.xavier_uniform_(p)
        else:
            nn.init.normal_(p, float("norm" in name and "weight" in name), .1)
    return net


def inputs(net, B=4):
    t = 1000 * torch.rand(B, dtype=torch.float64)
    x = torch.randn(B, net.channels, net.size, net.size, dtype=net.stem.weight.dtype)
    augment = (torch.randn(B, net.augment),) if net.augment else ()
    return x, t, t * torch.rand(B, dtype=torch.float64), torch.arange(B) - 1 if net.classes else None, *augment


# ---- the literal twin: filters for resampling, attention with matrices, frequencies written out

def box(x):
    return torch.full((x.shape[1], 1, 2, 2), .25, dtype=x.dtype)


RESAMPLE = {None: lambda x: x, "down": lambda x: F.conv2d(x, box(x), stride=2, groups=x.shape[1]),
            "up": lambda x: F.conv_transpose2d(x, 4 * box(x), stride=2, groups=x.shape[1])}


def naive_attention(layer, x):
    B, C, H, W = x.shape
    q, k, v = layer.qkv(layer.norm(x)).reshape(B * layer.heads, C // layer.heads, 3, H*W).unbind(2)
    weight = torch.einsum("bcq,bck->bqk", q, k / (C // layer.heads)**.5).softmax(2)
    return (x + layer.proj(torch.einsum("bqk,bck->bcq", weight, v).reshape(B, C, H, W))) * .5**.5


def naive_block(block, x, emb):
    resample = RESAMPLE[block.resample]
    h = block.conv0(resample(F.silu(block.norm0(x))))
    h = F.silu(block.norm1(h + block.shift(emb)[:, :, None, None]))
    h = (block.conv1(block.dropout(h)) + block.skip(resample(x))) * .5**.5
    return naive_attention(block.attn, h) if isinstance(block.attn, PixelAttention) else h


def naive_conditioning(c, t, u, label=None, augment=None):
    def lin(layer, h): return h @ layer.weight.double().T + layer.bias.double()
    def mlp(m, h): return lin(m.fc1, F.silu(lin(m.fc0, h)))
    def waves(t):
        phase = t[:, None] * torch.tensor([10_000 ** (-i / (c.dim//2 - 1)) for i in range(c.dim // 2)], dtype=torch.float64)
        return torch.cat([phase.sin(), phase.cos()], 1)
    h = waves(t)
    if c.classes:
        one = torch.zeros(len(t), c.classes, dtype=torch.float64)
        for row, i in zip(one, label):
            if i >= 0: row[i] = c.classes**.5
        h = h + lin(c.label, one)
    if augment is not None:
        h = h + augment.double() @ c.augment.double().T
    return F.silu(mlp(c.time_t, h) + mlp(c.time_u, waves(u))).to(c.time_t.fc0.weight.dtype)


def naive(net, x, t, u, label=None, augment=None):
    emb = naive_conditioning(net.embed, t, u, label, augment)
    left = [x := net.stem(x)]
    for level in net.enc.values():
        for block in level.values():
            left.append(x := naive_block(block, x, emb))
    for level in net.dec.values():
        for name, block in level.items():
            x = naive_block(block, torch.cat([x, left.pop()], 1) if name.startswith("block") else x, emb)
    assert not left, "every map of the encoder must be used"
    return net.out(F.silu(net.norm(x)))


VARIANTS = dict(small={}, labels=dict(classes=10), heads=dict(size=16, channels=3, heads=4, blocks=2), bare=dict(channels=2, attention=()),
                three=dict(size=16, channels=3, mults=(1, 2, 2), attention=(8, 4)), augmented=dict(classes=10, augment=9))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_it_computes_what_its_literal_twin_does(options):
    net = awake(small(**options)).eval()
    wide = copy.deepcopy(net).double()
    x, *rest = args = inputs(wide, 2)
    y, want = wide(*args), naive(wide, *args)
    assert y.std() > .1, "the network must say something, or the comparison is empty"
    assert (y - want).norm() < 1e-9 * want.norm(), "in float64 they must agree to rounding"
    with torch.no_grad():
        low = net(x.float(), *rest)
    assert low.dtype == torch.float32 and (low - want).norm() < 1e-3 * want.norm(), "float32 to its digits"


def test_its_gradients_are_the_twin_s():
    net = awake(small(classes=10, augment=9)).double()
    args = inputs(net)
    ours, want = (torch.autograd.grad(f(*args).square().sum(), list(net.parameters())) for f in (net, lambda *a: naive(net, *a)))
    for (name, _), g, w in zip(net.named_parameters(), ours, want):
        assert (g - w).norm() <= 1e-7 * w.norm() + 1e-10, f"gradient of {name}"


def test_the_block_s_gradient_is_its_derivative():
    tiny = awake(ResBlock(8, 8, 4, resample="down", heads=1)).double()
    args = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((2, 8, 4, 4), (2, 4))] + list(tiny.parameters())
    assert torch.autograd.gradcheck(lambda x, e, *weights: tiny(x, e), args, fast_mode=True), "finite differences must agree"


@pytest.mark.parametrize("options, shape", [({}, 8), (dict(resample="down"), 4), (dict(resample="up"), 16), (dict(heads=2), 8),
                                            (dict(resample="down", heads=1), 4), (dict(cout=32), 8)], ids=str)
def test_blocks(options, shape):
    block = awake(ResBlock(**dict(dict(cin=64, cout=64, emb=256), **options))).to(memory_format=torch.channels_last)
    x, emb = torch.randn(2, 64, 8, 8).contiguous(memory_format=torch.channels_last), torch.randn(2, 256)
    y = block(x, emb)
    assert y.shape == (2, options.get("cout", 64), shape, shape), "channels and size must be as asked"
    assert torch.allclose(y, naive_block(block, x, emb), atol=1e-4), "the block and its literal twin must agree"
    assert y.is_contiguous(memory_format=torch.channels_last), "the block must keep the layout"


def test_a_fresh_block_is_its_skip():
    block, x, emb = ResBlock(64, 64, 256), torch.randn(2, 64, 8, 8), torch.randn(2, 256)
    assert torch.allclose(block(x, emb), x * .5**.5, atol=1e-3), "whatever it is shown, a fresh block is x times sqrt(1/2)"


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_pytorch_s(heads):
    ours, theirs, x = awake(PixelAttention(64, heads)), nn.MultiheadAttention(64, heads, batch_first=True), torch.randn(2, 64, 8, 8)
    sort = lambda p: p.detach().reshape(heads, 64 // heads, 3, -1).permute(2, 0, 1, 3).reshape(192, -1)
    with torch.no_grad():
        for a, b in ((theirs.in_proj_weight, sort(ours.qkv.weight)), (theirs.in_proj_bias, sort(ours.qkv.bias).flatten()),
                     (theirs.out_proj.weight, ours.proj.weight.flatten(1)), (theirs.out_proj.bias, ours.proj.bias)):
            a.copy_(b)
    h = ours.norm(x).flatten(2).transpose(1, 2)
    want = (x + theirs(h, h, h)[0].transpose(1, 2).view_as(x)) * .5**.5
    assert torch.allclose(ours(x), want, atol=1e-4), "outputs of qkv are ordered (head, channel, q/k/v)"
    shuffle = lambda v: v.flatten(2)[:, :, torch.randperm(64, generator=torch.Generator().manual_seed(1))].view(2, 64, 8, 8)
    assert torch.allclose(ours(shuffle(x)), shuffle(ours(x)), atol=1e-4), "attention must not depend on the order of pixels"
    layer = conv(64, 64)
    assert not torch.allclose(layer(shuffle(x)), shuffle(layer(x)), atol=.1), "a 3x3 convolution does"


def test_halving_and_doubling():
    x, y = torch.randn(2, 5, 8, 6, dtype=torch.float64), torch.randn(2, 5, 4, 3, dtype=torch.float64)
    assert torch.allclose(down(x), RESAMPLE["down"](x)), "a mean of four is the box filter with stride 2"
    assert torch.allclose(up(x), RESAMPLE["up"](x)), "repeating is its transpose, times 4"
    assert torch.equal(down(up(x)), x), "down after up is the identity"
    assert torch.allclose((down(x) * y).sum(), (x * up(y)).sum() / 4), "they are transposes up to a factor 4"


@pytest.mark.parametrize("c, groups", [(4, 1), (8, 2), (64, 16), (128, 32), (256, 32), (384, 32)])
def test_groups(c, groups):
    assert norm(c).num_groups == groups, "at most 32 groups of at least four channels"


@pytest.mark.parametrize("c", [2, 30, 132])
def test_channels_that_cannot_be_grouped(c):
    with pytest.raises(ValueError, match=f"GroupNorm cannot split {c} channels"):
        norm(c)


def test_conditioning():
    c, times = Conditioning(128, 512, classes=10), 1000 * torch.rand(2, 6, dtype=torch.float64)
    null = c(*times)
    assert torch.equal(null, c(*times, torch.full((6,), -1))), "-1 and no label must be the same"
    for other, what in ((c(*times.flip(0)), "swapped times"), (c(*times, torch.arange(6)), "labels")):
        assert (other - null).abs().mean() > .01, f"{what} must change the vector"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(c(*times), null), "autocast must not reach the times"
    assert torch.allclose(c(*times, torch.arange(6)), naive_conditioning(c, *times, torch.arange(6)), atol=1e-4), "the formula"


def test_augmentation_labels():
    torch.manual_seed(1); plain = Conditioning(128, 512)
    torch.manual_seed(1); knows = Conditioning(128, 512, augment=9)
    times, labels = 1000 * torch.rand(2, 6, dtype=torch.float64), torch.randn(6, 9)
    assert torch.equal(knows(*times, augment=labels), plain(*times)), "at first the labels must change nothing"
    knows(*times, augment=labels).square().sum().backward()
    assert knows.augment.grad.norm(dim=0).min() > .1, "but each of the nine must have a gradient"
    nn.init.normal_(knows.augment, std=.1)
    assert torch.equal(knows(*times, augment=0*labels), plain(*times)), "zeros must add nothing"
    assert torch.equal(knows(*times), plain(*times)), "and so must none given"
    for i, column in enumerate(torch.eye(9)):
        assert (knows(*times, augment=column.expand(6, 9)) - plain(*times)).abs().mean() > 1e-3, f"number {i} must matter"


def test_samples_do_not_meet_and_every_input_matters():
    net = awake(small(classes=10, augment=9)).eval()
    x, *rest = inputs(net, 6)
    alone = torch.cat([net(x[i:i+1], *(v[i:i+1] for v in rest)) for i in range(6)])
    assert torch.allclose(net(x, *rest), alone, atol=1e-3), "each sample must be computed on its own"
    for i, what in enumerate(("t", "u", "label", "augment")):
        other = [v.flip(0) if i == j else v for j, v in enumerate(rest)]
        assert (net(x, *other) - alone).abs().mean() > 1e-3, f"{what} must matter"


def test_checkpointing_repeats_dropout():
    net, grads = awake(small(dropout=.5)).train(), []
    args = inputs(net)
    for net.checkpoint in (False, True):
        torch.manual_seed(0)
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(net(*args).square().sum(), list(net.parameters()))]))
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[0].norm(), "checkpointing must give the same gradients, dropout included"


def test_fresh_it_says_almost_nothing():
    "n = 288 inputs and 27 outputs of Xavier weights of variance 2/(n + 27), a SiLU of mean square .36, a gain of 1e-5"
    net = UNet(16, 3, width=32, mults=(1, 2, 2), attention=(8,)).eval()
    G = net(*inputs(net, 8))
    assert .6 < G.std() / (1e-5 * (288 * .36 * 2 / 315)**.5) < 1.6, "the output must have the size that the variances give"
    x_t, skip = torch.randn(2, 3, 16, 16), .1*.9 + .9*.1
    assert torch.allclose(IMM(net, OTFM())(x_t, .9, .1), skip / (.1**2 + .9**2) * x_t, atol=1e-3), "so the jump is c_skip x_t"


def test_through_the_depth():
    "With branches at full size the signal and its gradient reach all blocks alike; fresh, the bottom of the U gets least"
    ratio = {}
    for full in (False, True):
        net, seen = UNet(16, 3, width=32, mults=(1, 2, 2), attention=(8,)).eval(), []
        if full:
            for name, p in net.named_parameters():
                if name.endswith(("conv1.weight", "proj.weight")): nn.init.xavier_uniform_(p)
        def note(block, inputs, out): out.retain_grad(); seen.append(out)
        for m in net.modules():
            if isinstance(m, ResBlock): m.register_forward_hook(note)
        y = net(*inputs(net, 4))
        (y * torch.randn_like(y)).sum().backward()
        size, grad = torch.tensor([[v.detach().std(), v.grad.std()] for v in seen]).T
        ratio[full] = grad.max() / grad.min()
        if full: assert (size > .2).all() and (size < 1.5).all(), "sqrt(1/2) must keep the size of the signal"
        else: assert grad.argmin() in range(11, 18), "at the start the bottom of the U must get the smallest gradient"
    assert ratio[True] < 40 < 200 < ratio[False], f"largest over smallest gradient: {ratio}"


def test_the_paper_s_network():
    with torch.device("meta"):
        net, x, t = ddpmpp_cifar10(), torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.float64)
    assert sum(p.numel() for p in net.parameters()) == 56_061_443, "parameters"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, t, t)
    assert abs(counter.get_total_flops() / 1e9 - 42.381) < .001, "work: the literal network's 42.384 GFLOP less the box filters"
    names = net.released_names()
    kept = [ours for ours in names.values() if ours]
    assert len(names) == 428 and len(names) - len(kept) == 8, "428 entries, 8 of them filters"
    assert sorted(kept) == sorted(net.state_dict()), "each of our tensors must have exactly one released name"
    times, sides = re.compile(r"map_layer[01](_s)?\.(weight|bias)"), re.compile(
        r"(enc|dec)\.(32x32|16x16|8x8)_((conv|aux_norm|aux_conv)|(block\d|down|up|in[01])"
        r"\.(norm[012]|conv[01]|affine|skip|qkv|proj))\.(weight|bias|resample_filter)")
    for n in names: assert times.fullmatch(n) or sides.fullmatch(n), f"{n} is no published name"


def test_names_follow_the_options():
    names = small(classes=10, augment=9).released_names()
    assert names["map_augment.weight"] == "embed.augment" and names["map_label.weight"] == "embed.label.weight"


@pytest.mark.parametrize("options", [{}, dict(classes=10, augment=9, heads=2, dropout=.1, checkpoint=True)], ids=str)
def test_config_rebuilds_it(options):
    net = awake(small(**options)).eval()
    twin = UNet(**json.loads(json.dumps(net.config))).eval()
    twin.load_state_dict(net.state_dict())
    args = inputs(net)
    assert twin.config == net.config and torch.allclose(twin(*args), net(*args), atol=1e-5), "config and weights must rebuild it"


def test_layout():
    net = small()
    assert net.enc["8"]["block0"].conv0.weight.is_contiguous(memory_format=torch.channels_last), "weights lie channels last"
    y = net(*inputs(net))
    assert y.is_contiguous(), "what comes out lies as images do"


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, .15), (torch.float16, .03)])
def test_autocast(dtype, bound):
    net = awake(small(classes=10)).eval()
    args = inputs(net)
    y = net(*args)
    with torch.autocast("cpu", dtype):
        low = net(*args)
    low.float().square().mean().backward()
    assert low.dtype == dtype and (low.float() - y).norm() < bound * y.norm(), f"{dtype} must agree to its digits"
    assert all(p.grad.isfinite().all() for p in net.parameters()), "gradients must be finite"


def test_it_compiles_into_one_graph():
    net = awake(UNet(4, 1, width=32, mults=(1, 1), blocks=1, attention=(2,), classes=10, augment=9)).eval()
    args = inputs(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*args), net(*args), atol=1e-4), "compiled and eager must agree"


@pytest.mark.parametrize("args, options, said", [
    ((30, 3), {}, "size = 30 cannot be halved 2 times; pad to a multiple of 4"),
    ((32, 3), dict(attention=(12,)), "attention = 12 is not a resolution of this network; it"),
    ((32, 3), dict(width=30), "GroupNorm cannot split 30 channels into 7 equal groups"),
    ((32, 3), dict(width=32, heads=3, blocks=1), "heads = 3 does not divide the 64 channels"),
    ((32, 3), dict(mults=()), "mults must hold one positive whole number per level"),
    ((32, 3), dict(blocks=0), "blocks must be a whole number, at least 1; got 0"),
    ((32, 3), dict(augment=-9), "augment must be a whole number, at least 0; got -9"),
    ((32, 3), dict(classes=-1), "classes must be a whole number, at least 0; got -1"),
    ((32, 3.), {}, "channels must be a whole number"),
    ((32, 3), dict(dropout=20), r"dropout must lie in \[0, 1\); got 20")])
def test_impossible_networks_are_refused(args, options, said):
    with pytest.raises(ValueError, match=said):
        UNet(*args, **options)


@pytest.mark.parametrize("change, said", [
    (dict(x=lambda x: x[:, :, :6]), r"x must be torch.float32 \[B, 1, 8, 8\].*got torch.float32 \[4, 1, 6, 8\]"),
    (dict(x=lambda x: x.expand(4, 3, 8, 8)), r"got torch.float32 \[4, 3, 8, 8\]"),
    (dict(x=lambda x: x.double()), "got torch.float64"),
    (dict(t=lambda t: t[0]), r"t must be float64 \[4\], one time per sample; got torch.float64 \[\]"),
    (dict(u=lambda u: u.float()), "u must be float64"),
    (dict(label=lambda v: v.float()), r"label must be int64 \[4\].*got torch.float32"),
    (dict(label=lambda v: v[:2]), r"got torch.int64 \[2\]")])
def test_wrong_inputs_are_refused(change, said):
    net = small(classes=10)
    args = dict(zip(("x", "t", "u", "label"), inputs(net)))
    with pytest.raises(ValueError, match=said):
        net(**{k: change.get(k, lambda v: v)(v) for k, v in args.items()})


def test_a_label_for_a_network_without_classes_is_refused():
    net = small()
    with pytest.raises(ValueError, match="label was given to a network without classes"):
        net(*inputs(net)[:3], torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("n, labels, said", [(0, torch.zeros(4, 9), "net.augment is 0"), (9, torch.zeros(3, 9), r"augment must be floats \[4, 9\]"),
    (9, torch.zeros(4, 8), r"got torch.float32 \[4, 8\]"), (9, torch.zeros(4, 9).long(), "got torch.int64")])
def test_wrong_augmentation_labels_are_refused(n, labels, said):
    "They enter through IMM, which checks them"
    with pytest.raises(ValueError, match=said):
        IMM(small(augment=n), OTFM())(torch.randn(4, 1, 8, 8), .9, .1, augment=labels)
