"""The rules of the house as functions; the tests, `make check` and `make run` call them.

`python tests/house.py run [notebook ...]` runs chapters in a fresh kernel each and keeps their outputs.
`python tests/house.py kernel` installs the kernel that lets notebooks open unchanged; `make` calls it.
`python tests/house.py board` writes the board of results into the README; `make cifar` calls it.
`python tests/house.py metadata` gives every notebook the metadata that JupyterLab would.
`python tests/house.py doors` writes what lets chapters run on Colab and Kaggle, if settings.ini has git_url, and takes it out if not.
"""
import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from configparser import ConfigParser
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
NBS, LIB = ROOT / "nbs", ROOT / "imm_edu"
FLAGS = ("slow", "gpu", "hub")      # settings.ini: tst_flags
WIDGET = "application/vnd.jupyter.widget-view+json"


def chapters():
    "Every notebook of the book, in reading order"
    return sorted(p for p in NBS.glob("*.ipynb") if not p.name.startswith("_"))


def read(path):
    "The cells of a notebook, as plain dictionaries with whole strings"
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        cell["source"] = "".join(cell["source"])
    return nb


def code_cells(nb):
    return [c for c in nb["cells"] if c["cell_type"] == "code"]


def directives(cell):
    "The words after `#|` at the top of a cell"
    return [m.group(1).strip() for m in re.finditer(r"^#\|\s*(.*)$", cell["source"], re.M)]


def flags(cell):
    return [d for d in directives(cell) if d in FLAGS]


def exports(cell):
    return any(d in ("export", "exporti") for d in directives(cell))


def module_of(nb):
    "The module a notebook writes, or None"
    names = [d.split()[1] for c in code_cells(nb) for d in directives(c) if d.startswith("default_exp")]
    return names[0] if names else None


# ---- drift: what nbdev would write, against what is committed

def _nbdev(command, tree):
    "Run an nbdev command on a copy of settings and notebooks"
    shutil.copy(ROOT / "settings.ini", tree)
    (tree / "imm_edu").mkdir()
    (tree / "nbs").mkdir()
    for p in chapters():
        shutil.copy(p, tree / "nbs")
    tool = Path(sys.executable).with_name(command)
    done = subprocess.run([tool], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"


def export_drift():
    "Modules that differ from what the notebooks export"
    with tempfile.TemporaryDirectory() as d:
        _nbdev("nbdev_export", Path(d))
        fresh = {p.name: p.read_text() for p in (Path(d) / "imm_edu").glob("*.py")}
    here = {p.name: p.read_text() for p in LIB.glob("*.py")}
    return sorted(n for n in fresh.keys() | here.keys() if fresh.get(n) != here.get(n))


def unclean():
    "Notebooks that nbdev_clean would change"
    with tempfile.TemporaryDirectory() as d:
        _nbdev("nbdev_clean", Path(d))
        return [p.name for p in chapters() if (Path(d) / "nbs" / p.name).read_text() != p.read_text()]


# ---- metadata: what JupyterLab writes into a notebook as soon as its kernel answers, so that opening one changes nothing

METADATA = dict(
    kernelspec=dict(display_name="python3", language="python", name="python3"),      # nbdev_clean makes the first the last
    language_info=dict(codemirror_mode=dict(name="ipython", version=3), file_extension=".py", mimetype="text/x-python",
                       name="python", nbconvert_exporter="python", pygments_lexer="ipython3", version="3"))


def install_kernel(prefix=sys.prefix):
    "This environment's kernel, which gives METADATA with every Python: left alone it would tell its own 3.x.y"
    folder = Path(prefix, "share/jupyter/kernels/python3")
    folder.mkdir(parents=True, exist_ok=True)
    version = f"get_ipython().kernel.language_info['version'] = {METADATA['language_info']['version']!r}"
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}", f"--IPKernelApp.exec_lines={version}"]
    spec = dict(METADATA["kernelspec"], argv=argv, metadata=dict(debugger=True))
    del spec["name"]
    (folder / "kernel.json").write_text(json.dumps(spec, indent=1) + "\n")


def write_metadata(path):
    "Give a notebook METADATA; its cells stay as they are"
    nb = json.loads(path.read_text(encoding="utf-8"))
    nb["metadata"] = METADATA
    path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- order: a chapter uses only what comes before it

def _imported(source):
    "Modules of imm_edu that a piece of code imports"
    lines = [l for l in source.splitlines() if not l.lstrip().startswith(("%", "!"))]
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("imm_edu."))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == "imm_edu" or (node.level and not module):
                yield from (a.name for a in node.names)
            elif module.startswith("imm_edu."):
                yield module.split(".")[1]
            elif node.level:
                yield module.split(".")[0]


def order_faults(paths=None):
    """Imports of a later chapter, as sentences. `show` draws and nothing else, so any chapter's own cells may use it; a chapter may
    use its own appendix (07 that of 07a)."""
    books = [(p.stem, read(p)) for p in (paths or chapters()) if p.stem[:2].isdigit()]
    number = {module_of(nb): stem for stem, nb in books if module_of(nb)}
    faults = []
    for stem, nb in books:
        for cell in code_cells(nb):
            for m in _imported(cell["source"]):
                if m not in number or (m == "show" and not exports(cell)):
                    continue
                appendix = exports(cell) and re.fullmatch(r"\d\d[a-z]", number[m].split("_")[0]) and number[m][:2] == stem[:2]
                if number[m] > stem and not appendix or (exports(cell) and number[m] == stem):
                    faults.append(f"{stem} imports imm_edu.{m}, which {number[m]} writes: a chapter may use only earlier ones")
    return faults


# ---- budget: short cells, small files

def budget(path):
    "What a reader has to take in, as numbers"
    nb = read(path)
    cells = code_cells(nb)
    sizes = sorted(len([l for l in c["source"].splitlines() if l.strip()]) for c in cells)
    pngs = [len(p) * 3 // 4 for p in pictures(nb)]
    return SimpleNamespace(name=path.stem, kB=path.stat().st_size / 1000, code=len(cells), text=len(nb["cells"]) - len(cells),
        median=sizes[len(sizes) // 2] if sizes else 0, long=sum(s > 15 for s in sizes), longest=sizes[-1] if sizes else 0,
        png=max(pngs, default=0) / 1000, pngs=len(pngs))


def outputs(nb):
    return [o for c in code_cells(nb) for o in c["outputs"]]


def pictures(nb):
    "The stored PNGs, in base64"
    return ["".join(o["data"]["image/png"]) for o in outputs(nb) if "image/png" in o.get("data", {})]


def first_picture(path):
    "The first PNG stored in a notebook, as bytes"
    return base64.b64decode(pictures(read(path))[0])


# ---- run: fill in the outputs that are committed

def _without_widgets(nb):
    "Drop live widgets from stored outputs: without a kernel they show an error. Their static picture shows; a bar has none, and goes"
    for cell in code_cells(nb):
        alone = lambda out: WIDGET in out.get("data", {}) and not set(out["data"]) - {WIDGET, "text/plain"}
        cell["outputs"] = [out for out in cell["outputs"] if not alone(out)]
        for out in cell["outputs"]:
            out.get("data", {}).pop(WIDGET, None)


def run(path):
    "Run one notebook in a fresh kernel; its file changes only if every cell succeeded"
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    nb, start, wanted = nbformat.read(path, as_version=4), time.time(), wanted_flags()
    left_out = [(c, c.source) for c in code_cells(nb) if not set(flags(c)) <= wanted]
    for cell, _ in left_out:
        cell.source = ""
    patience = None if wanted & {"slow", "gpu"} else 900         # a training run takes as long as it takes
    try:
        NotebookClient(nb, kernel_name="python3", extra_arguments=["--log-level=40"], timeout=patience,
                       coalesce_streams=True,                    # a print in pieces is one; of a progress bar the last
                       resources={"metadata": {"path": str(NBS)}}).execute()
    except CellExecutionError as e:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(e))
        raise SystemExit(f"{path.name} is unchanged: one of its cells failed.\n{plain}")
    for cell, source in left_out:
        cell.source = source
    _without_widgets(nb)
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in code_cells(nb):
        cell.outputs = [out for out in cell.outputs if out.get("text", "_").strip()]     # not a bar that was wiped away
    beside = path.with_name(f"_{path.name}")
    nbformat.write(nb, beside)
    os.replace(beside, path)
    return time.time() - start


def wanted_flags():
    "Which flagged cells run: those named in FLAGS, and gpu where there is one"
    asked = set(os.environ.get("FLAGS", "").split())
    if unknown := asked - set(FLAGS):
        raise SystemExit(f"FLAGS: unknown {sorted(unknown)}; known are {', '.join(FLAGS)}")
    if has_gpu():
        asked.add("gpu")
    return asked


def seeing_gpus():
    "The environment of a process that sees the GPUs, which conftest.py hides from the tests themselves"
    env, hidden = dict(os.environ), os.environ.get("HIDDEN_GPUS")
    if hidden:
        env.pop("CUDA_VISIBLE_DEVICES", None)
    return env | (dict(CUDA_VISIBLE_DEVICES=hidden) if hidden not in (None, "all") else {})


@lru_cache
def has_gpu():
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", ask], env=seeing_gpus(), capture_output=True).returncode == 0


def with_board(text):
    "The README with the board as `nbs/results/leaderboard.jsonl` has it"
    from imm_edu.cli import board_table, read_board
    table = board_table(read_board(NBS / "results" / "leaderboard.jsonl"))
    return re.sub(r"(<!-- board -->\n).*?(\n<!-- end of board -->)", lambda m: m[1] + table + m[2], text, flags=re.S)


DOOR = """# On Colab and Kaggle: the package, and the results that chapters read
import os
from importlib.util import find_spec
if not find_spec("imm_edu"):
    get_ipython().system("git clone -q --depth 1 {url} imm_edu-book && pip install -q ./imm_edu-book")
    os.chdir("imm_edu-book/nbs")"""


def with_door(nb, stem, url, branch="main"):
    "A chapter with links to Colab and Kaggle and a first cell that makes it run there; without an address, without them"
    def mine(cell):
        return cell["id"].endswith(("-door", "-links"))
    cells = [c for c in nb["cells"] if not mine(c)]
    if url:
        place, number = f"{url}/blob/{branch}/nbs/{stem}.ipynb", stem.split("_")[0]
        colab = place.replace("https://github.com/", "https://colab.research.google.com/github/")
        links = f"[Open in Colab]({colab}) · [Open in Kaggle](https://kaggle.com/kernels/welcome?src={place})"
        door = dict(cell_type="code", execution_count=None, id=f"{number}-door", metadata=dict(jupyter=dict(source_hidden=True)), outputs=[],
                    source=DOOR.replace("{url}", url))
        cells[1:1] = [dict(cell_type="markdown", id=f"{number}-links", metadata={}, source=links), door]
    return nb | dict(cells=cells)


def write_doors(path, url, branch="main"):
    "Change the file only where something is to be changed"
    before = read(path)
    after = with_door(before, path.stem, url.rstrip("/"), branch)
    if after["cells"] == before["cells"]:
        return
    for cell in after["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
    path.write_text(json.dumps(after, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def main(args):
    if args == ["doors"]:
        ini = ConfigParser(delimiters=["="])
        ini.read(ROOT / "settings.ini", encoding="utf-8")
        return [write_doors(p, ini["DEFAULT"]["git_url"], ini["DEFAULT"]["branch"]) for p in chapters()]
    if args == ["kernel"]:
        return install_kernel()
    if args == ["board"]:
        readme = ROOT / "README.md"
        return readme.write_text(with_board(readme.read_text(encoding="utf-8")), encoding="utf-8")
    if args == ["metadata"]:
        return [write_metadata(p) for p in chapters()]
    if not args or args[0] != "run":
        raise SystemExit(__doc__)
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=ROOT, check=True)
    for path in [Path(a).resolve() for a in args[1:]] or chapters():
        print(f"{path.stem} ...", end=" ", flush=True)
        print(f"{run(path):.0f} s", flush=True)
        if path == NBS / "index.ipynb":
            (NBS / "one_jump.png").write_bytes(first_picture(path))      # the README shows it too
    subprocess.run([Path(sys.executable).with_name("nbdev_clean")], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
