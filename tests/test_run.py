"What a run promises: nothing is lost, and a word is said, when processes die, disks fill, fail or vanish, and settings change."
import builtins
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import house
import training
from imm_edu import run, train
from imm_edu.data import toy
from imm_edu.flow import OTFM
from imm_edu.mlp import MLP
from imm_edu.precond import IMM

PROGRAM = Path(__file__).with_name("training.py")
SLOW = "slow" in os.environ.get("FLAGS", "")


def command(*args, launcher=(), **env):
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([sys.executable, *launcher, str(PROGRAM), *map(str, args)], capture_output=True, text=True, cwd=house.ROOT, env=env)


def python(*args, **kw):
    done = command(*args, **kw)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def files(folder):
    "Every file of a folder with its content, the lock and torn temporary files left out"
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "."}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return training.weights(training.fit(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def half(tmp_path):
    "A run that was stopped at step 30 of 60"
    def view(t, record):
        t.stop = record.step == 30
    training.fit(tmp_path / "run", view)
    return tmp_path / "run"


# ---- processes that die

def test_killed_at_random_moments(tmp_path, capsys):
    seen = json.loads(python("kill", tmp_path, 200 if SLOW else 20, 0).splitlines()[-1])
    with capsys.disabled():
        print(f" {seen} ", end="")
    assert seen["kills"] >= 20 and seen["during_a_write"] > 0, f"the test should also kill during a write: {seen}"


def test_two_processes_killed(tmp_path):
    python("kill2", tmp_path, 10 if SLOW else 1, 0)


def test_two_and_four_processes_compute_the_losses_of_one(tmp_path):
    python("losses", tmp_path / "1.json")
    one = json.loads((tmp_path / "1.json").read_text())
    for n in (2, 4):
        python("losses", tmp_path / f"{n}.json", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)))
        some = json.loads((tmp_path / f"{n}.json").read_text())
        assert (one["processes"], some["processes"]) == (1, n)
        worst = max(abs(a / b - 1) for a, b in zip(one["losses"], some["losses"]))
        assert len(one["losses"]) == 25 and worst < 1e-6, f"losses differ by {worst:.1e}: {n} must share one batch and average their gradients"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_saves_and_goes_on(tmp_path, capsys, undisturbed, number):
    def view(t, record):
        if record.step == 25:
            signal.raise_signal(number)
    stopped = training.fit(tmp_path / "run", view)
    assert stopped.steps == 25 and "run it again to go on" in capsys.readouterr().out
    assert run.Run(tmp_path / "run").state == "stopped at 42%, step 25"
    got = training.weights(training.fit(tmp_path / "run"))
    assert "going on with" in capsys.readouterr().out and training.same(undisturbed, got)
    assert run.Run(tmp_path / "run").state == "done"


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    first = subprocess.Popen([sys.executable, str(PROGRAM), "train", str(tmp_path)], stdout=subprocess.DEVNULL, cwd=house.ROOT)
    try:
        while not (tmp_path / "metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(.05)
        before = files(tmp_path)
        with pytest.raises(RuntimeError, match="another process is training in"):
            training.fit(tmp_path)
        assert set(before) <= set(files(tmp_path)), "nothing of the first may be touched"
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    training.fit(tmp_path)
    assert [row["step"] for row in run.Run(tmp_path).metrics()] == list(range(1, 61)), "a dead process holds no lock"


# ---- disks that fail

@pytest.mark.parametrize("which", ["run.json", "metrics.jsonl", "pt"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_read_error_changes_nothing(half, monkeypatch, which, number, undisturbed):
    "Once, and the run goes on when called again; nothing is deleted, renamed or cut meanwhile"
    before, opened, path_open = files(half), builtins.open, Path.open
    failing = [True]

    def check(path):
        if failing and str(path).endswith(which):
            raise OSError(number, os.strerror(number))

    def flaky(path, *args, **kw):
        check(path)
        return opened(path, *args, **kw)

    def path_flaky(self, *args, **kw):
        check(self)
        return path_open(self, *args, **kw)
    monkeypatch.setattr(builtins, "open", flaky)
    monkeypatch.setattr(Path, "open", path_flaky)
    for _ in range(2):
        with pytest.raises(OSError, match="could not be read .*nothing in it was changed"):
            training.fit(half)
    failing.clear()
    assert files(half) == before
    assert training.same(undisturbed, training.weights(training.fit(half)))


def test_a_folder_that_cannot_be_listed_is_not_new(half, monkeypatch):
    before = files(half)

    def failing(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with monkeypatch.context() as m:
        m.setattr(os, "listdir", failing)
        with pytest.raises(OSError, match="nothing in it was changed"):
            training.fit(half)
    assert files(half) == before


def test_a_torn_read_is_no_damage(half, monkeypatch):
    "torch reports a disk that fails halfway as a RuntimeError"
    def failing(*args, **kw):
        raise RuntimeError("PytorchStreamReader failed reading file data/3: file read failed")
    monkeypatch.setattr(torch, "load", failing)
    before = files(half)
    with pytest.raises(OSError, match="could not be read to its end"):
        training.fit(half)
    assert files(half) == before


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_kept_and_the_one_before_is_used(half, capsys, undisturbed):
    newest, before = run.Run(half).saved()
    damage(newest)
    broken = newest.read_bytes()

    def stop(t, record):
        t.stop = record.step == 28
    training.fit(half, stop)
    said = capsys.readouterr().out
    assert f"{newest} is damaged" in said and "at step 27" in said, said
    assert newest.read_bytes() == broken, "the damaged file stays"
    training.fit(half, lambda t, r: setattr(t, "stop", r.step == 29))
    assert training.same(undisturbed, training.weights(training.fit(half)))
    assert newest.read_bytes() != broken or newest.exists(), "the step itself, taken again, has replaced the damaged file by a whole one"
    assert [row["step"] for row in run.Run(half).metrics()] == list(range(1, 61))


def test_a_damaged_checkpoint_of_other_content_outlives_the_pruning(half):
    newest = run.Run(half).saved()[0]
    odd = newest.with_name("00000029-0123456789abcdef.pt")
    odd.write_bytes(b"not what its name says")
    newest.unlink()
    training.fit(half)
    assert odd.read_bytes() == b"not what its name says"


def test_no_whole_checkpoint_is_refused(half):
    for path in run.Run(half).saved():
        damage(path)
    before = files(half)
    with pytest.raises(run.Damaged, match="no checkpoint of it that is whole; to start afresh"):
        training.fit(half)
    assert files(half) == before
    shutil.rmtree(half / "checkpoints")
    with pytest.raises(run.Damaged, match="to start afresh"):
        training.fit(half)


def test_strange_folders_are_refused(half, tmp_path):
    (half / "run.json").write_text("{")
    with pytest.raises(run.Damaged, match="run.json is damaged"):
        training.fit(half)
    (half / "run.json").unlink()
    with pytest.raises(run.Damaged, match="no run.json"):
        training.fit(half)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="give another one"):
        training.fit(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_cannot_be_written_loses_nothing(tmp_path, capsys, monkeypatch, number, undisturbed):
    write, full = run.Hashing.write, [False]

    class Disk:
        def __init__(self, file): self.file = file
        def flush(self): self.file.flush()
        def write(self, data):
            if full[0]:
                raise OSError(number, os.strerror(number))
            return self.file.write(data)

    def over_disk(self, data):
        if not isinstance(self.file, Disk):
            self.file = Disk(self.file)
        return write(self, data)
    monkeypatch.setattr(run.Hashing, "write", over_disk)

    def view(t, record):
        full[0] = 20 < record.step < 40
        if full[0]:
            assert max(run.Run(tmp_path / "run").saved()).name.startswith("00000021"), "the last good checkpoint must stay"
    got = training.weights(training.fit(tmp_path / "run", view))
    said = capsys.readouterr().out
    assert said.count(f"could not write a checkpoint to {tmp_path / 'run'} ({os.strerror(number)})") == 1, f"said once, in the system's words: {said}"
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.part")), "half a file is left"
    assert training.same(undisturbed, got)


def test_a_limit_on_file_size_loses_nothing(tmp_path):
    "A failing disk as the system reports it, not as we imagine it"
    code = f"""if 1:
        import resource, signal, sys
        sys.path.insert(0, {str(PROGRAM.parent)!r})
        import training
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def view(t, record):
            if record.step == 20: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            if record.step == 40: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        got = training.weights(training.fit({str(tmp_path / 'a')!r}, view))
        assert training.same(got, training.weights(training.fit({str(tmp_path / 'b')!r})))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=house.ROOT)
    assert done.returncode == 0, done.stderr
    assert "could not write a checkpoint" in done.stdout


def test_a_folder_that_went_away_is_made_again(tmp_path, undisturbed):
    def view(t, record):
        if record.step == 31:
            shutil.rmtree(tmp_path / "run")
        t.stop = record.step == 40
    training.fit(tmp_path / "run", view)
    assert run.Run(tmp_path / "run").state == "stopped at 67%, step 40"
    assert training.same(undisturbed, training.weights(training.fit(tmp_path / "run")))


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch, undisturbed):
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(now))
    training.fit(tmp_path, lambda t, r: setattr(t, "stop", r.step == 30))
    assert training.same(undisturbed, training.weights(training.fit(tmp_path)))


# ---- what is the same run, and what is not

class Wrapped:
    "A data set that says nothing but its repr"
    def __init__(self, name): self.toy, self.digest = toy(name), lambda: name
    def batch(self, *args): return self.toy.batch(*args)
    def __repr__(self): return "Wrapped()"


class Own(torch.nn.Module):
    "A network of the reader's, without config"
    def __init__(self, width):
        super().__init__()
        self.net = MLP(width=width, depth=2, waves=4)
        self.channels, self.size, self.classes = 2, 1, 0
    def forward(self, *args): return self.net(*args)


def own(width):
    torch.manual_seed(0)
    return IMM(Own(width), OTFM())


def test_other_settings_are_refused_and_named(half, tmp_path):
    for kw, word in ((dict(lr=1e-3), "lr was 0.003 and is now 0.001"), (dict(seed=1), "seed was 0"), (dict(data=toy("moons")), "data was"),
                     (dict(model=training.network(8)), "net.width was 16")):
        with pytest.raises(ValueError, match=re.escape(word)):
            training.fit(half, **kw)
    training.fit(half, steps=70, save_every=4, keep=3)
    training.fit(tmp_path / "own", lambda t, r: setattr(t, "stop", r.step == 9), model=own(16), data=Wrapped("spiral"))
    with pytest.raises(ValueError, match="contents was 'spiral' and is now 'moons'"):
        training.fit(tmp_path / "own", model=own(16), data=Wrapped("moons"))
    with pytest.raises(ValueError, match="net.weights was"):
        training.fit(tmp_path / "own", model=own(8), data=Wrapped("spiral"))


def test_what_stands_in_the_way_of_the_same_bits_is_named(half, capsys):
    about = json.loads((half / "run.json").read_text())
    about["sessions"][-1] |= dict(threads=99, torch="2.0.1")
    (half / "run.json").write_text(json.dumps(about))
    training.fit(half)
    said = capsys.readouterr().out
    assert "Not bit for bit" in said and "threads was 99" in said and "torch was 2.0.1" in said, said


def test_states(tmp_path):
    assert run.Run(tmp_path / "none").state == "new" and run.Run(tmp_path / "none").progress == 0 and not (tmp_path / "none").exists()
    with pytest.raises(train.Broken):
        training.fit(tmp_path / "dead", lr=1e6)
    assert run.Run(tmp_path / "dead").state.startswith("broken: 20 of the last"), run.Run(tmp_path / "dead").state
    training.fit(tmp_path / "timed", steps=0, minutes=10., view=lambda t, r: (setattr(t, "seconds", 300.), setattr(t, "stop", r.step == 4)))
    assert run.Run(tmp_path / "timed").state == "stopped at 50%, step 4"


def test_a_budget_in_minutes_ends_with_a_checkpoint(tmp_path):
    seen = []
    training.fit(tmp_path, lambda t, r: seen.append(r), steps=0, minutes=.01, save_every=10**6, log_every=10**6)
    last = seen[-1]
    assert last.progress == 1 and last.step > 1, "the last record is at the end of the budget"
    assert [p.name[:8] for p in run.Run(tmp_path).saved()] == [f"{last.step:08}"], "the end of the budget is saved"
    assert [row["step"] for row in run.Run(tmp_path).metrics()] == [last.step], "and logged"


def test_the_log_has_means(tmp_path):
    each = []
    training.fit(tmp_path, lambda t, r: each.append(r.loss), log_every=20)
    rows = run.Run(tmp_path).metrics()
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert all(abs(row["loss"] - sum(each[i:i+20])/20) < 1e-6 for i, row in zip((0, 20, 40), rows)), "a line holds the mean since the last one"


def test_a_torn_line_is_left_out(half):
    with open(half / "metrics.jsonl", "a") as f:
        f.write('{"step": 31, "lo')
    assert [row["step"] for row in run.Run(half).metrics()] == list(range(1, 31))
    training.fit(half)
    assert [row["step"] for row in run.Run(half).metrics()] == list(range(1, 61))


def test_a_budget_of_days_is_named(tmp_path, capsys):
    training.fit(tmp_path / "long", lambda t, r: setattr(t, "stop", r.step == 12), steps=10**9, schedule="constant")
    assert re.search(r"the rest of the budget takes [\d,]+ days", capsys.readouterr().out)
    training.fit(tmp_path / "short", steps=20)
    assert "days" not in capsys.readouterr().out
