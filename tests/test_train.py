"What a training refuses, what it says when it goes wrong, and what it keeps."
import math
import re

import pytest
import torch
from torch import nn

import training
from imm_edu import train
from imm_edu.data import Images, toy
from imm_edu.dit import DiT
from imm_edu.flow import OTFM
from imm_edu.mlp import MLP
from imm_edu.objective import Objective
from imm_edu.precond import IMM
from imm_edu.unet import UNet

OBJECTIVE = Objective(k=9, M=4)


def make(model=None, data=None, objective=OBJECTIVE, teacher="self", **kw):
    return train.Training(model or training.network(), data or toy("moons"), objective, train.Config(**{**dict(steps=4, batch=16), **kw}), teacher)


@pytest.mark.parametrize("kw, words", [
    (dict(steps=0), "give a budget"), (dict(schedule="cosin"), "schedule 'cosin' is unknown; choose one of constant, linear, cosine"),
    (dict(steps=1.5), "steps must be a whole number, at least 0; got 1.5"), (dict(ema=1), "[0, 1); got 1"), (dict(compile="graphs"), "choose one of False, True"),
    (dict(lr=0), "lr must be positive; got 0"), (dict(lr=math.nan), "lr must be positive"), (dict(batch=True), "batch must be a whole number"),
    (dict(precision="half"), "precision 'half' is unknown"), (dict(patience=0), "patience must be a whole number, at least 1"),
    (dict(clip=-1.), "clip must be a number, at least 0"), (dict(optimiser="sgd"), "choose one of adamw, radam"), (dict(keep=0), "keep")])
def test_settings_that_cannot_be_meant(kw, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        train.Config(**{**dict(steps=4), **kw})


def pictures(classes=10, size=8, channels=1, augment=0.):
    g = torch.Generator().manual_seed(0)
    label = torch.arange(64) % classes if classes else None
    return Images(torch.randint(256, (64, channels, size, size), dtype=torch.uint8, generator=g), label, augment=augment)


def dit(classes=10, size=8, channels=1):
    return IMM(DiT(size, channels, 2, 16, 1, 1, classes=classes), OTFM())


def unet(augment=0):
    return IMM(UNet(8, 1, width=32, mults=(1,), blocks=1, attention=(), classes=10, augment=augment), OTFM())


class Nine:
    "Data of one's own, which say nothing about themselves"
    def batch(self, step, size, seed=0):
        return torch.zeros(size, 1, 8, 8), torch.full((size,), 9)


@pytest.mark.parametrize("build, words", [
    (lambda: make(MLP()), "model must be an IMM around a network; got MLP"), (lambda: make(objective={}), "objective must be an Objective; got dict"),
    (lambda: make(data=[1]), "data must have batch"), (lambda: make(batch=18), "batch = 18 must be a multiple of 4"),
    (lambda: make(accumulate=8), "batch = 16 must be a multiple of 32"), (lambda: make(teacher="other"), "teacher must be 'self' or 'ema'"),
    (lambda: make(dit(9), pictures()), "the data have 10 classes and DiT knows 9; build it with classes=10"),
    (lambda: make(dit(9), Nine()), "the data have 10 classes"), (lambda: make(dit(5), pictures()), "build it with classes=10"),
    (lambda: make(dit(size=16), pictures()), "the data are torch.float32 [1, 8, 8], but DiT takes floats [1, 16, 16]"),
    (lambda: make(dit(channels=3), pictures()), "takes floats [3, 8, 8]"),
    (lambda: make(unet(), pictures(augment=.1)), "the data give 9 augmentation labels for each image, but UNet takes 0"),
    (lambda: make(unet(9), pictures()), "the data give 0 augmentation labels for each image, but UNet takes 9: use data with augment=0.12"),
    (lambda: make(precision="fp16"), "'fp16' needs a CUDA GPU")])
def test_what_does_not_fit_is_refused(build, words):
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        build()


def test_what_fits_trains():
    for model, data in ((dit(), pictures()), (dit(0), pictures()), (dit(10), pictures(0)), (unet(9), pictures(augment=.5)), (dit(12), pictures())):
        for record in train.train(make(model, data, steps=2)):
            assert math.isfinite(record.loss) and record.grad_norm > 0
    for teacher, optimiser in (("ema", "adamw"), ("self", "radam")):
        assert list(train.train(make(teacher=teacher, optimiser=optimiser)))[-1].step == 4


class Torn:
    "Points that are NaN at some steps"
    def __init__(self, bad): self.bad = bad
    def batch(self, step, size, seed=0):
        x, label = toy("moons").batch(step, size, seed)
        return (x * math.nan if self.bad(step) else x), label


def test_a_step_that_is_not_finite_changes_nothing(capsys):
    training_ = make(data=Torn(lambda n: n == 2), steps=5)
    before = None
    for record in train.train(training_):
        if record.step == 2:
            before = [p.clone() for p in training_.params]
        if record.step == 3:
            assert all(torch.equal(a, b) for a, b in zip(before, training_.params)), "the weights must stay as they were"
    assert record.skipped == 1 and math.isfinite(record.loss)
    assert "step 3: the gradient is not finite; 1 of the last 3 steps taught nothing" in capsys.readouterr().out


@pytest.mark.parametrize("kw, words", [
    (dict(data=Torn(lambda n: n % 3 == 2)), "not finite, up to step 60. The batch of step 60 holds values that are not finite: mend the data"),
    (dict(data=Torn(lambda n: True)), "20 of the last 20 steps had a gradient that is not finite, up to step 20. The batch"),
    (dict(lr=1e6), "gradient that is zero"), (dict(lr=1e6), "Lower lr (now 1e+06)")])
def test_a_dead_training_says_so_and_ends(kw, words):
    with pytest.raises(train.Broken, match=re.escape(words)):
        for _ in train.train(make(steps=500, **kw)):
            pass


def test_the_count_of_bad_steps_survives_a_stop():
    first = make(data=Torn(lambda n: n % 3 == 2), steps=500)
    for record in train.train(first):
        first.stop = record.step == 45
    second = make(data=Torn(lambda n: n % 3 == 2), steps=500)
    second.restore(first.state())
    assert second.skipped == 15
    with pytest.raises(train.Broken, match="up to step 60"):
        for _ in train.train(second):
            pass


def test_a_full_memory_is_remembered(tmp_path, capsys, monkeypatch):
    "Out of memory in the second of two parts, stopped, continued: as if the batch had been cut into four from the start"
    calls, forward = [], MLP.forward

    def limited(self, x, *args):
        calls.append(len(x))
        if len(x) > 5 and len(calls) > 2:
            raise torch.OutOfMemoryError(f"no room for {len(x)} samples")
        return forward(self, x, *args)
    want = training.weights(training.fit(tmp_path / "cut", accumulate=4))
    monkeypatch.setattr(MLP, "forward", limited)
    training.fit(tmp_path / "run", lambda t, r: setattr(t, "stop", r.step == 20), accumulate=2)
    assert capsys.readouterr().out.count("out of memory") == 1 and calls[:4] == [8, 8, 8, 4], "found in the second part"
    done = training.fit(tmp_path / "run", accumulate=2)
    assert done.accumulate == 4 and "out of memory" not in capsys.readouterr().out, "the continued run starts with 4"
    assert training.same(want, training.weights(done))


def test_a_memory_that_is_too_small_for_a_group(monkeypatch):
    def never(self, x, *args):
        raise torch.OutOfMemoryError("no room")
    monkeypatch.setattr(MLP, "forward", never)
    with pytest.raises(train.Broken, match="out of memory with 4 samples at a time, in groups of M = 4"):
        next(train.train(make()))


def test_the_class_that_a_network_without_classes_is_not_told():
    assert next(train.train(make(dit(0), pictures()))).step == 1


def test_compiled_once_per_batch_size(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic=None: seen.append(dynamic) or model)
    assert next(train.train(make(compile=True))).step == 1 and seen == [False]
    assert "compiling the network" in capsys.readouterr().out, "said before the step that takes minutes"


def test_bf16_trains_and_remembers_what_auto_meant(monkeypatch):
    monkeypatch.setattr(train, "bf16_pays", lambda: True)
    first = make(precision="auto")
    assert first.precision == "bf16" and math.isfinite(next(train.train(first)).loss)
    monkeypatch.setattr(train, "bf16_pays", lambda: False)
    second = make(precision="auto")
    assert second.precision == "fp32"
    second.restore(first.state())
    assert second.precision == "bf16", "a run goes on in the precision that it began with"



def test_a_compiled_training_is_the_same_training(monkeypatch):
    whole, losses = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda *a, **k: whole(*a, **k, backend="aot_eager"))     # traced as always, but no C++ is built
    for fast in (False, True):
        t = make(training.network(), compile=fast)
        losses.append([t.step().loss for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4), "compile=True may change rounding, and nothing else"


def test_the_first_step_of_a_session_is_read():
    "As on a GPU, where numbers stay until it is time to look"
    t = make(steps=30, log_every=5, save_every=100)
    t.waits = False
    records = [t.step() for _ in range(11)]
    assert [r.fresh for r in records] == [1, 0, 0, 0, 4, 0, 0, 0, 0, 5, 0] and all(math.isfinite(r.loss) for r in records)
