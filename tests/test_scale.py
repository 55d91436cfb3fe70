"Several processes: they change neither losses nor scores, lose nothing, and read what others wrote."
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import house
from imm_edu import metrics, pretrained, run, scale
from imm_edu.cli import main
from imm_edu.data import digits

SLOW = "slow" in os.environ.get("FLAGS", "")
PROGRAM = house.ROOT / "tests" / "training.py"


def launch(n, *words):
    "A program on n processes"
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", n] if n > 1 else []
    calm = dict(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    done = subprocess.run([str(v) for v in (sys.executable, *several, PROGRAM, *words)], capture_output=True, text=True, cwd=house.ROOT,
                          env={**os.environ, **calm, "PYTHONPATH": str(house.ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run of 24 steps by one process, and one of two that hold parts, stopped half-way"
    place = tmp_path_factory.mktemp("parts")
    launch(1, "upto", place / "whole", 99, 0)
    launch(2, "upto", place / "half", 12, 1)
    return place


def agree(a, b):
    "Two finished runs have the same weights, averages, moments and losses"
    one, other = (run.Run(folder).newest() for folder in (a, b))
    assert one["step"] == other["step"] == 24
    for name in ("model", "ema"):
        assert all(torch.allclose(one[name][k], other[name][k], rtol=0, atol=1e-9) for k in one[name]), f"other weights in {name}"
    for i, moments in one["optimiser"]["state"].items():
        assert torch.allclose(moments["exp_avg"], other["optimiser"]["state"][i]["exp_avg"], atol=1e-9), f"another moment of tensor {i}"
    first, second = ({row["step"]: row["loss"] for row in run.Run(folder).metrics()} for folder in (a, b))
    assert [*first] == [*second] == [*range(1, 25)], "every step once"
    assert all(abs(first[i] / second[i] - 1) < 1e-6 for i in first), "other losses"


@pytest.mark.parametrize("processes, shard", [(1, 0), (4, 1)] + [(2, 0)] * SLOW)
def test_others_go_on_with_the_parts_of_two(whole, tmp_path, processes, shard):
    shutil.copytree(whole / "half", tmp_path / "run")
    assert run.Run(tmp_path / "run").saved()[0].is_dir(), "two processes that hold parts leave a folder"
    launch(processes, "upto", tmp_path / "run", 99, shard)
    agree(whole / "whole", tmp_path / "run")


def test_two_go_on_in_parts_with_the_file_of_one(whole, tmp_path):
    launch(1, "upto", tmp_path / "run", 12, 0)
    assert run.Run(tmp_path / "run").saved()[0].is_file()
    launch(2, "upto", tmp_path / "run", 99, 1)
    agree(whole / "whole", tmp_path / "run")


def test_a_flipped_byte_in_a_part_is_noticed(whole, tmp_path, capsys):
    shutil.copytree(whole / "half", tmp_path / "run")
    newest, *older = run.Run(tmp_path / "run").saved()
    assert older, "there must be one before"
    part = sorted(newest.glob("*.distcp"))[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert run.Run(tmp_path / "run").newest_path() == older[0] and newest.name in capsys.readouterr().out, "the one before, and a word"
    with pytest.raises(run.Damaged, match=newest.name):
        run.read_checkpoint(newest)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        state = dict(step=7, model=dict(w=torch.arange(6.)))
        path = run.write_parts(state, tmp_path)
        assert torch.equal(run.read_checkpoint(path)["model"]["w"], torch.arange(6.)) and run.read_checkpoint(path)["step"] == 7

        def full(*_):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.write_parts(state | dict(step=8), tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir() if p.name != "store") == [path.name], "what was there stays, and nothing else"
    finally:
        torch.distributed.destroy_process_group()


def test_one_of_two_killed(tmp_path, capsys):
    "torchrun starts both again; the survivor said why, and at most the steps since the last checkpoint are done twice"
    seen = json.loads(launch(1, "kill1", tmp_path, 10 if SLOW else 1, 0).splitlines()[-1])
    with capsys.disabled():
        print(f" {seen} ", end="")
    assert seen["kills"] >= 1 and seen["restarts"] == seen["told"] == seen["kills"], f"each death is told, and each is followed by a restart: {seen}"
    assert seen["most_lost"] <= 3, f"save_every is 3: {seen}"


# ---- files for launchers

def test_files_for_launchers(tmp_path):
    command = ["train", "imagenet256-xl", "--out", "runs/a b", "--set", "shard=true"]
    copies, parts, job = scale.launchers(tmp_path, command, machines=4, gpus=8, least=2)
    from accelerate.commands.config.config_args import load_config_from_file
    found = {p.stem: load_config_from_file(str(p)) for p in (copies, parts)}
    assert all((c.num_processes, c.num_machines) == (32, 4) for c in found.values()), "accelerate must read what we wrote"
    assert found["copies"].distributed_type == "MULTI_GPU" and found["parts"].fsdp_config["fsdp_version"] == 2
    subprocess.run(["bash", "-n", job], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", job], check=True)
    text = job.read_text()
    assert "'runs/a b'" in text and "--nnodes=2:4" in text and "#SBATCH --nodes=4" in text, "words with spaces stay words"
    assert scale.launchers(tmp_path, command, machines=4, gpus=8, least=2), "the same again is no change"
    job.write_text(text + "# mine\n")
    with pytest.raises(FileExistsError, match="job.slurm is there with other content"):
        scale.launchers(tmp_path, command, machines=2)
    assert job.read_text().endswith("# mine\n") and "num_machines: 4" in copies.read_text(), "nothing was written"


def test_the_job_runs_what_it_says(tmp_path):
    "With stand-ins for the cluster's programs; the list of machines is longer than a pipe holds"
    job = scale.launchers(tmp_path, ["train", "digits", "--out", "runs/a b"], machines=2, gpus=4)[2]
    for name, text in dict(scontrol='echo one; seq 20000', srun='"$@"', torchrun='printf "%s\\n" "$@"').items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "17"}
    words = subprocess.run(["bash", job], env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words == ["--nnodes=2", "--nproc-per-node=4", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=17", "--rdzv-endpoint=one:29500",
                     "-m", "imm_edu.cli", "train", "digits", "--out", "runs/a b"]


def test_the_command_that_writes_them(tmp_path, capsys):
    assert main(["launcher", "--out", str(tmp_path / "c"), "--machines", "2", "--", "train", "digits", "--out", "runs/d"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "c" / n) for n in ("copies.yaml", "parts.yaml", "job.slurm")]
    assert main(["launcher", "--out", str(tmp_path / "c")]) == 2 and "give what imm-edu shall do" in capsys.readouterr().err


# ---- scores

@pytest.fixture(scope="module")
def judged():
    model, data = pretrained.load(house.NBS / "results" / "digits").eval(), digits()
    net = metrics.untrained(data, 0).eval()
    return model, net, metrics.features(net, metrics.as_bytes(data))


def test_any_number_of_processes_finds_the_same_score(tmp_path, judged):
    model, net, real = judged
    want = metrics.frechet(metrics.features(net, metrics.by_seed(model, range(140))), real)
    for world in (1, 2, 4):
        rows = [scale.feature_rows(model, net, tmp_path / str(world), range(140), block=20, share=(i, world)) for i in reversed(range(world))]
        assert [r is None for r in rows] == [True] * (world - 1) + [False], "only the main process has the rows, and only when all are there"
        assert metrics.frechet(rows[-1], real) == pytest.approx(want, rel=1e-6), f"another score on {world} processes"
    launch(2, "rows", tmp_path / "launched")
    rows = scale.feature_rows(model, net, tmp_path / "launched", range(140), block=20)
    assert metrics.frechet(rows, real) == pytest.approx(want, rel=1e-6), "another score under torchrun"


def test_a_score_goes_on_where_it_was_stopped(tmp_path, judged, monkeypatch):
    model, net, _ = judged
    made, real = [], scale.by_seed

    def counted(model, seeds, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(seeds)
        return real(model, seeds, *rest)
    monkeypatch.setattr(scale, "by_seed", counted)
    with pytest.raises(KeyboardInterrupt):
        scale.feature_rows(model, net, tmp_path, range(60), block=20)
    made.pop()
    assert len(scale.feature_rows(model, net, tmp_path, range(60), block=20)) == 60
    assert made == [range(20), range(40, 60)], "only the third block was missing"
    with pytest.raises(ValueError, match="steps was 2 and is now 4"):
        scale.feature_rows(model, net, tmp_path, range(60), steps=4, block=20)
    block = sorted(tmp_path.glob("00001-*"))[0]
    content = bytearray(block.read_bytes())
    content[-3] ^= 1
    block.write_bytes(content)
    with pytest.raises(ValueError, match=f"{block.name} is damaged"):
        scale.feature_rows(model, net, tmp_path, range(60), block=20)


def test_a_step_on_paper():
    assert scale.step_seconds(1e15, 4e9, 1, 1e14, 1e9) == 10, "one process exchanges nothing"
    assert scale.step_seconds(1e15, 4e9, 2, 1e14, 1e9) == 5 + 4, "two: half of the work, and every byte once out and once in"
    assert scale.step_seconds(1e15, 4e9, 10**9, 1e14, 1e9) == pytest.approx(8), "many: no work, and every byte twice"
