"What only a GPU can show. The other tests hide it (conftest.py), so on_gpu.py runs in a process of its own that sees it."
import subprocess
import sys

import pytest

import house


def test_on_a_gpu():
    if not house.has_gpu():
        pytest.skip("no GPU here")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "tests/on_gpu.py"]
    done = subprocess.run(command, cwd=house.ROOT, env=house.seeing_gpus(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
