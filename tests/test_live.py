"The live view in a real JupyterLab: Stop is clicked while the cell runs."
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

import house

FIT = """
import time
from types import SimpleNamespace
from imm_edu import show
live = show.Live(every=.5, share=.5)
training = SimpleNamespace(progress=0., stop=False, ema=SimpleNamespace(net=None), objective=None)
for step in range(1, 601):
    time.sleep(.05)
    training.progress = step / 600
    numbers = dict(loss=1 / step, grad_norm=2 / step, images_s=1000., left=.05*(600 - step))
    live(training, SimpleNamespace(step=step, **numbers))
    if training.stop: break
print("ended at step", step)
"""
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update".split()


def _browser():
    "The path of a chromium, or a skip"
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no chromium here: apt install chromium")
    return sync_api.sync_playwright, path


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab with settings of its own, whose folder is tmp_path: a function from a path to an address"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own, token = tmp_path / "settings", secrets.token_hex()
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={tmp_path}",
               "--expose-app-in-browser", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    env = dict(os.environ, JUPYTERLAB_SETTINGS_DIR=str(own), JUPYTERLAB_WORKSPACES_DIR=str(own), PYTHONPATH=str(house.ROOT))
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, env=env, cwd=tmp_path)
    try:
        address = lambda path: f"http://127.0.0.1:{port}/{path}?token={token}"
        _wait(lambda: _answers(address("api/status")), 40, "JupyterLab does not answer")
        yield address
    finally:
        server.terminate()
        server.wait(20)


def _answers(url):
    try:
        return urllib.request.urlopen(url, timeout=2).read()
    except OSError:
        return None


def _wait(condition, seconds, what):
    end = time.time() + seconds
    while not (found := condition()):
        assert time.time() < end, what
        time.sleep(.2)
    return found


def _run(page, command):
    page.evaluate(f"() => {{ window.jupyterapp.commands.execute('{command}') }}")


def _stop_button(page):
    "The button once it is there; before that JupyterLab may ask which kernel to use"
    if page.query_selector("dialog.jp-Dialog"):
        page.keyboard.press("Enter")
    return page.query_selector("button.jupyter-button:has-text('Stop'):enabled")


def test_stop_works_while_the_cell_runs(tmp_path, request):
    playwright, chromium = _browser()
    address = request.getfixturevalue("lab")
    cell = dict(cell_type="code", id="fit", metadata={}, execution_count=None, outputs=[], source=FIT)
    kernel = dict(kernelspec=dict(display_name="Python 3 (ipykernel)", language="python", name="python3"))
    notebook = tmp_path / "fit.ipynb"
    notebook.write_text(json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)))
    with playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1280, height=900))
        page.goto(address("lab/tree/fit.ipynb"))
        page.wait_for_selector(".jp-StatusBar-TextItem:has-text('| Idle')", timeout=40_000)
        _run(page, "notebook:run-all-cells")
        button = _wait(lambda: _stop_button(page), 40, "the window does not appear")
        page.wait_for_selector(".widget-label:has-text('images/s')", timeout=10_000)
        time.sleep(2)
        page.screenshot(path=tmp_path / "running.png")
        button.click()
        said = page.wait_for_selector(".jp-OutputArea pre:has-text('ended at step')", timeout=40_000).inner_text()
        page.wait_for_selector(".widget-label:has-text('stopped at step')", timeout=10_000)
        page.screenshot(path=tmp_path / "stopped.png")
        _run(page, "docmanager:save")
        _wait(lambda: '"image/png"' in notebook.read_text(), 20, "the saved notebook must carry a picture")
        browser.close()
    step = int(said.split()[-1])
    assert 20 < step < 500, f"Stop was clicked after some two seconds of thirty, and the loop went on to step {step} of 600"
    stored, = house.pictures(house.read(notebook))
    assert len(stored) > 5000, "the saved notebook must carry the last picture"
