"The sixty lines of the index, run exactly as they stand there, against the library."
import re

import pytest
import torch

import house
from imm_edu.flow import OTFM
from imm_edu.mlp import MLP
from imm_edu.objective import Draw, Objective
from imm_edu.precond import IMM
from imm_edu.sample import grid, pushforward


@pytest.fixture(scope="module")
def page():
    "What the cells (a) to (f) of the index define"
    cells = [c["source"] for c in house.code_cells(house.read(house.NBS / "index.ipynb")) if re.match(r"# \([a-f]\) ", c["source"])]
    assert len(cells) == 6, "the cells of the sixty lines begin with # (a) ... # (f)"
    space = {}
    exec("\n".join(cells), space)
    space["lines"] = [line for cell in cells for line in cell.splitlines()[1:] if line.strip()]
    return space


@pytest.fixture
def pair(page):
    "The page's network, untrained but for noise in all weights, and the library's with the same weights"
    torch.manual_seed(3)
    theirs, net = page["MLP"](), MLP()
    for p in theirs.parameters():
        p.data += .05 * torch.randn_like(p)
    for ours, p in zip(net.parameters(), theirs.parameters(), strict=True):
        assert ours.shape == p.shape, "both networks have the same layers in the same order"
        ours.data.copy_(p.data)
    net.frequencies.copy_(theirs.waves)
    return theirs, IMM(net, OTFM())


def test_sixty_lines(page):
    assert len(page["lines"]) <= 60, f"the page promises sixty lines and has {len(page['lines'])}"
    assert not any("imm_edu" in line for line in page["lines"]), "they stand on torch alone"


def test_loss_and_gradient_are_the_librarys(page, pair):
    theirs, model = pair
    x, eps = page["checkerboard"](64), page["SD"] * torch.randn(64, 2).double()
    t, s, r = page["times"](4)
    loss = page["imm_loss"](theirs, x.view(4, 16, 2), eps.view(4, 16, 2), t, s, r, .6)
    objective = Objective(k=10, a=1, b=5, M=16, estimator=.6, label_drop=0.)
    draw = Draw(*(v.flatten() for v in (t, s, r)), eps.view(64, 2, 1, 1), torch.zeros(64, dtype=torch.bool), 0)
    ours = objective(model, x.view(64, 2, 1, 1), draw=draw).loss.mean()
    assert abs(loss - ours) < 1e-6, f"one draw, one loss: {loss:.8f} on the page, {ours:.8f} in the library"
    loss.backward(); ours.backward()
    for (name, ours), p in zip(model.net.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(ours.grad, p.grad, rtol=1e-4, atol=1e-6, msg=lambda m: f"gradient of {name}: {m}")
        with torch.no_grad():
            moved = [w - .1 * w.grad for w in (ours, p)]
        assert (moved[0] - moved[1]).abs().max() < 1e-6, f"one step moves {name} to another place"


def test_times_and_weight_are_the_librarys(page, pair):
    _, model = pair
    t, s, r = (v.flatten() for v in page["times"](1000))
    objective = Objective(k=10, a=1, b=5)
    assert torch.allclose(objective.r(model, s, t), r, rtol=0, atol=1e-12), "the teacher's start"
    assert torch.allclose(objective.weight(model.flow, t), page["weight"](t), rtol=1e-9), "the weight"
    assert t.min() >= model.eps and t.max() <= model.T and (s <= t).all(), "times lie where the model works"


@pytest.mark.parametrize("n, stops", [(1, []), (2, [1.4/2.4]), (4, [.747, .5, .253])])
def test_samples_are_the_librarys(page, pair, n, stops):
    theirs, model = pair
    torch.manual_seed(0)
    page_x = page["sample"](theirs, 50, stops)
    torch.manual_seed(0)
    noise = page["SD"] * torch.randn(50, 2).double()
    *_, x = pushforward(model, noise[..., None, None], grid(None, n, model))
    assert (x.flatten(1) - page_x).abs().max() < 1e-5, f"{n} jumps from the same noise land in the same places"
