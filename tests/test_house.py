"The rules of the house, in seconds: `make check` runs exactly this file."
import json
import re
from importlib.metadata import distributions

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import house


def test_the_notebooks_are_the_source():
    differ = house.export_drift()
    assert not differ, f"{', '.join(differ)} in imm_edu/ differ from what the notebooks export. Edit the notebook, then run nbdev_export"


def test_notebooks_are_clean():
    dirty = house.unclean()
    assert not dirty, f"{', '.join(dirty)}: run make tidy, so that differences show only what a person changed"


def test_notebooks_open_unchanged_in_jupyterlab():
    other = [p.name for p in house.chapters() if json.loads(p.read_text())["metadata"] != house.METADATA]
    assert not other, f"{', '.join(other)}: run make tidy, or JupyterLab writes its metadata there as soon as they are opened"


def test_our_kernel_gives_what_jupyterlab_writes(tmp_path, monkeypatch):
    from jupyter_client.manager import start_new_kernel
    house.install_kernel(tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share/jupyter"))
    manager, client = start_new_kernel(kernel_name="python3")
    info, spec = client.kernel_info(reply=True, timeout=60)["content"]["language_info"], manager.kernel_spec
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    kernelspec = dict(name="python3", display_name=spec.display_name, language=spec.language)
    assert dict(kernelspec=kernelspec, language_info=info) == house.METADATA, "a notebook would open with a change to save"


def test_metadata_is_written_and_cells_stay(tmp_path):
    old = house.NBS / "index.ipynb"
    nb = json.loads(old.read_text())
    path = tmp_path / "index.ipynb"
    path.write_text(json.dumps(dict(nb, metadata=dict(kernelspec=dict(name="other"), widgets={}))))
    house.write_metadata(path)
    assert json.loads(path.read_text()) == dict(nb, metadata=house.METADATA)


def test_chapters_use_only_earlier_ones():
    faults = house.order_faults()
    assert not faults, "\n".join(faults)


def _chapter(path, *sources):
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": s.splitlines(keepends=True)} for s in sources]}))
    return path


@pytest.mark.parametrize("line", ["from imm_edu.late import x", "import imm_edu.late as l", "from imm_edu import late", "from .late import x", "from . import late"])
@pytest.mark.parametrize("export", [True, False])
def test_a_forward_import_is_noticed(tmp_path, line, export):
    early = _chapter(tmp_path / "01_early.ipynb", "#|default_exp early", ("#|export\n" if export else "") + line)
    late = _chapter(tmp_path / "02_late.ipynb", "#|default_exp late")
    assert house.order_faults([early, late]) == ["01_early imports imm_edu.late, which 02_late writes: a chapter may use only earlier ones"]


def test_drawing_is_for_everyone_but_not_in_the_library(tmp_path):
    show = _chapter(tmp_path / "13_show.ipynb", "#|default_exp show")
    assert not house.order_faults([_chapter(tmp_path / "01_a.ipynb", "#|default_exp a", "from imm_edu import show"), show])
    assert house.order_faults([_chapter(tmp_path / "01_a.ipynb", "#|default_exp a", "#|export\nfrom imm_edu import show"), show])


def test_size_budget(pytestconfig):
    pytestconfig.budget = [house.budget(p) for p in house.chapters()]
    large = [f"{b.name} ({b.kB:.0f} kB)" for b in pytestconfig.budget if b.kB > 500]
    assert not large, f"over 500 kB: {', '.join(large)}. Lower the dpi of a figure, or print less"
    heavy = [f"{b.name} ({b.png:.0f} kB)" for b in pytestconfig.budget if b.png > 100]
    assert not heavy, f"a picture over 100 kB in {', '.join(heavy)}"


@pytest.mark.parametrize("path", house.chapters(), ids=lambda p: p.stem)
def test_outputs_are_there_and_fit_to_show(path):
    nb = house.read(path)
    kinds = [o["output_type"] for o in house.outputs(nb)]
    assert "error" not in kinds, f"{path.name} stores a traceback: make run NB=nbs/{path.name}"
    assert house.pictures(nb), f"{path.name} stores no picture: make run NB=nbs/{path.name}"
    live = [o for o in house.outputs(nb) if house.WIDGET in o.get("data", {})]
    assert not live, f"{path.name} stores a live widget, which shows an error where no kernel runs: make run NB=nbs/{path.name}"
    assert any("show.setup(" in c["source"] for c in house.code_cells(nb)), f"{path.name} draws in black, which a dark page hides: call show.setup()"
    title, _, rest = nb["cells"][0]["source"].partition("\n\n")
    assert title.startswith("# ") and rest.startswith("**"), f"{path.name} must open with a title and, in bold, what it is about"


ROAD = [p for p in house.chapters() if p.stem[:2] in {"in", *(f"{i:02}" for i in range(7)), "09"}]


@pytest.mark.parametrize("path", ROAD, ids=lambda p: p.stem)
def test_a_chapter_of_the_road_opens_with_a_picture_and_ends_with_exercises(path):
    nb = house.read(path)
    first, text = house.code_cells(nb)[0], [c["source"] for c in nb["cells"] if c["cell_type"] == "markdown"]
    assert any("image/png" in o.get("data", {}) for o in first["outputs"]), f"{path.name}: the first code cell, folded, must draw the opening picture"
    assert first["metadata"].get("jupyter", {}).get("source_hidden"), f"{path.name}: fold the first code cell, so that its picture stands on the first screen"
    exercises = sum(len(re.findall(r"^#+ *Exercise \d+", t, re.M)) for t in text)
    assert 3 <= exercises <= 5, f"{path.name} has {exercises} exercises, three to five are wanted"
    assert len(text) >= .8 * len(house.code_cells(nb)), f"{path.name}: {len(text)} cells of text for {len(house.code_cells(nb))} of code"


def test_every_chapter_is_on_the_table_of_contents():
    index = (house.NBS / "index.ipynb").read_text()
    readme = (house.ROOT / "README.md").read_text()
    for p in house.chapters():
        assert p.name == "index.ipynb" or f"({p.name})" in index, f"nbs/index.ipynb does not link {p.name}"
    for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", readme):
        assert (house.ROOT / link).exists(), f"README.md links {link}, which is not there"
    for p in house.chapters():
        for link in re.findall(r"\]\(([^)#:\s]+\.ipynb)(?:#[^)]*)?\)", p.read_text()):
            assert (house.NBS / link).exists(), f"{p.name} links {link}, which is not there"


def test_each_chapter_leads_to_the_next():
    chapters = [p.name for p in house.chapters() if p.name != "index.ipynb"]
    for name, following in zip(chapters, chapters[1:]):
        last = house.read(house.NBS / name)["cells"][-1]["source"]
        assert f"]({following})" in last.splitlines()[-1], f"the last line of {name} must link {following}, the chapter after it"


def test_readme_shows_the_picture_of_the_index():
    assert house.first_picture(house.NBS / "index.ipynb") == (house.NBS / "one_jump.png").read_bytes(), "run make run NB=nbs/index.ipynb"


def test_lock_names_no_host_and_pins_everything():
    for line in (house.ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", line), f"requirements.lock: {line!r} is not of the form name==version"


def test_lock_installs_on_the_oldest_python():
    oldest = re.search(r"min_python *= *(\S+)", (house.ROOT / "settings.ini").read_text())[1] + ".0"
    pinned = {canonicalize_name(line.partition("==")[0]) for line in (house.ROOT / "requirements.lock").read_text().split()}
    here = [d for d in distributions() if canonicalize_name(d.metadata["Name"]) in pinned]
    assert len(here) > len(pinned) / 2, "the lock is not what is installed here"
    picky = [f"{d.metadata['Name']} {d.version} needs Python {need}" for d in here
             if (need := d.metadata["Requires-Python"]) and oldest not in SpecifierSet(need)]
    assert not picky, f"{'; '.join(picky)}: pin a version that installs on {oldest}"


def test_what_is_stored_of_a_print_and_of_a_progress_bar(tmp_path):
    import nbformat.v4 as v4
    code = r"""import sys, time
from tqdm.notebook import tqdm
for _ in tqdm(range(3)): pass
print("one ", end="", flush=True); time.sleep(.2); print("line")
for i in range(3): sys.stderr.write(f"\r{i}0%"); sys.stderr.flush(); time.sleep(.2)
sys.stderr.write("\r   \r");"""
    path = tmp_path / "bar.ipynb"
    path.write_text(v4.writes(v4.new_notebook(cells=[v4.new_code_cell(code)])))
    house.run(path)
    outputs = [(o.get("name"), "".join(o.get("text", ""))) for o in house.outputs(house.read(path))]
    assert outputs == [("stdout", "one line\n")], "a print is one piece; a bar that was wiped away leaves nothing, nor does one that is a widget"


@pytest.mark.parametrize("path", house.chapters(), ids=lambda p: p.stem)
def test_what_is_kept_is_measured_again_only_when_asked(path):
    "Cells that take long run in JupyterLab's Run All, but not here: they must ask before they write into nbs/results"
    places = set(re.findall(r"^(\w+) *= *Path\(\"results", "\n".join(c["source"] for c in house.code_cells(house.read(path))), re.M))
    for cell in house.code_cells(house.read(path)):
        lines = cell["source"].splitlines()
        for i, line in enumerate(lines):
            writes = re.search(r"write_text|write_bytes|\bsave\(|save_file|savefig|keep\(", line)
            if writes and not line.lstrip().startswith("def ") and ("\"results" in line or any(re.search(rf"\b{v}\b", line) for v in places)):
                asked = any("REMAKE" in l for l in lines[:i + 1])
                assert asked, f"{path.name} writes what is kept without asking: put `if REMAKE:` before {line.strip()!r}"
