"Setting up, importing and packaging."
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import house


def make(target, tree, path, **variables):
    command = ["make", target, *(f"{k}={v}" for k, v in variables.items())]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env={"PATH": str(path), "HOME": str(tree)})


@pytest.fixture
def bare(tmp_path):
    "A copy of what `make` reads, and a PATH with a shell's tools but no Python"
    for name in ("Makefile", "settings.ini", "setup.py", "requirements.lock"):
        shutil.copy(house.ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "sed", "id", "touch", "make"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def fake_python(tree, body):
    p = tree / "bin" / "python3"
    p.write_text(f"#!/bin/sh\n{body}\n")
    p.chmod(0o755)


@pytest.mark.parametrize("target", ["lab", "test", "check", "run"])
@pytest.mark.parametrize("old", [True, False], ids=["old", "none"])
def test_without_a_new_enough_python(bare, target, old):
    if old:
        fake_python(bare, "exit 1")         # what `sys.exit(sys.version_info < (3, 11))` gives on an old one
    done = make(target, bare, bare / "bin")
    first, *rest = done.stdout.strip().splitlines()
    assert done.returncode and first.startswith("imm_edu needs Python 3.11 or newer") and "install it" in first and not rest
    assert not (bare / ".venv").exists()


def test_without_venv(bare):
    fake_python(bare, 'case "$*" in *version_info*) exit 0;; *) exit 1;; esac')
    done = make("test", bare, bare / "bin")
    assert done.returncode and "apt install python3-venv" in done.stdout and len(done.stdout.strip().splitlines()) == 1
    assert not (bare / ".venv").exists()


def test_an_interrupted_install_is_not_taken_for_a_finished_one(bare):
    fake_python(bare, 'case "$*" in "-m venv"*) mkdir -p .venv/bin; printf "#!/bin/sh\\nexit 1\\n" > .venv/bin/python; chmod +x .venv/bin/python;; *) exit 0;; esac')
    for tool in ("mkdir", "chmod"):
        (bare / "bin" / tool).symlink_to(shutil.which(tool))
    for _ in range(2):
        done = make("test", bare, bare / "bin")
        assert done.returncode and "The install did not finish" in done.stdout, done.stdout + done.stderr
    assert not (bare / ".venv" / "ready").exists()


def test_uv_installs_where_it_is(bare):
    fake_python(bare, 'case "$*" in "-m venv"*) mkdir -p .venv/bin; printf "#!/bin/sh\\necho python \\$* >> calls\\n" > .venv/bin/python; chmod +x .venv/bin/python;; esac')
    for tool in ("mkdir", "chmod"):
        (bare / "bin" / tool).symlink_to(shutil.which(tool))
    uv = bare / "bin" / "uv"
    uv.write_text("#!/bin/sh\necho uv $* >> calls\n")
    uv.chmod(0o755)

    def installed(**variables):
        shutil.rmtree(bare / ".venv", ignore_errors=True)
        (bare / "calls").unlink(missing_ok=True)
        done = make(".venv/ready", bare, bare / "bin", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        line, = [l for l in (bare / "calls").read_text().splitlines() if "install" in l]
        assert line.endswith("-c requirements.lock --editable .[dev]"), "the lock, either way"
        return line

    assert installed().startswith(f"uv pip install --python {bare}/.venv/bin/python")
    assert installed(UV="").startswith("python -m pip install")
    uv.unlink()
    assert installed().startswith("python -m pip install"), "uv is never required"


def test_the_oldest_torch_is_the_one_that_settings_name(bare):
    done = subprocess.run(["make", "-n", "oldest"], cwd=bare, capture_output=True, text=True)
    assert 'LOCK="torch==2.6.* torchvision==0.21.*"' in done.stdout, done.stdout + done.stderr
    files = re.findall(r"tests/test_\w+\.py", done.stdout)
    assert len(files) > 5 and all((house.ROOT / f).exists() for f in files)
    assert "torch>=2.6 torchvision>=0.21 " in (house.ROOT / "settings.ini").read_text()


def test_a_second_call_does_not_install_again():
    ready = house.ROOT / ".venv" / "ready"
    newest = max((house.ROOT / n).stat().st_mtime for n in ("requirements.lock", "settings.ini", "setup.py"))
    if not ready.exists() or ready.stat().st_mtime < newest:
        pytest.skip("the environment was not made by make, or is older than what it is made from")
    done = subprocess.run(["make", "-n", "check"], cwd=house.ROOT, capture_output=True, text=True)
    assert "pip" not in done.stdout, "the environment is ready, yet make would install again"


def test_import_is_light():
    code = """
import sys, torch
with_torch = set(sys.modules)
import imm_edu, imm_edu.exact, imm_edu.flow, imm_edu.mmd, imm_edu.precond
known = {"imm_edu", *sys.stdlib_module_names}
print(*sorted(m for m in set(sys.modules) - with_torch if m.split(".")[0] not in known))
"""
    others = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=house.ROOT).stdout.split()
    assert not others, f"beyond torch and Python itself, importing the library pulls in {others}"


def test_package_holds_the_library_and_nothing_else(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "settings.ini", "README.md", "LICENSE"):
        shutil.copy(house.ROOT / name, tree)
    shutil.copytree(house.LIB, tree / "imm_edu", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-index", "--no-build-isolation", "--quiet", "-w", tmp_path]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1"))
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, = tmp_path.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == {f"imm_edu/{p.name}" for p in house.LIB.glob("*.py")}
    meta = zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))).decode()
    for line in ("Name: imm_edu", "Requires-Dist: torch>=2.6", "Requires-Python: >=3.11", "License-Expression: Apache-2.0"):
        assert line in meta, f"the package's metadata lacks {line!r}"
