"The command line: what a person types, what they get, and what a slip says."
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import house
from imm_edu import cli, data, metrics, presets, pretrained, sample
from imm_edu import run as runs

SMALL = ["--batch", "16", "--set", "k=10", "--set", "width=16", "--set", "depth=1", "--set", "ema=.9"]


def run(*argv):
    return cli.main([str(a) for a in argv])


def slip(capsys, *argv):
    "What a mistaken command says: one line, exit code 2"
    capsys.readouterr()
    try:
        code = run(*argv)
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and "Traceback" not in said, f"exit code {code}: {said}"
    return said


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    "The folder of a finished run of six steps"
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert run("train", "digits", "--out", folder, "--steps", 6, "--seed", 3, *SMALL) == 0
    return folder


@pytest.mark.parametrize("words", [(), *((name,) for name in cli.COMMANDS)], ids=lambda w: " ".join(w) or "imm-edu")
def test_help(words, capsys):
    with pytest.raises(SystemExit) as e:
        run(*words, "--help")
    text = capsys.readouterr().out
    assert e.value.code == 0 and max(map(len, text.splitlines())) <= 100
    assert not words or f"imm-edu {words[0]}" in text.partition("examples:")[2], "help shows examples"


def test_a_run_leaves_a_model_and_pictures(digits):
    recipe = json.loads((digits / "preset.json").read_text())
    assert recipe["preset"] == "digits" and recipe["changes"]["train.steps"] == 6 and recipe["changes"]["net.width"] == 16
    model = pretrained.load(digits)
    saved = runs.Run(digits).newest()["ema"]
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items()), "the model is the average of the last checkpoint"
    assert sample.sample(model, 2, label=3).shape == (2, 1, 8, 8)
    with Image.open(digits / "samples.png") as picture:
        assert picture.width == picture.height >= 10 * 8 and len(set(picture.convert("L").tobytes())) > 50, "ten rows of ten, not blank"
    along = sorted(p.name for p in (digits / "samples").iterdir())
    assert len(along) == 12 and along[-1] == "00000006-2step.png", "here every step is a twentieth or more"


def test_seeds_matter(digits, tmp_path):
    assert run("train", "digits", "--out", tmp_path / "a", "--steps", 1, "--seed", 4, *SMALL) == 0
    a, b = (presets.get("digits").changed(width=16, depth=1).model(seed) for seed in (3, 4))
    assert not torch.equal(a.net.embed.weight, b.net.embed.weight)


def test_going_on(tmp_path, capsys):
    for steps in (2, 5):
        assert run("train", "digits", "--out", tmp_path / "cut", "--steps", steps, "--set", "schedule=constant", *SMALL) == 0
    assert "going on with" in capsys.readouterr().out
    assert run("train", "--out", tmp_path / "cut") == 0, "a finished run is left as it is"
    assert run("train", "digits", "--out", tmp_path / "whole", "--steps", 5, "--set", "schedule=constant", *SMALL) == 0
    a, b = (pretrained.load(tmp_path / name) for name in ("cut", "whole"))
    assert all(torch.equal(v, w) for v, w in zip(a.parameters(), b.parameters())), "cut in two or not, the same weights"


def test_the_newest_weights_of_a_run_are_used_and_named(digits, tmp_path, capsys):
    "An export of an earlier stop lies in the folder, newer checkpoints beside it; then the export is gone, as in a run still going on"
    going = tmp_path / "going"
    assert run("train", "digits", "--out", going, "--steps", 4, "--set", "schedule=constant", *SMALL) == 0
    old = pretrained.load(going)
    p = presets.get("digits").changed(**cli.read_recipe(going)["changes"]).changed(steps=8)
    runs.fit(p.model(0), p.load_data(), p.make_objective(), p.config(), going, view=lambda t, r: setattr(t, "stop", r.step == 6))
    saved = runs.Run(going).newest()["ema"]
    for _ in range(2):
        model, preset, about = cli.load(going)
        assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items()) and "stopped at 75%, step 6; weights of step 6" in about
        assert not all(torch.equal(v, w) for v, w in zip(model.parameters(), old.parameters()))
        capsys.readouterr()
        assert run("sample", going, "--out", tmp_path / "x.png", "--n", 4) == 0 and "stopped at 75%" in capsys.readouterr().out
        assert run("eval", going, "--n", 60) == 0 and "weights of step 6" in json.loads((going / "scores.json").read_text())["model"]
        (going / "config.json").unlink(missing_ok=True)


def test_sample(digits, tmp_path, capsys):
    out = tmp_path / "new" / "seven.png"
    assert run("sample", digits, "--out", out, "--n", 9, "--label", 7, "--steps", 1) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width == picture.height >= 3 * 8
    assert "9 samples, 1 step, guidance 1.5, seed 0" in capsys.readouterr().out


def test_eval(digits, capsys):
    assert run("eval", digits, "--n", 60) == 0
    scores = json.loads((digits / "scores.json").read_text())
    assert [(r["samples"], r.get("guidance")) for r in scores["scores"]] == [
        ("1 step", 1), ("1 step", 1.5), ("2 steps", 1), ("2 steps", 1.5), ("real digits", None)]
    assert scores["torch"] == torch.__version__ and scores["n"] == 60 and scores["seed"] == 0
    lines = capsys.readouterr().out.splitlines()
    assert "done; weights of step 6" in lines[0] and lines[1].startswith("samples") and all(len(line) <= len(lines[1]) for line in lines[2:7]), "aligned"


def test_a_toy(tmp_path):
    folder = tmp_path / "moons"
    assert run("train", "toy-moons", "--out", folder, "--steps", 6, "--batch", 32, "--set", "width=16", "--set", "depth=1") == 0
    with Image.open(folder / "samples.png") as picture:
        assert picture.width == picture.height > 100
    assert run("eval", folder, "--n", 200) == 0
    rows = json.loads((folder / "scores.json").read_text())["scores"]
    assert [r["samples"] for r in rows] == ["1 step", "2 steps", "4 steps", "real points"] and all(r["mmd"] > r["null95"] > 0 for r in rows[:3])


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    "A preset of a folder of images by class, and the folder; the data folder is a temporary one"
    for module in (data, metrics, presets):
        monkeypatch.setattr(module, "data_folder", lambda root=None: tmp_path / "data")
    digits = presets.get("digits")
    monkeypatch.setitem(presets.PRESETS, "pictures", dataclasses.replace(
        digits, name="pictures", data=("folder", dict(size=8, channels=1, flip=False))))
    real = data.digits()
    for i, c in enumerate(real.label[:600].tolist()):
        (tmp_path / "images" / str(c)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(real.x[i, 0].numpy()).save(tmp_path / "images" / str(c) / f"{i}.png")
    return tmp_path / "images"


def test_eval_of_pictures(pictures, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    assert run("train", "pictures", "--data", pictures, "--out", folder, "--steps", 1, *SMALL) == 0
    assert run("eval", folder, "--n", 40, "--seed", 2) == 0
    said = capsys.readouterr().out
    judges = list((tmp_path / "data").glob("features-*.safetensors"))
    assert said.count("training a network on Images(500") == 1 and len(judges) == 1, "a sixth is held out"
    rows = json.loads((folder / "scores.json").read_text())["scores"]
    assert [(r["samples"], r.get("guidance")) for r in rows] == [
        *((s, w) for s in ("1 step", "2 steps", "4 steps", "8 steps") for w in (1, 1.5)), ("real images", None)]
    assert all(r["n"] == 40 and r["seed"] == 2 and r["features"].startswith("feature network ") and r["reference"] for r in rows), "on every row"
    assert rows[-1]["frechet"] == rows[0]["frechet_real"] < rows[0]["frechet"] / 3
    assert max(len(line) for line in said.splitlines() if line.startswith(("1 step", "real"))) < 100

    assert run("eval", folder, "--n", 40, "--seed", 2) == 0
    assert "training a network" not in capsys.readouterr().out, "the judge is kept"
    assert json.loads((folder / "scores.json").read_text())["scores"] == rows, "same seed, same scores"


def test_eval_where_nothing_can_judge(pictures, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", "pictures", "--data", pictures, "--out", folder, "--steps", 1, *SMALL) == 0
    assert "holds no feature network" in slip(capsys, "eval", folder, "--judge", folder / "preset.json")
    assert "invalid choice" in slip(capsys, "eval", folder, "--features", "eyes")


def test_without_the_notebooks_packages(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imm_edu.show", None)
    monkeypatch.setattr(sys.modules["imm_edu"], "show", None, raising=False)
    assert run("sample", digits, "--out", tmp_path / "a.png") == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == picture.height >= 10 * 8


@pytest.mark.parametrize("words, budget", [(["--minutes", 2], (0, 2)), (["--steps", 9], (9, 0)), ([], (7, 3)),
                                           (["--steps", 9, "--minutes", 2], (9, 2)), (["--set", "steps=9"], (9, 3))])
def test_a_budget_replaces_the_presets(words, budget):
    args = cli.parser().parse_args(["train", "digits", "--out", "x", *map(str, words)])
    config = presets.get("digits").changed(steps=7, minutes=3).changed(**cli.changes(args)).config()
    assert (config.steps, config.minutes) == budget


def test_slips_in_training(digits, tmp_path, capsys):
    new = tmp_path / "new"
    assert "did you mean digits?" in slip(capsys, "train", "digit", "--out", new)
    assert "holds a run of the preset digits; for toy-moons give another --out" in slip(capsys, "train", "toy-moons", "--out", digits)
    assert f"config.lr was {presets.get('digits').train['lr']} and is now 0.5" in slip(capsys, "train", "--out", digits, "--lr", .5)
    assert "holds no run to go on with" in slip(capsys, "train", "--out", new)
    assert "no option 'widht'; did you mean width?" in slip(capsys, "train", "digits", "--out", new, "--set", "widht=3")
    assert "must be a multiple of 4" in slip(capsys, "train", "digits", "--out", new, "--batch", 6)
    assert "needs a CUDA GPU" in slip(capsys, "train", "digits", "--out", new, "--precision", "fp16")
    assert "required: --out" in slip(capsys, "train", "digits")
    assert "unrecognized arguments: --stepps" in slip(capsys, "train", "digits", "--out", new, "--stepps", 3)
    assert "invalid choice" in slip(capsys, "tarin")
    assert not new.exists(), "a slip leaves nothing behind"


def test_slips_with_files(digits, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "cannot write to the run's folder" in slip(capsys, "train", "digits", "--out", tmp_path / "file" / "run", *SMALL)
    assert "no released model of that name" in slip(capsys, "sample", tmp_path / "nothing", "--out", tmp_path / "x.png")
    assert "name it" in slip(capsys, "sample", digits, "--out", tmp_path / "x.jpg")
    assert "label must lie in 0 ... 9" in slip(capsys, "sample", digits, "--out", tmp_path / "x.png", "--label", 12)
    assert "there is no preset.json" in slip(capsys, "eval", tmp_path)
    assert "imagenet256-train.safetensors is no file" in slip(
        capsys, "train", "imagenet256-s", "--out", tmp_path / "new", "--data", tmp_path, "--set", "width=48", "--set", "depth=1")


def test_presets(capsys):
    assert run("presets") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in presets.names())
    assert run("presets", "digits") == 0 and "width=" in capsys.readouterr().out
    assert "did you mean cifar10-paper?" in slip(capsys, "presets", "cifar-10")


def test_debugging_shows_where(tmp_path, monkeypatch):
    monkeypatch.setenv("IMM_DEBUG", "1")
    with pytest.raises(ValueError, match="did you mean"):
        run("train", "digit", "--out", tmp_path)


def test_two_processes(tmp_path):
    "Launched on two processes it is the same run, and only one of them speaks"
    def train_with(name, *launcher):
        words = ["train", "digits", "--out", tmp_path / name, "--steps", 3, "--set", "schedule=constant", *SMALL]
        command = [sys.executable, *launcher, "-m", "imm_edu.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=house.ROOT,
                              env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, pretrained.load(tmp_path / name)
    said, two = train_with("two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert said.count("samples   ") == said.count("model     ") == 1
    _, one = train_with("one")
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), two.parameters())), "the same weights"


# ---- how a run ends

def test_a_dead_training_has_its_own_exit_status(tmp_path, capsys):
    assert run("train", "toy-moons", "--out", tmp_path / "hot", "--lr", 1e6, "--steps", 500, "--batch", 32, "--set", "width=16") == 3
    said = capsys.readouterr()
    assert "gradient that is zero" in said.err and "model     " not in said.out, "no model is announced"
    assert runs.Run(tmp_path / "hot").state.startswith("broken")


def test_a_last_checkpoint_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(runs.Hashing, "write", full)
    assert run("train", "toy-moons", "--out", tmp_path / "full", "--steps", 5, "--batch", 32, "--set", "width=16") == 1
    assert "could not write a checkpoint" in capsys.readouterr().out


def test_slips_with_numbers(digits, tmp_path, capsys):
    assert "at least" in slip(capsys, "eval", digits, "--n", -1) and "at least" in slip(capsys, "eval", digits, "--n", 0)
    assert "--n must be at least 1" in slip(capsys, "sample", digits, "--out", tmp_path / "x.png", "--n", 0)
    assert "steps must be" in slip(capsys, "sample", digits, "--out", tmp_path / "x.png", "--steps", 0)
    assert "width" in slip(capsys, "train", "toy-moons", "--out", tmp_path / "new", "--set", "width=0")
    assert "--set takes name=value" in slip(capsys, "train", "toy-moons", "--out", tmp_path / "new", "--set", "width")


def test_torn_files(digits, tmp_path, capsys):
    from shutil import copytree
    for name in ("run.json", "preset.json"):
        torn = copytree(digits, tmp_path / name)
        (torn / name).write_text((torn / name).read_text()[:40])
        assert f"{name} is damaged" in slip(capsys, "train", "--out", torn) and "is damaged" in slip(capsys, "sample", torn, "--out", tmp_path / "x.png")


# ---- one's own pictures and networks

def test_a_folder_of_ones_own_pictures(pictures, tmp_path, capsys):
    words = ["train", "digits", "--images", pictures, "--out", tmp_path / "mine", "--steps", 2, *SMALL]
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "600 x 1x8x8, 10 classes" in said.partition("\n")[0], "the data are named first"
    assert run("sample", tmp_path / "mine", "--out", tmp_path / "x.png", "--label", 3, "--n", 4) == 0
    assert run("train", "--out", tmp_path / "mine") == 0 and "going on" in capsys.readouterr().out


def test_a_network_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets_for_imm.py").write_text("""
from imm_edu.mlp import MLP
def tiny(): return Tiny(2, 1, 8, 2)
class Tiny(MLP): pass
""")
    assert run("train", "toy-moons", "--net", "my_nets_for_imm:tiny", "--out", "mine", "--steps", 3, "--batch", 32) == 0
    assert "say --net my_nets_for_imm:tiny" in slip(capsys, "sample", "mine", "--out", "x.png"), "a file's word is not enough to import code"
    assert run("sample", "mine", "--net", "my_nets_for_imm:tiny", "--out", "x.png") == 0
    assert "does not" in slip(capsys, "train", "toy-moons", "--net", "my_nets_for_imm:nothing", "--out", "other")


def test_a_preset_of_another_size_takes_no_memory(digits, tmp_path, capsys):
    from shutil import copytree
    odd = copytree(digits, tmp_path / "odd")
    recipe = json.loads((odd / "preset.json").read_text())
    recipe["changes"]["net.width"] = 40_000
    (odd / "preset.json").write_text(json.dumps(recipe))
    assert "describes another network" in slip(capsys, "sample", odd, "--out", tmp_path / "x.png")


def test_a_model_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    def full(*args, **kw):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(pretrained, "save", full)
    words = ["train", "toy-moons", "--out", tmp_path / "full", "--steps", 5, "--batch", 32, "--set", "width=16"]
    assert run(*words) == 1 and "its checkpoint is whole" in capsys.readouterr().out
    monkeypatch.undo()
    assert run(*words) == 0 and (tmp_path / "full" / "config.json").exists(), "the same command writes it now"


def test_a_run_of_ones_own_tensors(tmp_path, capsys):
    file, folder = tmp_path / "waves.safetensors", tmp_path / "run"
    save_file(dict(x=torch.rand(32, 1, 4, 4) * 2 - 1, label=torch.arange(32) % 3), file)
    assert run("train", "digits", "--images", file, "--out", folder, "--steps", 2, *SMALL) == 0
    model, preset, _ = cli.load(folder)
    assert (model.net.size, model.net.channels, model.classes) == (4, 1, 3) and preset.data[0] == "tensors"
    assert run("train", "--out", folder, "--steps", 3) == 0, "going on needs no word about the data"
    file.unlink()
    assert run("sample", folder, "--out", tmp_path / "sheet.png", "--n", 4) == 0, "nor does drawing need the file"
    assert "is no file" in slip(capsys, "train", "--out", folder, "--steps", 4)
