"""A small run for the tests of chapters 08 and 14, as a program of its own.

`python tests/training.py kill FOLDER KILLS SEED` kills runs at random moments, continues them, and compares the weights.
`python tests/training.py kill2 FOLDER KILLS SEED` does so with two processes. `torchrun ... tests/training.py two FOLDER` is one such run.
`torchrun ... tests/training.py losses FILE` writes the losses of a short run, whatever the number of processes.
`python tests/training.py train FOLDER` trains until it is done, slowly.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from imm_edu import run, train
from imm_edu.data import toy
from imm_edu.flow import OTFM
from imm_edu.mlp import MLP
from imm_edu.objective import Objective
from imm_edu.precond import IMM


def network(width=16):
    torch.manual_seed(0)
    return IMM(MLP(width=width, depth=2, waves=4), OTFM())


def fit(folder, view=None, model=None, data=None, steps=60, score=None, **kw):
    config = train.Config(**dict(dict(steps=steps, batch=16, lr=3e-3, schedule="cosine", save_every=3, log_every=1), **kw))
    return run.fit(model or network(), data or toy("spiral"), Objective(k=9, M=4), config, folder, view or (lambda *_: None), score)


def weights(training):
    return [v.clone() for part in (training.model, training.ema) for v in part.state_dict().values()]


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a, b))


def slow_disk(every=20, seconds=.004):
    "Makes writing a checkpoint take long enough to be killed in"
    write, calls = run.Hashing.write, iter(range(10**9))

    def slowly(self, data):
        if not next(calls) % every:
            time.sleep(seconds)
        return write(self, data)
    run.Hashing.write = slowly


def child(folder):
    "The process id of a new process that trains in the folder"
    pid = os.fork()
    if pid:
        return pid
    try:
        sys.stdout = open(os.devnull, "w")
        slow_disk()
        fit(folder)
        os._exit(0)
    except BaseException as e:
        print(repr(e), file=sys.stderr, flush=True)
        os._exit(1)


def check(folder, want):
    "A finished run has the weights of an undisturbed one, and every step once in its log"
    assert same(want, weights(fit(folder))), f"{folder}: other weights than without being killed"       # finished: this only restores it
    steps = [row["step"] for row in run.Run(folder).metrics()]
    assert steps == list(range(1, 61)), f"{folder}: the log should have every step once, has {steps}"


def kill_some(folder, kills, seed):
    "Kill and continue until enough were killed"
    draw, done, in_write, finished = random.Random(seed), 0, 0, 0
    want = weights(fit(folder / "whole"))
    while done < kills or not finished:
        home, status = folder / f"run{finished}", None
        while status is None:
            pid, wait = child(home), draw.uniform(0, 1)
            while wait > 0 and (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
                time.sleep(min(wait, .005))
                wait -= .005
            if wait > 0:
                status = ended[1]
                break
            os.kill(pid, signal.SIGKILL)
            _, result = os.waitpid(pid, 0)
            if os.WIFEXITED(result):
                status = result
                break
            done += 1
            in_write += any((home / "checkpoints").glob(".*.part"))
        assert status == 0, f"a continued run failed (exit status {status})"
        check(home, want)
        finished += 1
    print(json.dumps(dict(kills=done, during_a_write=in_write, runs_finished=finished)))


def launch(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, "two", str(folder)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_two(folder, kills, seed):
    "The same with two processes: the launcher and both workers die at once, some time after the first step"
    draw, done, finished = random.Random(seed), 0, 0
    assert launch(folder / "whole").wait() == 0, "two undisturbed processes failed"
    want = run.Run(folder / "whole").newest()
    while done < kills or not finished:
        home = folder / f"run{finished}"
        while True:
            log, before, p = home / "metrics.jsonl", 0, launch(home)
            if log.exists():
                before = log.stat().st_mtime_ns
            while p.poll() is None and (not log.exists() or log.stat().st_mtime_ns == before):
                time.sleep(.01)                                     # until it trains
            end = time.time() + draw.uniform(0, 1.5)
            while p.poll() is None and (time.time() < end or any(home.glob("checkpoints/00000060-*"))):       # what is done may leave
                time.sleep(.005)
            if p.poll() is not None:
                assert p.returncode == 0, f"a continued run failed (exit status {p.returncode})"
                break
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
            subprocess.run(["pkill", "-9", "-f", f"two {home}$"])   # the workers have sessions of their own
            done += 1
        found = run.Run(home).newest()
        assert found["step"] == 60 and all(same(want[k].values(), found[k].values()) for k in ("model", "ema")), f"{home}: other weights"
        finished += 1
    print(json.dumps(dict(kills=done, runs_finished=finished)))


def losses(file):
    "Losses of a short run; in float64, so that other orders of the same sums make no difference"
    training = train.Training(network().double(), toy("spiral"), Objective(k=9, M=4), train.Config(steps=25, batch=32, lr=3e-3))
    found = [record.loss for record in train.train(training)]
    if training.accelerator.is_main_process:
        Path(file).write_text(json.dumps(dict(processes=training.accelerator.num_processes, losses=found)))
    training.disband()


if __name__ == "__main__":
    torch.set_num_threads(1)                            # no thread pool, so that forking is safe
    what, place, *numbers = sys.argv[1:]
    if what == "losses":
        losses(place)
    elif what == "two":
        fit(place, lambda *_: time.sleep(.02)).disband()
    elif what == "train":
        fit(place, lambda *_: time.sleep(.05))
    else:
        dict(kill=kill_some, kill2=kill_two)[what](Path(place), *map(int, numbers))
