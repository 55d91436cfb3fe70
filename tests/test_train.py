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
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29511")
    python("losses", tmp_path / "two.json", launcher=launcher, OMP_NUM_THREADS="1")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    worst = max(abs(a / b - 1) for a, b in zip(one["losses"], two["losses"]))
    assert len(one["losses"]) == 25 and worst < 1e-6, f"losses differ by {worst:.1e}"


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
