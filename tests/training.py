"""A small run for the tests of chapter 08, as a program of its own.

`python tests/training.py FOLDER KILLS SEED` kills runs at random moments, continues them, and compares the weights.
`torchrun ... tests/training.py losses FILE` writes the losses of a short run, whatever the number of processes.
`python tests/training.py memory NET BATCH` prints the peak of two training steps as predicted and as measured.
"""
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import torch

from imm_edu import train
from imm_edu.data import toy
from imm_edu.dit import DiT
from imm_edu.flow import OTFM
from imm_edu.objective import Objective
from imm_edu.precond import IMM
from imm_edu.unet import UNet


def network(width=16):
    torch.manual_seed(0)
    return IMM(DiT(size=1, channels=2, patch=1, width=width, depth=1, heads=1), OTFM())


def run(folder, view=None, steps=60, **kw):
    config = train.Config(**dict(dict(steps=steps, batch=16, lr=3e-3, schedule="cosine", save_every=3, log_every=1), **kw))
    return train.fit(network(), toy("spiral"), Objective(k=9, M=4), config, folder, view or (lambda *_: None))


def weights(training):
    return [v.clone() for part in (training.model, training.ema) for v in part.state_dict().values()]


def slow_disk(every=20, seconds=.004):
    "Makes writing a checkpoint take long enough to be killed in"
    write, calls = train._Hashing.write, iter(range(10**9))

    def slowly(self, data):
        if not next(calls) % every:
            time.sleep(seconds)
        return write(self, data)
    train._Hashing.write = slowly


def child(folder):
    "The process id of a new process that trains in the folder"
    pid = os.fork()
    if pid:
        return pid
    try:
        sys.stdout = open(os.devnull, "w")
        slow_disk()
        run(folder)
        os._exit(0)
    except BaseException as e:
        print(repr(e), file=sys.stderr, flush=True)
        os._exit(1)


def kill_some(folder, kills, seed):
    "Kill and continue until enough were killed; every finished run must have the weights of an undisturbed one"
    draw, done, in_write, finished = random.Random(seed), 0, 0, 0
    want = weights(run(folder / "whole"))
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
        got = weights(run(home))                        # finished: this only restores it
        assert all(torch.equal(a, b) for a, b in zip(want, got)), f"{home}: other weights than without being killed"
        steps = [row["step"] for row in train.Run(home).metrics()]
        assert steps == list(range(1, 61)), f"{home}: the log should have every step once, has {steps}"
        finished += 1
    print(json.dumps(dict(kills=done, during_a_write=in_write, runs_finished=finished)))


def losses(file):
    "Losses of a short run without dropout"
    training = train.Training(network(), toy("spiral"), Objective(k=9, M=4), train.Config(steps=25, batch=32, lr=3e-3))
    found = [record.loss for record in train.train(training)]
    if training.crew.is_main_process:
        Path(file).write_text(json.dumps(dict(processes=training.crew.num_processes, losses=found)))
    training.disband()


class Pixels:
    "Images of noise"
    def to(self, device):
        return self

    def batch(self, step, size, seed=0):
        return torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(step)), None


def images(kind, batch, **kw):
    "A training on images of 32x32 pixels"
    nets = dict(unet=lambda: UNet(32, 3, width=32, mults=(1, 2), blocks=1, attention=(16,)), dit=lambda: DiT(32, 3, 4, 96, 4, 3))
    return train.Training(IMM(nets[kind](), OTFM()), Pixels(), Objective(), train.Config(**dict(dict(steps=2, batch=batch), **kw)))


def _status(field):
    return 1024 * int(re.search(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def memory(kind, batch):
    "What two steps add to the peak of this process, after a small one that loads what torch needs"
    for _ in train.train(images(kind, 8)):
        pass
    before = _status("VmRSS")
    big = images(kind, batch)
    for _ in train.train(big):
        pass
    print(json.dumps(dict(measured=_status("VmHWM") - before, predicted=train.memory(big))))


if __name__ == "__main__":
    torch.set_num_threads(1)                            # no thread pool, so that forking is safe
    if sys.argv[1] == "losses":
        losses(sys.argv[2])
    elif sys.argv[1] == "memory":
        memory(sys.argv[2], int(sys.argv[3]))
    else:
        kill_some(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
