"""Planted bugs: each must be noticed, and the message must say which fact is violated.

`make mutants` plants them one by one in a copy of the house, in the module and in its notebook, and runs the module's tests and, if
these notice nothing, its chapter. It prints bug, catcher and message, and ends with status 1 if a bug lives.
`python tests/mutants.py WORD ...` takes those whose name contains a word; `--chapters` runs the chapter as well when a test has caught it.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import house

# name, module, what stands there, what is planted, test files besides the module's own
MUTANTS = [
    ("kernel width from c_out(t), not c_out(s, t)", "objective", "c_out(model.flow, draw.s, draw.t, model.sigma_d)", "c_out(model.flow, 0*draw.s, draw.t, model.sigma_d)"),
    ("kernel width without sigma_d", "objective", "c_out(model.flow, draw.s, draw.t, model.sigma_d)", "c_out(model.flow, draw.s, draw.t, 1.)"),
    ("kernel width from (s, r)", "objective", "c_out(model.flow, draw.s, draw.t, model.sigma_d)", "c_out(model.flow, draw.s, draw.r + 1e-9, model.sigma_d)"),
    ("gradient through the teacher", "objective", "torch.no_grad():", "torch.enable_grad():"),
    ("the teacher has noise of its own", "objective", "draw.eps.double(), r)", "draw.eps.double().roll(1, 0), r)"),
    ("teacher and student swap their starts", "objective", "draw.eps.double(), r)", "draw.eps.double(), t)"),
    ("one noise for a whole group", "objective", "return Draw(t, s, r, eps.to(x.device)", "eps = eps[::self.M].repeat_interleave(self.M, 0)\n        return Draw(t, s, r, eps.to(x.device)"),
    ("labels dropped a group at a time", "objective", "dropped = torch.rand(B, device=where, generator=generator) < self.label_drop", "dropped = (torch.rand(B // self.M, device=where, generator=generator) < self.label_drop).repeat_interleave(self.M)"),
    ("the teacher sees dropped labels", "objective", 'clean if self.teacher_label == "clean" else seen', "seen"),
    ("teacher's dropout masks are its own", "objective", "with same_masks(model, x, draw.seed), torch.no_grad()", "with same_masks(model, x, draw.seed + 1), torch.no_grad()"),
    ("parts of a batch share their masks", "objective", "self.seed + i)", "self.seed)"),
    ("r may fall below s", "objective", "return torch.maximum(s, torch.minimum(time_of(model.flow, m), t - self.gap))", "return torch.minimum(time_of(model.flow, m), t - self.gap)"),
    ("half the step from t to r", "objective", "2.**-self.now(self.k)", "2.**-(self.now(self.k) + 1)"),
    ("weight with the wrong sign of the log-SNR", "objective", "self.b - flow.log_snr(t)", "self.b + flow.log_snr(t)"),
    ("weight without alpha² + sigma²", "objective", " * flow.alpha(t)**self.a / flow.dot(t, t)", " * flow.alpha(t)**self.a"),
    ("s drawn from half its range", "objective", "s = model.eps + (t - lo)*v", "s = model.eps + (t - lo)*v/2"),
    ("noise of standard deviation 1", "objective", "eps = model.sigma_d * torch.randn", "eps = torch.randn"),
    ("a squared distance in the Laplace kernel", "mmd", "torch.exp(-w * d.clamp_min(1e-8) / D)", "torch.exp(-w * d.square() / D)"),
    ("the distance divided by sqrt(D)", "mmd", "torch.exp(-w * d.clamp_min(1e-8) / D)", "torch.exp(-w * d.clamp_min(1e-8) / D**.5)"),
    ("the cross term counts once", "mmd", "- 2*K_yz", "- K_yz"),
    ("distances by the matrix product", "mmd", "donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist"),
    ("the V-statistic leaves the diagonal out of its count", "mmd", "(M*M - (1 - diagonal)*M)", "(M*M - M)"),
    ("DDIM with its times swapped", "flow", "self.wedge(s, t) / self.sigma(t))", "self.wedge(t, s) / self.sigma(t))"),
    ("half the slope of the log-SNR", "flow", "-2 / (t * (1 - t))", "-1 / (t * (1 - t))"),
    ("times rounded through float32", "flow", "        out.append(t)\n", "        out.append(t.float().double())\n"),
    ("Simple-EDM's c_out with a plus", "precond", "return -sigma_d * flow.wedge(s, t) / flow.dot(t, t).sqrt()", "return sigma_d * flow.wedge(s, t) / flow.dot(t, t).sqrt()"),
    ("the input is not scaled by sigma_d", "precond", "1 / (sigma_d * flow.dot(t, t).sqrt())", "1 / flow.dot(t, t).sqrt()"),
    ("the network is told the stride instead of s", "precond", '(s if self.second_time == "s" else t - s)', '(s if self.second_time != "s" else t - s)'),
    ("guidance away from the label", "precond", "guidance * (G - G_null)", "guidance * (G_null - G)"),
    ("the null label is the first class", "dit", "torch.where(label < 0, self.classes, label)", "torch.where(label < 0, 0, label)"),
    ("shift and scale change places", "dit", "shift1, scale1, gate1, shift2", "scale1, shift1, gate1, shift2"),
    ("the U-Net's skip doubles the variance", "unet", "* .5**.5)                 # two parts", ")                 # two parts"),
    ("sampling from noise of standard deviation 1", "sample", "(model.sigma_d * draw(", "(1. * draw("),
    ("eta = 1.4 taken for a time", "sample", "between = model.flow.eta_inv(torch.tensor(stops, dtype=torch.float64))", "between = torch.tensor(stops, dtype=torch.float64) / 2"),
    ("restarts without fresh noise", "sample", "x = model.flow.interpolate(x, eps, t)", "x = model.flow.interpolate(x, 0*eps, t)"),
    ("the average moves by its decay", "train", "torch._foreach_lerp_(average, weights, 1 - decay)", "torch._foreach_lerp_(average, weights, decay)", "test_step.py"),
    ("the average never moves", "train", "torch._foreach_lerp_(average, weights, 1 - decay)", "pass", "test_step.py"),
    ("the learning rate never changes", "train", 'group["lr"] = lr', 'group["lr"] = c.lr', "test_step.py"),
    ("clipping is forgotten", "train", "c.clip or math.inf", "math.inf", "test_step.py"),
    ("betas are forgotten", "train", "betas=tuple(config.betas)", "betas=(.9, .999)", "test_step.py"),
    ("parts of a batch are summed, not averaged", "train", "loss = found.loss.mean() / self.accumulate", "loss = found.loss.mean()", "test_step.py"),
    ("the best checkpoint is the highest score", "run", '["score"] <= score: return', '["score"] >= score: return', "test_step.py"),
    ("the best checkpoint is deleted with the old ones", "run", '{path.name, (self.best() or {}).get("checkpoint")}', "{path.name}", "test_step.py"),
    ("a read error is taken for damage", "run", "except Damaged as e:", "except (Damaged, OSError) as e:", "test_run.py"),
    ("a part of the batch is left out by one process of two", "train", "first = self.accumulate, self.accelerator.process_index * self.accumulate", "first = self.accumulate, 0", "test_run.py"),
    ("numbers of bad steps are not counted", "train", "not 0 < norm < math.inf", "False", "test_train.py"),
]


def plant(tree, module, there, planted):
    "Change module and notebook of a copy; the text must stand in both, once"
    path = tree / "imm_edu" / f"{module}.py"
    source = path.read_text(encoding="utf-8")
    if source.count(there) < 1:
        raise SystemExit(f"{module}.py no longer holds {there!r}: bring tests/mutants.py up to date")
    path.write_text(source.replace(there, planted), encoding="utf-8")
    for book in (tree / "nbs").glob("*.ipynb"):
        nb = json.loads(book.read_text(encoding="utf-8"))
        if house.module_of(house.read(book)) != module:
            continue
        for cell in nb["cells"]:
            text = "".join(cell["source"])
            if "#|export" in text and there in text:
                cell["source"] = text.replace(there, planted).splitlines(keepends=True)
        book.write_text(json.dumps(nb), encoding="utf-8")
        return book


def message(output):
    "The first sentence of a failure; where an assertion has none, its test's name is one"
    found = re.findall(r"^E +(?:AssertionError: |ValueError: )?(.+)$|^AssertionError: (.+)$", output, re.M)
    words = next((a or b for a, b in found if not re.match(r"(assert|\+|where|and) ", a or b)), "")
    return words.strip() or "see the name of the test"


def run(tree, *command):
    env = dict(os.environ, PYTHONPATH=str(tree), MPLBACKEND="agg", OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, *map(str, command)], cwd=tree, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def hunt(name, module, there, planted, *tests, chapters=False):
    "Who notices the bug: [(catcher, message)]"
    caught = []
    with tempfile.TemporaryDirectory() as d:
        tree = Path(d) / "house"
        ignore = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "data")
        shutil.copytree(house.ROOT, tree, ignore=ignore, symlinks=True)
        book = plant(tree, module, there, planted)
        files = [f for f in (f"test_{module}.py", *tests) if (tree / "tests" / f).exists() and f != "test_run.py"]
        files += [f for f in tests if f == "test_run.py"]          # slow: only where it is asked for
        if files:
            status, output = run(tree, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{f}" for f in files))
            if status:
                test = re.search(r"^FAILED tests/(\S+)|^ERROR tests/(\S+)", output, re.M)
                name = test[1] or test[2] if test else files[0]
                words = name.partition("::test_")[2].partition("[")[0].replace("_", " ")
                caught.append((name.partition("::")[0], f"{words}: {message(output)}"))
        if book and (chapters or not caught):
            status, output = run(tree, Path(sys.executable).with_name("nbdev_test"), "--path", book, "--n_workers", "0")
            if status:
                caught.append((book.stem, message(output)))
    return caught


def main(words):
    chapters, words = "--chapters" in words, [w for w in words if not w.startswith("--")]
    chosen = [m for m in MUTANTS if not words or any(w in m[0] for w in words)]
    living, start = [], time.time()
    for name, *mutant in chosen:
        caught = hunt(name, *mutant, chapters=chapters)
        for catcher, says in caught or [("NOBODY", "the bug lives")]:
            print(f"{mutant[0]:10} {name}\n{'':11}{catcher}: {says[:200]}", flush=True)
        living += [name] * (not caught)
    print(f"{len(chosen)} bugs, {len(chosen) - len(living)} caught, {time.time() - start:.0f} s" + "".join(f"\nalive: {n}" for n in living))
    return bool(living)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
