"Chapters in a real JupyterLab, as their reader meets them. `make browser` turns these on; FLAGS=slow adds those that train for minutes."
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import house
from test_show import FLAGS, _answers, _browser, _run, _stop_button, _wait

ON = os.environ.get("BROWSER") == "1"
TRAIN = {"21_digits", "22_cifar10"}                # Run All trains for minutes, by design
NAMES = [p.stem for p in house.chapters() if "slow" in os.environ.get("FLAGS", "") or p.stem not in TRAIN]
HARMLESS = ("Failed to load resource", "favicon", "ResizeObserver", "deprecated")
WIDE = "() => [...document.querySelectorAll('.jp-OutputArea-output img, .jp-OutputArea-output svg')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
BUSY = """() => [...document.querySelectorAll('.jp-InputPrompt')].some(e => e.textContent.includes('*'))
          || !!document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=busy]')"""

pytestmark = pytest.mark.skipif(not ON, reason="chapters in JupyterLab are for make browser")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A copy of the chapters, and a JupyterLab over it with settings of its own: (folder, address of a path)"
    _browser()
    place = tmp_path_factory.mktemp("desk")
    shutil.copytree(house.NBS, place / "nbs", ignore=shutil.ignore_patterns("_*", "practice.json", "site"))
    tracker = place / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    (tracker / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')       # all cells are in the page at once
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex()
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={place / 'nbs'}",
               "--expose-app-in-browser", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    env = dict(os.environ, JUPYTERLAB_SETTINGS_DIR=str(place / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(place / "settings"), PYTHONPATH=str(house.ROOT))
    with open(place / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, env=env, cwd=place)
    try:
        address = lambda path: f"http://127.0.0.1:{port}/{path}?token={token}"
        _wait(lambda: _answers(address("api/status")), 60, "JupyterLab does not answer")
        yield place / "nbs", address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def chromium(desk):
    playwright, path = _browser()
    with playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(desk, chromium):
    "Open a notebook and run it all, for so many seconds; the page carries what the console complained about. Kernels end with the test"
    pages = []

    def go(name, seconds=300, width=1280, dark=False, run=True):
        page = chromium.new_page(viewport=dict(width=width, height=1000))
        pages.append(page)
        page.complaints = []
        page.on("console", lambda m: page.complaints.append(m.text[:200]) if m.type == "error" and not any(h in m.text for h in HARMLESS) else None)
        page.on("pageerror", lambda e: page.complaints.append(str(e)[:200]))
        page.goto(desk[1](f"lab/workspaces/{secrets.token_hex(4)}/tree/{name}.ipynb"))      # a workspace of its own: nothing else is open
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.wait_for_selector(".jp-StatusBar-TextItem:has-text('| Idle')", timeout=60_000)
        if dark:
            page.evaluate("() => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}) }")
        _run(page, "application:toggle-left-area")
        if run:
            _run(page, "notebook:run-all-cells")
        time.sleep(2)
        if run and seconds:
            _wait(lambda: not page.evaluate(BUSY), seconds, f"{name} still runs after {seconds} s")
        return page
    yield go
    for page in pages:
        page.evaluate("() => { window.jupyterapp.serviceManager.sessions.shutdownAll() }")
        time.sleep(1)
        page.close()


def drag(page, handle):
    "Drag a slider until the picture of its panel is another one: the seconds that took, or None. One of two ways is not the slider's end"
    source = "e => { const i = e.closest('.imm-view').querySelector('img'); return i && i.src }"
    handle.scroll_into_view_if_needed()
    before = handle.evaluate(source)
    for way in (150, -150):
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        began = time.time()
        page.mouse.move(x + way, y)
        while (found := handle.evaluate(source)) == before and time.time() < began + 5:
            time.sleep(.005)
        seconds = time.time() - began
        page.mouse.up()
        if found != before:
            return seconds


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_runs_and_its_panels_answer(desk, opened, name, capsys):
    page, file, start = opened(name, 3000 if name in TRAIN else 300), desk[0] / f"{name}.ipynb", time.time()
    _run(page, "docmanager:save")
    _wait(lambda: file.stat().st_mtime > start - 1, 30, "the notebook is not saved")
    time.sleep(1)
    cells = [(c["id"], o) for c in house.code_cells(house.read(file)) for o in c["outputs"]]
    errors = [(i, o["ename"], o["evalue"]) for i, o in cells if o["output_type"] == "error"]
    stderr = [(i, "".join(o["text"])[:200]) for i, o in cells if o["output_type"] == "stream" and o["name"] == "stderr" and "".join(o["text"]).strip()]
    assert not errors, "cells with an error"
    assert not stderr, "cells that write to stderr, which JupyterLab shows in red"
    assert not page.query_selector_all(".jp-OutputArea :text('Error displaying widget'), .jupyter-widgets-disconnected"), "a broken widget"
    assert len(page.query_selector_all(".imm-view")) == sum("Panel(" in str(o) or "Explorer(" in str(o) for _, o in cells), "panels that are not shown"
    handles = page.query_selector_all(".jp-OutputArea .imm-view .noUi-handle")
    took = [drag(page, handle) for handle in handles]
    assert None not in took, f"sliders whose panel's picture does not follow them, of {len(took)}: {[i for i, t in enumerate(took) if t is None]}"
    assert not page.complaints, "the browser's console has errors"
    if took:
        with capsys.disabled():
            print(f" {name}: another picture after {', '.join(f'{1000*t:.0f}' for t in took)} ms ", end="")


def readable(page, width):
    assert page.evaluate(WIDE) == 0, f"pictures that end beyond the window of {width} pixels"
    ink = page.evaluate("() => getComputedStyle(document.querySelector('.jp-Notebook')).getPropertyValue('--jp-content-font-color1')")
    ground = page.evaluate("() => getComputedStyle(document.body).getPropertyValue('--jp-layout-color0')")
    assert ink.strip() and ink != ground, "letters must not have the colour of the page"


@pytest.mark.parametrize("name", [p.stem for p in house.chapters()])
def test_what_is_stored_can_be_read(opened, name):
    "Before anything has run, in a narrow window and in the dark"
    page = opened(name, width=800, dark=True, run=False)
    readable(page, 800)
    wide = page.evaluate("""() => [...document.querySelectorAll('.jp-OutputArea-output table, .jp-RenderedMarkdown table')]
        .filter(e => e.getBoundingClientRect().right > innerWidth).map(e => [e.getBoundingClientRect().right, e.innerText.slice(0, 60)])""")
    assert not wide, f"tables that end beyond the window: {wide}"
    assert not page.complaints, "the browser's console has errors"


@pytest.mark.parametrize("width, dark", [(800, False), (800, True), (1280, True)])
@pytest.mark.parametrize("name", ["01_flow", "40_practice"])
def test_what_has_run_can_be_read(opened, name, width, dark):
    readable(opened(name, width=width, dark=dark), width)


TRAINING = """
import os, time
from imm_edu import presets, run, show
from imm_edu.data import toy
from imm_edu.objective import Objective
from imm_edu.train import Config

class Slow(show.Live):
    def __call__(self, training, record):
        time.sleep(.02)
        if record.step == 1: print("process", os.getpid(), flush=True)
        super().__call__(training, record)

def train():
    config = Config(steps=200, batch=32, save_every=20)
    training = run.fit(presets.get("toy-moons").model(), toy("moons"), Objective(k=9, M=4), config, "FOLDER", Slow())
    print("ended at step", training.steps)
"""


def training(folder, *cells):
    "Write a notebook beside the folder of its run: cells that call train()"
    kernel = dict(kernelspec=dict(display_name="Python 3 (ipykernel)", language="python", name="python3"))
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, execution_count=None, outputs=[], source=source)
             for i, source in enumerate([TRAINING.replace("FOLDER", folder.name), *cells])]
    folder.with_suffix(".ipynb").write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))


def printed(page):
    return "\n".join(e.inner_text() for e in page.query_selector_all(".jp-OutputArea-output pre"))


def logged(folder):
    "The steps in the log of a run"
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}\n")] or [0]            # one may be half written


def test_stop_and_the_next_cell_goes_on(desk, opened):
    "Run All, with Stop clicked in the first of two cells that train in one folder"
    training(desk[0] / "halted", "train()", "print('now the second'); train()")
    page = opened("halted", seconds=0)
    _wait(lambda: logged(desk[0] / "halted")[-1] >= 70, 60, "the training does not come on")
    _stop_button(page).click()
    page.wait_for_selector(".jp-OutputArea pre:has-text('now the second')", timeout=30_000)
    stopped = int(printed(page).split("ended at step")[1].split()[0])
    assert 70 <= stopped < 150, f"Stop was clicked at about step 70 of 200, and the first cell went on to step {stopped}"
    page.wait_for_selector(".jp-OutputArea pre:has-text('ended at step 200')", timeout=60_000)
    assert logged(desk[0] / "halted") == [*range(10, 201, 10)], "every line of the log once: the second cell goes on where the first was stopped"


def test_a_kernel_killed_in_training(desk, opened):
    "The cell goes on where the last checkpoint was"
    training(desk[0] / "killed", "train()")
    page = opened("killed", seconds=0)
    said = page.wait_for_selector(".jp-OutputArea pre:has-text('process')", timeout=60_000).inner_text()
    _wait(lambda: logged(desk[0] / "killed")[-1] >= 70, 60, "the training does not come on")
    os.kill(int(said.split("process")[1].split()[0]), signal.SIGKILL)
    reached = logged(desk[0] / "killed")[-1]
    time.sleep(5)                                                       # the server notices and starts another kernel
    for _ in range(3):
        if page.query_selector("dialog.jp-Dialog"):
            page.keyboard.press("Enter")
            time.sleep(1)
    _run(page, "notebook:run-all-cells")
    page.wait_for_selector(".jp-OutputArea pre:has-text('ended at step 200')", timeout=90_000)
    again = int(printed(page).split("going on with")[1].split("at step ")[1].split(",")[0])
    assert 0 <= reached - again <= 20, f"killed after step {reached}, it went on at step {again}: at most save_every = 20 steps may be lost"
    assert logged(desk[0] / "killed") == [*range(10, 201, 10)], "every line of the log once"
