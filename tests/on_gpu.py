"Checks on a GPU against the CPU's arithmetic; test_gpu.py runs them where there is one, `python -m pytest --noconftest tests/on_gpu.py` by hand."
import math

import pytest
import torch

from imm_edu import run, train
from imm_edu.data import Images, seeded, toy
from imm_edu.flow import OTFM
from imm_edu.latents import Latents
from imm_edu.mlp import MLP
from imm_edu.objective import Objective
from imm_edu.precond import IMM
from imm_edu.sample import sample
from imm_edu.unet import UNet


def mlp(width=16):
    torch.manual_seed(0)
    return IMM(MLP(width=width, depth=2, waves=4), OTFM())


def unet(dropout=.1):
    torch.manual_seed(0)
    net = UNet(16, 3, width=16, mults=(1, 2), blocks=1, attention=(8,), dropout=dropout, classes=3)
    for p in net.parameters():
        p.data += .02 * torch.randn(p.shape)                    # as after some training: no layer is zero
    return IMM(net, OTFM())


def pictures(**kw):
    return Images(torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=seeded("pictures")), torch.arange(40) % 3, **kw)


def trained(model=None, data=None, folder=None, view=None, **kw):
    config = train.Config(**dict(dict(steps=12, batch=16, lr=3e-3, log_every=1, save_every=4), **kw))
    records = []
    training = run.fit(model or mlp(), data or toy("moons"), Objective(k=9, M=4), config, folder, lambda t, r: (records.append(r), view and view(t, r)))
    return training, records


def apart(a, b):
    return max((p.cpu() - q.cpu()).abs().max().item() for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize("augment, off", [(0., 1e-6), (.5, 1e-4)])
def test_data(augment, off):
    x = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    for own in (x, x / 127.5 - 1):
        here = Images(own, range(40), flip=True, augment=augment)
        there = here.to("cuda")
        assert there.digest() == here.digest()
        for a, b in zip(there.batch(3, 24, 1), here.batch(3, 24, 1)):
            assert a.is_cuda and (a.cpu() - b).abs().max() < off


def test_latents_are_drawn_the_same_for_any_part():
    spread = torch.rand(9, 4, 8, 8) + .5
    codes = Latents(torch.randn(9, 4, 8, 8), spread, range(9)).to("cuda")
    z, label = codes.batch(3, 12)
    parts = [codes.batch(3, 12, part=p)[0] for p in (slice(0, 4), slice(4, 12))]
    assert z.is_cuda and label.is_cuda and torch.equal(torch.cat(parts), z)


@pytest.mark.parametrize("make, shape", [(mlp, (32, 2, 1, 1)), (unet, (32, 3, 16, 16))])
def test_the_loss_of_one_draw(make, shape):
    model, objective, x = make().eval(), Objective(k=9, M=4), torch.randn(shape) / 2
    label = torch.arange(32) % model.classes if model.classes else None
    draw = objective.draw(model, x, seeded("draw"))
    here = objective(model, x, label, draw).loss
    here.mean().backward()
    before = [p.grad.clone() for p in model.parameters()]
    model = model.cuda()
    model.zero_grad()
    moved = draw._replace(eps=draw.eps.cuda(), dropped=draw.dropped.cuda())
    torch.backends.cudnn.allow_tf32 = False
    there = objective(model, x.cuda(), None if label is None else label.cuda(), moved).loss
    there.mean().backward()
    assert torch.allclose(there.cpu(), here, rtol=1e-3, atol=1e-7)
    norm = math.sqrt(sum(g.square().sum().item() for g in before))
    gap = math.sqrt(sum((p.grad.cpu() - g).square().sum().item() for p, g in zip(model.parameters(), before)))
    assert gap < 1e-3 * norm


def test_five_steps_are_those_of_a_plain_loop():
    training, _ = trained(steps=5)
    model, data, objective = mlp().cuda(), toy("moons").to("cuda"), Objective(k=9, M=4)
    start, opt = mlp(), torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.)
    for n in range(5):
        x, _ = data.batch(n, 16)
        objective(model, x, generator=seeded(0, n, "draw", device="cuda")).loss.mean().backward()
        opt.step()
        opt.zero_grad()
    assert apart(training.model, model) < 1e-3 * apart(model, start)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "auto"])
def test_every_precision_trains(precision):
    _, rows = trained(unet(), pictures(), precision=precision, steps=30, log_every=5, save_every=100)
    assert all(math.isfinite(r.loss) for r in rows), "the first record has a loss as well"
    assert [r.fresh for r in rows[:11]] == [1, 0, 0, 0, 4, 0, 0, 0, 0, 5, 0], "numbers are read at the first step, then every five"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stop_changes_nothing(tmp_path, precision):
    def stop(training, record): training.stop = record.step == 7
    whole, _ = trained(unet(), pictures(), precision=precision)
    trained(unet(), pictures(), tmp_path, stop, precision=precision)
    again, rows = trained(unet(), pictures(), tmp_path, precision=precision)
    assert rows[0].step == 8 and apart(whole.ema, again.ema) < 2e-2 * apart(whole.ema, unet()), "up to the order of sums in convolutions"


def test_fp16_skips_a_step_that_is_not_finite():
    training = train.Training(unet(), pictures(), Objective(k=9, M=4), train.Config(steps=40, batch=16, lr=1e-3, precision="fp16", log_every=1))
    training.scaler = torch.amp.GradScaler("cuda", init_scale=2.**40)
    before = [p.clone() for p in training.model.parameters()]
    training.step()
    assert training.meter.skipped == 1 and all(map(torch.equal, before, training.model.parameters()))
    for record in train.train(training):
        pass
    assert 0 < record.skipped < 40 and math.isfinite(record.grad_norm), "the scale falls until gradients are finite"


def test_memory_that_runs_out_splits_the_batch(capsys):
    def make(): return train.Training(unet(dropout=0.), pictures(), Objective(k=9, M=4), train.Config(steps=2, batch=2048, lr=1e-3, log_every=1))
    torch.cuda.empty_cache()
    whole = make()
    torch.cuda.reset_peak_memory_stats()
    expected, peak = whole.step(), torch.cuda.max_memory_allocated()
    split = make()
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(.6 * peak / torch.cuda.get_device_properties(0).total_memory)
        found = split.step()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.)
    assert split.accumulate > 1 and "a batch is computed in" in capsys.readouterr().out
    assert (found.loss, found.grad_norm) == pytest.approx((expected.loss, expected.grad_norm), rel=1e-2), "the same step, in parts"


def test_samples_are_those_of_a_cpu():
    model = unet().eval()
    torch.backends.cudnn.allow_tf32 = False
    here, there = (sample(m, 6, 2, torch.arange(6) % 3, 1.5) for m in (model, unet().eval().cuda()))
    assert (there.cpu() - here).abs().max() < 1e-3
