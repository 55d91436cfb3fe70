"The measuring program: what it calls, what it writes, and what it says when something fails."
import json
from types import SimpleNamespace

import pytest
import torch

from imm_edu import bench, presets
from imm_edu.train import Training

TINY = {"tiny": ("digits", {"width": 16, "depth": 1, "heads": 2}, 8),
        "conv": ("cifar10-coffee", {"net.width": 16, "blocks": 1}, 4)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    "Cases that take no time"
    for name, case in TINY.items():
        monkeypatch.setitem(bench.CASES, name, case)


def weights(training): return [p.detach().clone() for p in training.model.parameters()]


def test_functions_take_turns():
    calls = []
    took = bench.take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 1e-3)
    order = [name for name, before in zip(calls, [None, *calls]) if name != before]
    assert order == list("ab" * 5) and all(m.median > 0 for m in took.values()), "five turns each, one after the other"


@pytest.mark.parametrize("case", ["digits", "dit-s4", "coffee", "unet"])
def test_data_fit_the_network(case):
    model, data, objective = bench.load(case)
    x, label, *augment = data.batch(0, objective.M)
    assert x.shape[1:] == (model.net.channels, model.net.size, model.net.size)
    wanted = getattr(model.net, "augment", 0)
    assert [a.shape[1] for a in augment] == ([wanted] if wanted else [])
    assert not model.classes or label.max() < model.classes


def test_what_is_measured_is_what_trains():
    step = bench.Step("tiny", "plain", 8)
    training = Training(*bench.load("tiny"), step.training.config)
    training.model.train()
    for _ in range(2):
        step(); training.step()
    assert all(map(torch.equal, weights(step.training), weights(training))), "to the last bit"


def test_the_layout_changes_nothing_but_speed():
    plain, other = (bench.Step("conv", words, 4) for words in ("plain", "channels_last"))
    kernels = [next(p for p in s.training.model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1) for s in (plain, other)]
    assert [k.is_contiguous(memory_format=torch.channels_last) for k in kernels] == [False, True]
    before = weights(plain.training)
    assert all(map(torch.equal, before, weights(other.training)))
    plain(); other()
    moved = sum((a - b).abs().sum() for a, b in zip(before, weights(plain.training)))
    apart = sum((a - b).abs().sum() for a, b in zip(weights(other.training), weights(plain.training)))
    assert apart < .1*moved


def test_what_runs_where():
    flat, conv = (bench.load(case)[0].net for case in TINY)
    assert bench.variants(flat, False) == [("plain", "bf16")]
    assert bench.variants(conv, False)[0] == ("plain", "bf16", "channels_last", "bf16 channels_last")
    assert bench.variants(flat, True, True) == [("plain", "tf32", "bf16", "fp16"), ("plain", "fp16 compile")]
    assert bench.variants(conv, True, True)[1] == ("plain", "fp16 channels_last compile"), "as a preset with compile=True trains on a GPU"


@pytest.mark.parametrize("kind, names", {
    "products": ("aten::mm", "aten::addmm", "aten::mkldnn_convolution", "sm90_xmma_gemm_bf16bf16_bf16f32", "nvjet_hsh_128x256",
                 "pytorch_flash::flash_fwd_kernel", "aten::convolution_backward", "aten::_scaled_dot_product_flash_attention"),
    "copies": ("aten::copy_", "Memcpy DtoD", "aten::cat", "void at::native::nchwToNhwcKernel", "aten::fill_"),
    "compiled": ("triton_poi_fused_add_mm_3", "triton_red_fused_native_group_norm_backward_2"),
    "optimiser, average": ("aten::_fused_adamw_", "void at::native::multi_tensor_apply_kernel", "aten::_foreach_lerp_"),
    "elementwise, norm": ("aten::mul", "aten::native_group_norm", "aten::silu", "aten::rsqrt", "aten::_to_copy"[:9]),
}.items())
def test_operators_by_kind(kind, names):
    assert {n: bench.kind_of(n) for n in names} == dict.fromkeys(names, kind)


def test_a_profile_accounts_for_the_whole_step():
    a, b = torch.randn(400, 400), torch.randn(400)
    found = bench.profile(lambda: (a @ a, a @ a, b + b))
    assert abs(sum(found.values()) - 1) < 1e-6 and found["products"] > .5 and found["optimiser, average"] == 0


def test_a_case_is_measured():
    rows = []
    bench.Bench("tiny", rows.append)(seconds=.02)
    by = {(r["what"], r["variant"]): r for r in rows}
    assert {v for what, v in by if what == "train"} == {"plain", "bf16"}
    assert {what for what, _ in by} == {"peak", "train", "profile", *(f"sample {n}" for n in (1, 2, 4, 8))}
    assert by["train", "plain"]["ratio"] == 1 and {"torch", "threads", "date", "command"} <= by["train", "plain"].keys()
    peak = max(by["peak", "products"]["found"][k] for k in ("fp32", "bf16"))
    for r in rows:
        if r["what"] == "train":
            flops = 4 * presets.forward_flops(bench.load("tiny")[0].net) * r["images_s"]
            assert abs(r["of_peak"] * peak / flops - 1) < 1e-6
    text = bench.table(rows)
    assert all(r["variant"] in text and r["what"] in text for r in rows)


def test_what_fails_is_named_and_the_rest_goes_on(monkeypatch):
    ready, rows = bench.ready, []
    def broken(case, variant, batch):
        if variant == "bf16": raise RuntimeError("no compiler here\nand a page about it")
        return ready(case, variant, batch)
    monkeypatch.setattr(bench, "ready", broken)
    bench.Bench("tiny", rows.append)(seconds=.02)
    assert [r["variant"] for r in rows if r["what"] == "train"] == ["plain"]
    assert [(r["variant"], r["reason"]) for r in rows if r["what"] == "not run"] == [("warm-up, bf16", "RuntimeError: no compiler here")]
    assert "not run, warm-up, bf16: RuntimeError: no compiler here" in bench.table(rows)


def test_the_batch_is_doubled_until_memory_ends(monkeypatch):
    def room_for_64(case, variant, batch):
        if batch > 64: raise MemoryError
        return (lambda: None), 0
    monkeypatch.setattr(bench, "ready", room_for_64)
    assert list(bench.by_batch("tiny", "plain", 16, float("inf"))) == [16, 32, 64]
    assert bench.by_batch("tiny", "plain", 16, 0) == {}


def test_memory_on_a_gpu_that_is_played(monkeypatch):
    "A training that met the end of memory and split its batch is not one that fits"
    gpu = dict(used=100, ooms=0)
    fake = dict(is_available=lambda: True, empty_cache=lambda: None, reset_peak_memory_stats=lambda: None, synchronize=lambda: None,
                memory_allocated=lambda: gpu["used"], max_memory_allocated=lambda: 900, memory_stats=lambda: dict(num_ooms=gpu["ooms"]))
    for name, f in fake.items():
        monkeypatch.setattr(torch.cuda, name, f)
    def step(case, variant, batch):
        def take(): gpu["ooms"] += batch > 64
        return take
    monkeypatch.setattr(bench, "Step", step)
    assert bench.ready("tiny", "plain", 64)[1] == 800
    with pytest.raises(MemoryError, match="a batch of 128 does not fit"):
        bench.ready("tiny", "plain", 128)


def test_the_command_writes_each_measurement_when_it_is_made(tmp_path, monkeypatch, capsys):
    def cut_off(step): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(bench, "profile", cut_off)
        bench.main(["tiny", "--seconds", ".02", "--no-compile", "--out", str(tmp_path / "new")])
    files = {p.name: json.loads(p.read_text()) for p in (tmp_path / "new").iterdir()}
    assert set(files) == {"tiny-peak-products.json", "tiny-train-plain.json", "tiny-train-bf16.json"}, "and nothing half-written"
    assert files["tiny-train-plain.json"]["images_s"] > 0
    capsys.readouterr()
    assert bench.main(["tiny", "--seconds", ".02", "--no-compile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(json.loads(line)["case"] == "tiny" for line in lines if line.startswith("{")) and "images/s" in "".join(lines)


def test_time_is_shared_and_ends(monkeypatch, capsys):
    asked = {}
    def watch(case, emit, minutes): asked[case] = minutes; return lambda seconds, compile: None
    with monkeypatch.context() as m:
        m.setattr(bench, "Bench", watch)
        m.setattr(bench.time, "monotonic", lambda: 0.)         # no case uses any of its time
        for name in TINY: m.delitem(bench.CASES, name)
        assert bench.main(["--all", "--minutes", "30"]) == 1, "nothing was measured"
    assert list(asked) == ["digits", "dit-s4", "coffee", "unet"] and asked["digits"] == 2 and asked["unet"] == 30
    assert bench.main(["tiny", "--minutes", "1e-9"]) == 1
    assert "no time left" in capsys.readouterr().out


@pytest.mark.parametrize("argv, says", [
    (["unett"], "'unett' is unknown; choose from digits, dit-s4, coffee, unet"),
    (["--seconds", "0"], "--seconds must be positive"), (["--minutes", "-1"], "or 0 for no limit; got 10 and -1")])
def test_slips(argv, says, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(argv)
    assert stop.value.code == 2 and says in capsys.readouterr().err
