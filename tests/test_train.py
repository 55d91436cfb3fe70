"What chapter 08 promises across processes: killed runs, two processes, full disks."
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import house
import training
from imm_edu import train

PROGRAM = Path(__file__).with_name("training.py")
KILLS = 200 if "slow" in os.environ.get("FLAGS", "") else 20


def python(*args, launcher=(), **env):
    command = [sys.executable, *launcher, str(PROGRAM), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=house.ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "1", **env})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_killed_at_random_moments(tmp_path, capsys):
    seen = json.loads(python(tmp_path, KILLS, 0).splitlines()[-1])
    with capsys.disabled():
        print(f" {seen} ", end="")
    assert seen["kills"] >= KILLS and seen["during_a_write"] > 0, f"the test should also kill during a write: {seen}"


def test_two_processes_compute_the_losses_of_one(tmp_path):
    python("losses", tmp_path / "one.json", OMP_NUM_THREADS="1")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    python("losses", tmp_path / "two.json", launcher=launcher, OMP_NUM_THREADS="1")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    worst = max(abs(a / b - 1) for a, b in zip(one["losses"], two["losses"]))
    assert len(one["losses"]) == 25 and worst < 1e-4, f"losses differ by {worst:.1e}, other rounding makes some 1e-6"


@pytest.fixture
def full_disk(monkeypatch):
    "A disk that is full while `full` is true"
    state = {"full": False}
    write = train._Hashing.write

    def failing(self, data):
        if state["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)
    monkeypatch.setattr(train._Hashing, "write", failing)
    return state


def test_a_full_disk_loses_nothing(tmp_path, capsys, full_disk):
    def view(t, record):
        full_disk["full"] = 20 < record.step < 40
        if full_disk["full"]:
            assert max(train.Run(tmp_path / "run").saved()).name.startswith("00000021"), "the last good checkpoint must stay"
    got = training.weights(training.run(tmp_path / "run", view))
    said = capsys.readouterr().out
    assert "could not write a checkpoint" in said and "Free some space" in said
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "half a file is left"
    want = training.weights(training.run(tmp_path / "undisturbed"))
    assert all(torch.equal(a, b) for a, b in zip(want, got))


def test_a_limit_on_file_size_loses_nothing(tmp_path):
    "A failing disk as the system reports it, not as we imagine it"
    code = f"""if 1:
        import resource, signal, sys
        sys.path.insert(0, {str(PROGRAM.parent)!r})
        import training, torch
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def view(t, record):
            if record.step == 20: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            if record.step == 40: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        got = training.weights(training.run({str(tmp_path / 'a')!r}, view))
        want = training.weights(training.run({str(tmp_path / 'b')!r}))
        assert all(torch.equal(a, b) for a, b in zip(want, got))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=house.ROOT)
    assert done.returncode == 0, done.stderr
    assert "could not write a checkpoint" in done.stdout


def test_interrupt_saves_and_goes_on(tmp_path, capsys):
    import signal
    def view(t, record):
        if record.step == 25:
            signal.raise_signal(signal.SIGINT)
    stopped = training.run(tmp_path / "run", view)
    assert stopped.step == 25 and "run it again to go on" in capsys.readouterr().out
    got = training.weights(training.run(tmp_path / "run"))
    assert "going on with" in capsys.readouterr().out
    want = training.weights(training.run(tmp_path / "undisturbed"))
    assert all(torch.equal(a, b) for a, b in zip(want, got))


def test_a_full_memory_is_remembered(tmp_path, capsys, monkeypatch):
    "Out of memory in the second of two parts, stopped, continued: as if the batch had been cut into four from the start"
    calls, forward = [], training.DiT.forward

    def limited(self, x, *args):
        calls.append(len(x))
        if len(x) > 5 and len(calls) > 2:
            raise torch.OutOfMemoryError(f"no room for {len(x)} samples")
        return forward(self, x, *args)
    want = training.weights(training.run(tmp_path / "cut", accumulate=4))
    monkeypatch.setattr(training.DiT, "forward", limited)

    def view(t, record):
        t.stop = record.step == 20
    training.run(tmp_path / "run", view, accumulate=2)
    assert capsys.readouterr().out.count("out of memory") == 1 and calls[:4] == [8, 8, 8, 4], "found in the second part"
    done = training.run(tmp_path / "run", accumulate=2)
    assert done.accumulate == 4 and "out of memory" not in capsys.readouterr().out, "the continued run starts with 4"
    assert all(torch.equal(a, b) for a, b in zip(want, training.weights(done)))


def test_a_budget_in_minutes_ends_with_a_checkpoint(tmp_path):
    seen = []
    training.run(tmp_path, lambda t, r: seen.append(r), steps=0, minutes=.01, save_every=10**6, log_every=10**6)
    last = seen[-1]
    assert last.progress == 1 and last.step > 1, "the last record is at the end of the budget"
    assert [p.name[:8] for p in train.Run(tmp_path).saved()] == [f"{last.step:08}"], "the end of the budget is saved"
    assert [row["step"] for row in train.Run(tmp_path).metrics()] == [last.step], "and logged"


@pytest.mark.parametrize("kind, batch", [("unet", 32), ("dit", 64)])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with Linux's /proc")
def test_memory_is_predicted(kind, batch, capsys):
    "The threshold makes glibc give freed memory back, which else it keeps: 13 % more for the U-Net"
    seen = json.loads(python("memory", kind, batch, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="65536").splitlines()[-1])
    ratio = seen["predicted"] / seen["measured"]
    with capsys.disabled():
        print(f" {kind}: {seen['measured']/1e6:.0f} MB, predicted {ratio:.2f} of it ", end="")
    assert abs(ratio - 1) < .15, seen


def ghost(kind, **kw):
    "A step of 16 images without content"
    t = training.images(kind, 16, **kw)
    g, mode = train._ghost(t)
    g.params, g.averages = list(g.model.parameters()), list(g.ema.parameters())
    g.optimiser, g.waits, g.unread, g.known = train._optimiser(g), False, [], (0., 0.)
    return g, mode


def test_a_step_reads_nothing():
    "What has no content cannot be read, so a step without content shows that nothing waits for a number"
    g, mode = ghost("dit", steps=99)
    with mode:
        records = [g.take_step() for _ in range(3)]
        assert [r.fresh for r in records] == [0, 0, 0] and len(g.unread) == 3
        with pytest.raises(Exception, match="(?i)data.dependent|_local_scalar_dense|fake"):
            train._look(g)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_all_of_a_step_is_on_the_device(kind):
    "A tensor of the CPU's among the GPU's means a copy that waits, and no CUDA graph"
    from torch.utils._python_dispatch import TorchDispatchMode
    g, mode = ghost(kind)
    moved = lambda v: torch.empty_like(v, device="cuda") if isinstance(v, torch.Tensor) else v
    found = set()

    class Places(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **kwargs or {})
            for v in (*args, *(out if isinstance(out, (list, tuple)) else [out])):
                if isinstance(v, torch.Tensor) and v.device.type != "cuda":
                    found.add(str(f))
            return out
    with mode:
        for module in g.model.eval().modules():
            for table in (module._parameters, module._buffers):
                table.update({k: moved(v) for k, v in table.items()})
        x, told, draw = g.examples()
        x, draw = moved(x), type(draw)(*map(moved, draw))
        try:
            with Places():
                loss = g.objective(g.model, x, draw=draw).loss.mean()
        except RuntimeError as e:
            if "CUDA" not in str(e):
                raise
            pytest.skip("this torch imitates a GPU only where there is one")
        assert loss.device.type == "cuda" and not found, found


def test_graphs_in_rehearsal(monkeypatch, tmp_path):
    "Each call of a recorded model destroys what the last one returned, and each round starts with a mark"
    last, marks = [], []

    def recorded(model, dynamic=None, mode=None):
        assert (dynamic, mode) == (False, "reduce-overhead")

        def call(*args, **kw):
            for old in last:
                old.data.fill_(float("nan"))
            last[:] = [model(*args, **kw)]
            return last[0]
        return call
    want = training.weights(training.run(tmp_path / "plain", accumulate=2))
    monkeypatch.setattr(torch, "compile", recorded)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(train, "_check_compile", lambda training: None)
    places = set()
    view = lambda t, record: places.add(tuple(p.grad.data_ptr() for p in t.params))
    got = training.weights(training.run(tmp_path / "graphs", view, accumulate=2, compile="graphs"))
    assert all(torch.equal(a, b) for a, b in zip(want, got))
    assert len(marks) == 60 * 2, "a round for each part of each step"
    assert len(places) == 1, "gradients must stay where they are"
