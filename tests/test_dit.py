"The transformer: against independent forms of itself, in its corner cases, and what it refuses."
import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from imm_edu.dit import SIZES, Attention, Condition, DiT, DiTBlock, dit, positions
from imm_edu.flow import OTFM
from imm_edu.precond import IMM


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(**options):
    return DiT(**dict(dict(size=16, channels=3, patch=4, width=64, depth=3, heads=4, classes=10), **options))


def batch(net, B=4):
    t = 1000 * torch.rand(B, dtype=torch.float64)
    label = torch.randint(-1, net.classes, (B,)) if net.classes else None
    return torch.randn(B, net.channels, net.size, net.size), t, t * torch.rand(B, dtype=torch.float64), label


def awake(net):
    "The same network with random numbers wherever it starts at zero"
    for part in (*net.blocks, net.final):
        nn.init.normal_(part.modulation.weight, std=.05)
        nn.init.normal_(part.modulation.bias, std=.5)
    nn.init.normal_(net.final.linear.weight, std=net.final.linear.in_features**-.5)
    for mlp in (net.condition.t, net.condition.u):
        for i in (0, 2):
            nn.init.xavier_uniform_(mlp[i].weight)
    return net


def layer_norm(h):
    return (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()


def plain_attention(layer, h):
    q, k, v = (z.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for z in layer.qkv(h).chunk(3, -1))
    q, k = layer.q_norm(q), layer.k_norm(k)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1]**.5).softmax(-1)
    return layer.out((weights @ v).transpose(1, 2).flatten(2))


def plain_mlp(layer, h):
    h = layer[0](h)
    h = h/2 * (1 + torch.tanh((2/math.pi)**.5 * (h + .044715 * h**3)))        # the tanh form of GELU
    return layer[2](h)


def plain(net, x, t, u, label=None):
    "The same function, from the same weights, with nothing fused"
    c = F.silu(net.condition(t, u, label))[:, None]
    h = F.conv2d(x, net.embed.weight, net.embed.bias, stride=net.patch).flatten(2).transpose(1, 2) + net.positions
    for block in net.blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(c).chunk(6, -1)
        h = h + gate1 * plain_attention(block.attention, layer_norm(h) * (1 + scale1) + shift1)
        h = h + gate2 * plain_mlp(block.mlp, layer_norm(h) * (1 + scale2) + shift2)
    shift, scale = net.final.modulation(c).chunk(2, -1)
    y = net.final.linear(layer_norm(h) * (1 + scale) + shift)
    return F.fold(y.unflatten(-1, (-1, net.channels)).transpose(-1, -2).flatten(-2).transpose(1, 2),
                  (net.size, net.size), net.patch, stride=net.patch)


def gradients(f, net, args):
    net.zero_grad()
    f(*args).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


OPTIONS = [{}, dict(qk_norm=True), dict(classes=0), dict(patch=2, depth=2), dict(patch=16), dict(mlp_ratio=2.5), dict(channels=1, heads=1)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradients_are_those_of_the_plain_form(options):
    net = awake(small(**options)).double()
    x, *rest = batch(net)
    args = x.double(), *rest
    y, want = net(*args), plain(net, *args)
    assert y.std() > .1, "the network must say something, or the comparison is empty"
    assert torch.allclose(y, want, atol=1e-9), "fused and plain must give the same values"
    g, want = gradients(net, net, args), gradients(lambda *a: plain(net, *a), net, args)
    assert (g - want).norm() < 1e-8 * want.norm(), "fused and plain must give the same gradients"
    low = net.float()(x, *rest)
    assert (low - y).norm() < 1e-4 * y.norm(), "float32 must agree with float64 to its digits"


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_pytorch_s(heads):
    ours, theirs, h = Attention(48, heads), nn.MultiheadAttention(48, heads, batch_first=True), torch.randn(3, 16, 48)
    nn.init.normal_(ours.qkv.bias)
    with torch.no_grad():
        for a, b in ((theirs.in_proj_weight, ours.qkv.weight), (theirs.in_proj_bias, ours.qkv.bias),
                     (theirs.out_proj.weight, ours.out.weight), (theirs.out_proj.bias, ours.out.bias)):
            a.copy_(b)
    assert torch.allclose(ours(h), theirs(h, h, h)[0], atol=1e-5), "the rows of qkv are ordered (q/k/v, head, dimension)"


def test_normalised_queries_and_keys_do_not_care_about_scale():
    h, moved = torch.randn(3, 16, 48), {}
    for qk_norm in (False, True):
        layer = Attention(48, 4, qk_norm)
        before = layer(h)
        with torch.no_grad():
            layer.qkv.weight[:96] *= 100
        moved[qk_norm] = (layer(h) - before).abs().max()
    assert moved[True] < .01 < .1 < moved[False], "qk_norm must bound the scores"


@pytest.mark.parametrize("p", [1, 2, 4, 8])
def test_tokens_in_and_out_meet(p):
    "A network that copies each token to the output, reordered within it, returns the image"
    net = DiT(8, 3, p, 3*p*p + -3*p*p % 4, 1, 1)
    n = 3*p*p
    order = torch.arange(n).view(3, p*p).T.flatten()             # (channel, pixel) in, (pixel, channel) out
    with torch.no_grad():
        net.embed.weight.zero_().flatten(1)[:n] = torch.eye(n)
        net.positions.zero_()
        net.final.linear.weight.copy_(torch.eye(net.positions.shape[-1])[order])
    net.norm = nn.Identity()
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(net(x, *torch.zeros(2, 2, dtype=torch.float64)), x, atol=1e-6), f"patch {p}: there and back must lose nothing"


def test_positions_by_hand():
    place = positions(5, 16)[0].view(5, 5, 16)
    f = [10_000 ** (-k/4) for k in range(4)]
    for row, column in ((0, 0), (1, 3), (4, 2)):
        want = [g(v * w) for v in (column, row) for g in (math.sin, math.cos) for w in f]
        assert torch.allclose(place[row, column], torch.tensor(want), atol=1e-6), "sine, cosine of the column, then of the row"
    assert len(place.flatten(0, 1).unique(dim=0)) == 25, "all places must differ"


def test_condition():
    c = Condition(64, classes=10)
    t, u = torch.tensor([[900., 500., 300.], [500., 200., 300.]], dtype=torch.float64)
    null = c(t, u)
    assert not torch.allclose(null[:2], c(u, t)[:2], atol=1e-3), "the two times must not be interchangeable"
    assert torch.equal(null, c(t, u, torch.full((3,), -1))), "no label must be the null label"
    rows = c(t, u, torch.tensor([3, 9, -1])) - null
    assert torch.allclose(rows, c.label.weight[[3, 9, 10]] - c.label.weight[10], atol=1e-6), "a label is a row, null the last"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(c(t, u), null), "autocast must not reach the times"
    close = torch.tensor([987., 987. - 1e-3], dtype=torch.float64)
    assert (c(close, close)[0] - c(close, close)[1]).abs().max() > 0, "times a millionth apart must differ"


def test_every_input_matters_and_samples_do_not_meet():
    net = awake(small())
    x, t, u, label = args = batch(net)
    y = net(*args)
    changed = dict(image=(x.flip(0), t, u, label), t=(x, t - 5, u, label), u=(x, t, u + 5, label), label=(x, t, u, (label + 2) % 10))
    for what, other in changed.items():
        assert (net(*other) - y).abs().amax((1, 2, 3)).min() > 1e-3 * y.std(), f"the output must depend on {what}"
    assert not torch.allclose(net(x.roll(4, -1), t, u, label), y.roll(4, -1), atol=.01 * y.std().item()), "the place must matter"
    alone = torch.cat([net(*(v[i:i+1] for v in args)) for i in range(4)])
    assert torch.allclose(alone, y, atol=1e-4), "samples must not see each other"


def test_untrained_it_says_zero_and_the_block_is_the_identity():
    net = small()
    args = batch(net)
    assert (net(*args) == 0).all(), "untrained, G must be 0"
    x_t, skip = torch.randn(2, 3, 16, 16), .1*.9 + .9*.1
    want = skip / (.1**2 + .9**2) * x_t                          # Simple-EDM's c_skip at s = .1, t = .9
    assert torch.allclose(IMM(net, OTFM())(x_t, .9, .1), want, atol=1e-6), "untrained, the jump must be c_skip x_t"
    block, h, c = DiTBlock(48, 4), torch.randn(3, 9, 48), torch.randn(3, 48)
    assert torch.equal(block(h, c), h), "an untrained block must be the identity"


@pytest.mark.parametrize("chunk", range(6))
def test_the_order_of_the_six_chunks(chunk):
    "Released files depend on it: shift, scale, gate for attention, then for the MLP"
    block, h, c = DiTBlock(48, 4), torch.randn(3, 9, 48), torch.zeros(3, 48)
    with torch.no_grad():
        block.modulation.bias[2*48:3*48] = 1
        block.modulation.bias[5*48:] = 1
        block.modulation.bias[chunk*48:(chunk + 1)*48] = .7
    v = [.7 if i == chunk else float(i in (2, 5)) for i in range(6)]
    want = h + v[2] * block.attention(layer_norm(h) * (1 + v[1]) + v[0])
    want = want + v[5] * block.mlp(layer_norm(want) * (1 + v[4]) + v[3])
    assert torch.allclose(block(h, c), want, atol=1e-4), f"chunk {chunk}"


def test_as_a_jump():
    model = IMM(awake(dit("S/4", 32, 3, classes=10)), OTFM())
    x_t, t = .5 * torch.randn(2, 3, 32, 32), torch.tensor([.9, .4], dtype=torch.float64)
    with torch.no_grad():
        x_s = model(x_t, t, .1, label=torch.tensor([3, -1]), guidance=1.5)
    assert x_s.shape == x_t.shape and x_s.isfinite().all() and not torch.equal(x_s, x_t), "a jump moves"
    assert torch.equal(model(x_t, t, t), x_t), "a jump of length zero must be the identity"


@pytest.mark.parametrize("options", [{}, dict(qk_norm=True, classes=0, mlp_ratio=2.5, checkpoint=True)], ids=str)
def test_config_rebuilds_it(options):
    net = awake(small(**options))
    twin = DiT(**json.loads(json.dumps(net.config)))
    twin.load_state_dict(net.state_dict())
    args = batch(net)
    assert str(twin) == str(net) and twin.config == net.config, "config must survive JSON and rebuild the network"
    assert torch.equal(twin(*args), net(*args)), "and with its weights it must compute the same"


def test_checkpointing_changes_memory_only():
    net = awake(small())
    frugal, args = DiT(**{**net.config, "checkpoint": True}), batch(net, 8)
    frugal.load_state_dict(net.state_dict())

    def kept(net):
        "Bytes autograd keeps, besides weights"
        weights, seen = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}
        def pack(v):
            seen[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes()
            return v
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
            y = net(*args)
        return y, sum(n for p, n in seen.items() if p not in weights)

    (y, much), (same, little) = kept(net), kept(frugal)
    assert torch.allclose(same, y, atol=1e-6), "checkpointing must not change values"
    g = gradients(net, net, args)
    assert (gradients(frugal, frugal, args) - g).norm() < 1e-5 * g.norm(), "nor gradients"
    assert little < .5 * much, "it must save memory"


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, .1), (torch.float16, .02)])
def test_autocast(dtype, bound):
    net = awake(small(qk_norm=True))
    args = batch(net, 8)
    y = net(*args)
    with torch.autocast("cpu", dtype):
        low = net(*args)
    low.float().square().mean().backward()
    assert low.dtype == dtype and (low.float() - y).norm() < bound * y.norm(), f"{dtype} must agree to its digits"
    assert all(p.grad.isfinite().all() for p in net.parameters()), "gradients must be finite"


def test_it_compiles_into_one_graph():
    net = awake(small(depth=1))
    args = batch(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*args), net(*args), atol=1e-5), "the compiled network must compute the same"


KNOWN = {"S/2": (33.20, 12.109), "S/4": (33.17, 2.823), "B/2": (131.29, 46.005), "B/4": (131.21, 11.126),   # counted on an
         "L/2": (459.40, 161.389), "L/4": (459.30, 39.386), "XL/2": (676.74, 237.237), "XL/4": (676.62, 58.081)}   # independent implementation


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_and_work(name):
    with torch.device("meta"):
        net = dit(name, 32, 4, 1000)
        x, t = torch.zeros(1, 4, 32, 32), torch.zeros(1, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, t, t)
    M, G = sum(v.numel() for v in net.state_dict().values()) / 1e6, counter.get_total_flops() / 1e9
    assert (round(M, 2), round(G, 3)) == KNOWN[name], "parameters (M) and work (GFLOP) must be the architecture's"
    N, D, depth = (32 // net.patch)**2, *SIZES[name.partition("/")[0]][:2]
    by_hand = depth * (24*N*D*D + 4*N*N*D + 12*D*D) / 1e9
    assert .97 < by_hand / G < 1, "nearly all of the work must be in the blocks"


@pytest.mark.parametrize("name, entries", [("S/2", 136), ("XL/2", 296)])
def test_released_names_cover_everything_once(name, entries):
    with torch.device("meta"):
        net = dit(name, 32, 4, 1000)
    names = net.released_names()
    assert len(names) == entries, f"a released file of depth {len(net.blocks)} has {entries} entries"
    assert sorted(names.values()) == sorted(net.state_dict()), "every tensor needs exactly one released name"


def test_released_names_follow_the_options():
    names = small(qk_norm=True).released_names()
    assert names["y_embedder.embedding_table.weight"] == "condition.label.weight" and names["pos_embed"] == "positions"
    assert "blocks.2.attn.q_norm.weight" in names, "normalised queries have names too"
    assert not any(n.startswith("y_embedder") for n in small(classes=0).released_names()), "no labels, no table"


def test_a_table_with_one_row_more_is_refused():
    "Files made with the original code's own label dropout have another null row"
    state = small().state_dict()
    state["condition.label.weight"] = torch.zeros(12, 64)
    with pytest.raises(RuntimeError, match="size mismatch for condition.label.weight"):
        small().load_state_dict(state)


@pytest.mark.parametrize("args, said", [
    ((32, 3, 5, 64, 2, 4), "patch = 5 does not divide size = 32"), ((32, 3, 4, 64, 2, 5), "heads = 5 does not divide width = 64"),
    ((32, 3, 4, 66, 2, 2), "width = 66 is not a multiple of 4"), ((32, 3, 4, 64, 2, 2, -1), "classes must be 0")])
def test_impossible_networks_are_refused(args, said):
    with pytest.raises(ValueError, match=said):
        DiT(*args)


@pytest.mark.parametrize("name", ["M/2", "S", "S/3", "s/2", "", "S/4/2"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="is unknown; write S, B, L or XL"):
        dit(name, 32, 3)


@pytest.mark.parametrize("change, said", [
    (dict(x=lambda x: x[:, :2]), r"x must be torch.float32 \[B, 3, 16, 16\].*got torch.float32 \[4, 2, 16, 16\]"),
    (dict(x=lambda x: torch.zeros(4, 3, 32, 32)), r"x must be torch.float32 \[B, 3, 16, 16\]"),
    (dict(x=lambda x: x.double()), "got torch.float64"),
    (dict(t=lambda t: t[0]), r"t must be float64 \[4\], one time per sample; got torch.float64 \[\]"),
    (dict(u=lambda u: u[:3]), r"u must be float64 \[4\].*got torch.float64 \[3\]"),
    (dict(t=lambda t: t.float()), "t must be float64.*neighbouring times would become one"),
    (dict(label=lambda v: v[:2]), r"label must be int64 \[4\], -1 for null; got torch.int64 \[2\]"),
    (dict(label=lambda v: v.float()), "label must be int64.*got torch.float32")])
def test_wrong_inputs_are_refused(change, said):
    net = small()
    args = dict(zip(("x", "t", "u", "label"), batch(net)))
    with pytest.raises(ValueError, match=said):
        net(**{k: change.get(k, lambda v: v)(v) for k, v in args.items()})


def test_a_label_for_a_network_without_classes_is_refused():
    net = small(classes=0)
    with pytest.raises(ValueError, match="label was given to a network without classes"):
        net(*batch(net)[:3], torch.zeros(4, dtype=torch.int64))


def test_its_copy_is_its_own():
    net = awake(small())
    args, other = batch(net), copy.deepcopy(net)
    before = other(*args)
    with torch.no_grad():
        net.final.linear.bias += 1
    assert torch.equal(other(*args), before), "a copy must not share weights"
