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
from test_show import FLAGS, _answers, _browser, _run, _wait

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
    "Open a notebook and run it all; the page carries what the console complained about. Kernels end with the test"
    pages = []

    def go(name, seconds=300, width=1280, dark=False):
        page = chromium.new_page(viewport=dict(width=width, height=1000))
        pages.append(page)
        page.complaints = []
        page.on("console", lambda m: page.complaints.append(m.text[:200]) if m.type == "error" and not any(h in m.text for h in HARMLESS) else None)
        page.goto(desk[1](f"lab/workspaces/{secrets.token_hex(4)}/tree/{name}.ipynb"))      # a workspace of its own: nothing else is open
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.wait_for_selector(".jp-StatusBar-TextItem:has-text('| Idle')", timeout=60_000)
        if dark:
            page.evaluate("() => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}) }")
        _run(page, "application:toggle-left-area")
        _run(page, "notebook:run-all-cells")
        time.sleep(2)
        if seconds:
            _wait(lambda: not page.evaluate(BUSY), seconds, f"{name} still runs after {seconds} s")
        return page
    yield go
    for page in pages:
        page.evaluate("() => { window.jupyterapp.serviceManager.sessions.shutdownAll() }")
        time.sleep(1)
        page.close()


def slider(page):
    "The first slider's handle that can be moved, and the picture beside it"
    handle = page.query_selector(".jp-OutputArea .widget-slider .noUi-handle")
    return handle, handle and handle.evaluate_handle("e => e.closest('.jp-OutputArea-output').querySelector('img')")


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_runs_and_its_panel_answers(desk, opened, name, capsys):
    page, file, start = opened(name), desk[0] / f"{name}.ipynb", time.time()
    _run(page, "docmanager:save")
    _wait(lambda: file.stat().st_mtime > start - 1, 30, "the notebook is not saved")
    time.sleep(1)
    cells = [(c["id"], o) for c in house.code_cells(house.read(file)) for o in c["outputs"]]
    errors = [(i, o["ename"], o["evalue"]) for i, o in cells if o["output_type"] == "error"]
    stderr = [(i, "".join(o["text"])[:200]) for i, o in cells if o["output_type"] == "stream" and o["name"] == "stderr" and "".join(o["text"]).strip()]
    assert not errors, "cells with an error"
    assert not stderr, "cells that write to stderr, which JupyterLab shows in red"
    assert not page.query_selector_all(".jp-OutputArea :text('Error displaying widget'), .jupyter-widgets-disconnected"), "a broken widget"
    assert not page.complaints, "the browser's console has errors"
    handle, picture = slider(page)
    if not handle:
        return
    handle.scroll_into_view_if_needed()
    before = picture.evaluate("e => e.src")
    for way in (60, -60):                                               # one of the two is not the end of the slider
        box = slider(page)[0].bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        began = time.time()
        page.mouse.move(x + way, y, steps=3)
        while slider(page)[1].evaluate("e => e.src") == before and time.time() < began + 5:
            time.sleep(.02)
        page.mouse.up()
        if slider(page)[1].evaluate("e => e.src") != before:
            break
    assert slider(page)[1].evaluate("e => e.src") != before, "the panel's picture does not follow its first slider"
    with capsys.disabled():
        print(f" {name}: another picture after {time.time() - began:.2f} s ", end="")


@pytest.mark.parametrize("width, dark", [(800, False), (800, True), (1280, True)])
@pytest.mark.parametrize("name", ["01_flow", "40_practice"])
def test_readable(opened, name, width, dark):
    page = opened(name, width=width, dark=dark)
    assert page.evaluate(WIDE) == 0, f"pictures that end beyond the window of {width} pixels"
    ink = page.evaluate("() => getComputedStyle(document.querySelector('.jp-Notebook')).getPropertyValue('--jp-content-font-color1')")
    ground = page.evaluate("() => getComputedStyle(document.body).getPropertyValue('--jp-layout-color0')")
    assert ink.strip() and ink != ground, "letters must not have the colour of the page"


TRAINING = """
import os, time
from imm_edu import presets, run
from imm_edu.data import toy
from imm_edu.objective import Objective
from imm_edu.train import Config

def view(training, record):
    time.sleep(.02)
    if record.step == 1: print("process", os.getpid(), flush=True)

training = run.fit(presets.get("toy-moons").model(), toy("moons"), Objective(k=9, M=4), Config(steps=200, batch=32, save_every=20), "killed", view)
print("ended at step", training.steps)
"""


def test_a_kernel_killed_in_training(desk, opened):
    "The cell goes on where the last checkpoint was"
    cell = dict(cell_type="code", id="fit", metadata={}, execution_count=None, outputs=[], source=TRAINING)
    kernel = dict(kernelspec=dict(display_name="Python 3 (ipykernel)", language="python", name="python3"))
    (desk[0] / "killed.ipynb").write_text(json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)))
    page = opened("killed", seconds=0)
    said = page.wait_for_selector(".jp-OutputArea pre:has-text('process')", timeout=60_000).inner_text()
    log = desk[0] / "killed" / "metrics.jsonl"
    steps = lambda: [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else [0]
    _wait(lambda: steps()[-1] >= 70, 60, "the training does not come on")
    os.kill(int(said.split("process")[1].split()[0]), signal.SIGKILL)
    reached = steps()[-1]
    time.sleep(5)                                                       # the server notices and starts another kernel
    for _ in range(3):
        if page.query_selector("dialog.jp-Dialog"):
            page.keyboard.press("Enter")
            time.sleep(1)
    _run(page, "notebook:run-all-cells")
    text = page.wait_for_selector(".jp-OutputArea pre:has-text('ended at step 200')", timeout=90_000).inner_text()
    again = int(text.split("at step ")[1].split(",")[0])
    assert 0 <= reached - again <= 20, f"killed after step {reached}, it went on at step {again}: at most save_every = 20 steps may be lost"
    assert steps() == [*range(10, 201, 10)], "every line of the log once"
