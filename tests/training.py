"""A small run for the tests of chapters 08 and 14, as a program of its own.

`python tests/training.py kill FOLDER KILLS SEED` kills runs at random moments, continues them, and compares the weights.
`python tests/training.py kill2 FOLDER KILLS SEED` does so with two processes. `torchrun ... tests/training.py two FOLDER` is one such run.
`torchrun ... tests/training.py losses FILE` writes the losses of a short run, whatever the number of processes.
`python tests/training.py train FOLDER` trains until it is done, slowly.
`torchrun ... tests/training.py upto FOLDER STOP SHARD` goes on with a run of 24 steps, in float64, and stops after step STOP.
`torchrun ... tests/training.py rows FOLDER` makes features of 140 samples of the kept digits model.
`python tests/training.py kill1 FOLDER KILLS SEED` kills one of two processes at random moments, and lets torchrun start both again.
"""
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from imm_edu import metrics, pretrained, run, scale, train
from imm_edu.data import digits, toy
from imm_edu.dit import DiT
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


def launch(folder, *options, out=subprocess.DEVNULL):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options, __file__, "two", str(folder)]
    return subprocess.Popen(command, start_new_session=True, stdout=out, stderr=out,
                            env={**os.environ, "PYTHONUNBUFFERED": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})   # see chapter 17


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


def kill_one(folder, kills, seed):
    "torchrun starts both processes again whenever one dies; only the steps since the last checkpoint are done twice"
    draw, home, reached, done = random.Random(seed), folder / "run", [], 0
    assert launch(folder / "whole").wait() == 0, "two undisturbed processes failed"
    with open(folder / "said.txt", "w") as out:
        p = launch(home, "--max-restarts", str(2*kills), out=out)
        while p.poll() is None:
            time.sleep(draw.uniform(.05, .6))
            lines = run.Run(home).metrics()
            workers = subprocess.run(["pgrep", "-f", f"[-]u [^ ]*training.py two {home}$"], capture_output=True, text=True).stdout.split()
            started = (folder / "said.txt").read_text().count("going on with") == done
            if done == kills or len(workers) < 2 or not started or not lines or lines[-1]["step"] > 55:
                continue                                            # it still starts, or is nearly done
            os.kill(int(draw.choice(workers)), signal.SIGKILL)
            reached.append(lines[-1]["step"])
            done += 1
    said = (folder / "said.txt").read_text()
    assert p.returncode == 0, said[-2000:]
    again = [int(n) for n in re.findall(r"going on with .* at step (\d+)", said)]
    lost = [a - b for a, b in zip(reached, again)]
    want, found = (run.Run(folder / name).newest() for name in ("whole", "run"))
    assert all(same(want[k].values(), found[k].values()) for k in ("model", "ema")), "other weights than without being killed"
    print(json.dumps(dict(kills=done, restarts=len(again), reached=reached, again=again, most_lost=max(lost, default=0), told=said.count("no longer answers"))))


def upto(folder, stop, shard):
    "Part of a run in float64, where other orders of the same sums make no difference; the digits' DiT has blocks to shard"
    torch.manual_seed(0)
    model = IMM(DiT(8, 1, patch=4, width=16, depth=2, heads=2, classes=10), OTFM()).double()

    def view(training, record):
        training.stop = record.step == stop
    training = fit(folder, view, model, digits(), 24, lr=1e-3, batch=32, save_every=6, shard=bool(shard))
    if training.accelerator.is_main_process:
        assert not any(hasattr(v, "to_local") for v in training.ema.parameters()), "the average must be whole at the end"
    training.disband()


def rows(folder):
    "Each process makes its blocks of features"
    model = pretrained.load(Path(__file__).parents[1] / "nbs" / "results" / "digits").eval()
    scale.feature_rows(model, metrics.untrained(digits(), 0).eval(), folder, range(140), block=20)


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
    elif what == "rows":
        rows(place)
    elif what == "upto":
        upto(place, *map(int, numbers))
    elif what == "train":
        fit(place, lambda *_: time.sleep(.05))
    else:
        dict(kill=kill_some, kill2=kill_two, kill1=kill_one)[what](Path(place), *map(int, numbers))
