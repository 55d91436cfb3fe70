"A training step against the plain loop that it stands for: optimiser, learning rate, clipping, averages, parts."
import copy
import json
import math

import pytest
import torch

from imm_edu import run, train
from imm_edu.data import seeded, toy
from imm_edu.flow import OTFM
from imm_edu.mlp import MLP
from imm_edu.objective import Objective
from imm_edu.precond import IMM

STEPS, OBJECTIVE = 5, Objective(k=9, M=4, b=5)
BASE = dict(steps=STEPS, batch=32, lr=1e-2, ema=.9)


def network():
    torch.manual_seed(0)
    return IMM(MLP(width=16, depth=2, waves=4), OTFM())


def trained(**kw):
    training = train.Training(network(), toy("moons"), OBJECTIVE, train.Config(**{**BASE, **kw}))
    return training, list(train.train(training))


def plain(lr=1e-2, schedule="constant", warmup=0, optimiser="adamw", betas=(.9, .999), weight_decay=0., clip=0., ema=.9, seed=0):
    "The same written down without the library: weights and their average after the last step"
    model, data = network(), toy("moons")
    average = copy.deepcopy(model)
    kind = dict(adamw=torch.optim.AdamW, radam=torch.optim.RAdam)[optimiser]
    opt = kind(model.parameters(), lr, betas, weight_decay=weight_decay)
    for n in range(STEPS):
        x, _ = data.batch(n, 32, seed)
        OBJECTIVE(model, x, generator=seeded(seed, n, "draw")).loss.mean().backward()
        if clip:
            norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
            for p in model.parameters():
                p.grad *= min(1., clip / norm)
        done = n / STEPS
        fall = dict(constant=1, linear=1 - done, cosine=(1 + math.cos(math.pi * done)) / 2)[schedule]
        opt.param_groups[0]["lr"] = lr * fall * (min(1, (n + 1) / warmup) if warmup else 1)
        opt.step()
        opt.zero_grad()
        stay = min(ema, (n + 1) / (n + 10))
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters()):
                a.copy_(stay * a + (1 - stay) * p)
    return model, average


def distance(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters()))


SETTINGS = [dict(), dict(schedule="cosine"), dict(schedule="linear", warmup=3), dict(betas=(.5, .6)), dict(clip=1e-3, optimiser="radam", betas=(.0, .99)),
            dict(weight_decay=.5), dict(ema=.3), dict(seed=7)]


@pytest.mark.parametrize("kw", SETTINGS, ids=lambda kw: ",".join(kw) or "plain")
def test_five_steps_are_those_of_the_plain_loop(kw):
    (training, _), (model, average) = trained(**kw), plain(**kw)
    assert distance(training.model, model) < 2e-5, f"the weights differ from those of the plain loop with {kw or 'all defaults'}"
    assert distance(training.ema, average) < 2e-5, f"the average differs: a = d a + (1 - d) w after each step, with {kw or 'all defaults'}"
    if kw:
        theirs, ours = plain(), (model, average)
        assert max(distance(a, b) for a, b in zip(theirs, ours)) > 1e-4, "the test must see whether the setting is used"


def test_parts_have_the_gradient_of_the_whole():
    whole, *_ = trained()[1]
    parts, *_ = trained(accumulate=4)[1]
    assert abs(parts.grad_norm / whole.grad_norm - 1) < 1e-4, f"4 parts: a gradient of {parts.grad_norm:.4g}, the whole: {whole.grad_norm:.4g}; each part counts a quarter"
    assert abs(parts.loss / whole.loss - 1) < 1e-4, "and the loss is that of the whole batch"


def test_the_best_checkpoint_is_the_lowest_and_stays(tmp_path):
    scores = iter([3., 1., 2., 4.])
    config = train.Config(steps=8, batch=32, save_every=2, keep=1, lr=1e-3)
    run.fit(network(), toy("moons"), OBJECTIVE, config, tmp_path, view=lambda *_: None, score=lambda ema: next(scores))
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["score"] == 1. and best["checkpoint"].startswith("00000004"), f"the lowest score is the best; kept is {best}"
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pt"))
    assert best["checkpoint"] in names and len(names) == 2, f"the best outlives the newer ones that are kept; there are {names}"
