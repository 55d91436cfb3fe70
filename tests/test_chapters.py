"Every notebook runs from top to bottom in a process of its own."
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import house


def kept():
    "What is kept beside the book, by content"
    return {p: hashlib.md5(p.read_bytes()).digest() for p in house.NBS.rglob("*") if p.is_file() and not p.name.startswith("_")
            and not {".ipynb_checkpoints", "__pycache__"} & {*p.parts}}


@pytest.mark.parametrize("path", house.chapters(), ids=lambda p: p.stem)
def test_chapter(path, book):
    start, before = time.time(), kept()
    book[path.stem] = 0.
    command = [Path(sys.executable).with_name("nbdev_test"), "--path", path, "--n_workers", "0", "--flags", " ".join(house.wanted_flags())]
    done = subprocess.run(command, cwd=house.ROOT, capture_output=True, text=True, env=dict(house.seeing_gpus(), MPLBACKEND="agg"))
    book[path.stem] = time.time() - start
    assert done.returncode == 0, f"{path.name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert kept() == before, f"{path.name}, run from top to bottom, changes a file that is kept beside the book"
