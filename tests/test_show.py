"Sheets, panels and curves; the live view by itself, and in a real JupyterLab: Stop while the cell runs, a kernel that ends."
import base64
import io
import json
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import house
from imm_edu import flow, precond, show
from imm_edu.train import Broken


def cloud(channels=2, size=1):
    "A model that moves noise exactly to a Gaussian"
    net = precond.GaussianNet(flow.OTFM(), mean=.4, std=.2)
    net.config = dict(size=size, channels=channels)
    return precond.IMM(net, flow.OTFM())


# ---- sheets

@pytest.mark.parametrize("x, said", [
    (-torch.ones(4, 1, 8, 8), "pass (x + 1) / 2"),
    (torch.full((4, 1, 8, 8), math.nan), "must lie in 0 ... 1"),
    (torch.zeros(5, 4, 8, 8), "Latents must be decoded first"),
    (torch.zeros(1, 8, 8), "got [1, 8, 8]"),
    (torch.zeros(0, 1, 8, 8), "got [0, 1, 8, 8]")])
def test_what_is_no_sheet_is_refused(x, said):
    with pytest.raises(ValueError) as e:
        show.montage(x)
    assert said in str(e.value)


def test_places_colours_and_gaps():
    ramp = torch.linspace(0, 1, 3)[:, None, None].expand(7, 3, 4, 4)            # red 0, green 1/2, blue 1
    sheet = np.asarray(show.montage(ramp, columns=3, scale=1))
    assert sheet.shape == (16, 16, 3), "three rows and columns of 4 pixels, and two gaps of 2"
    assert (sheet[:4, :4] == [0, 128, 255]).all(), "channels must stay red, green, blue"
    assert (sheet[-4:, 6:] == 255).all(), "places without an image stay white"
    assert (sheet[4:6] == 255).all() and (sheet[:, 4:6] == 255).all(), "gaps are white"
    bare = np.asarray(show.montage(ramp, columns=3, scale=1, paper=None))
    assert (bare[4:6, :, 3] == 0).all() and (bare[:4, :4, 3] == 255).all(), "on no paper a gap is nothing, an image is opaque"


@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_and_many(channels):
    x = (torch.arange(channels * 256).view(channels, 16, 16) % 256 / 255).expand(1, -1, -1, -1)
    for n in (1, 5):
        sheet = np.asarray(show.montage(x.expand(n, -1, -1, -1), columns=10, scale=1))
        first = sheet[:16, :16].transpose(2, 0, 1)
        assert (first[:channels] == (255*x[0]).round().byte().numpy()).all(), "each pixel must be the nearest of 256 values"
        assert sheet.shape[:2] == (16, 18*n - 2), "fewer images than columns make a short row"


def test_a_title_is_never_cut():
    sheet = show.montage(torch.zeros(1, 1, 2, 2), scale=1, title="a line much longer than two pixels")
    assert sheet.width > 100 and sheet.height == 20


def test_figures_say_what_they_show_and_gpu_cells_are_left_out(capsys):
    show.setup()
    fig, axes = plt.subplots(1, 3)
    axes[0].set_title("loss"), axes[1].set_ylabel("error")
    assert show.described(fig) == {"image/png": {"alt": "loss; error"}}
    plt.close(fig)
    assert show.gpu_or_sentence(["1 + 1\n"]) == ["1 + 1\n"], "other cells stay as they are"
    assert torch.cuda.is_available() or "left out" in show.gpu_or_sentence(["#|gpu\n", "net.cuda()\n"])[0]


@pytest.mark.parametrize("answer, said", [
    (lambda: None, "right."), (lambda: ... + 1, "not yet. Write your answer in place of the dots."),
    (lambda: 1/0, "not yet. Your code stopped with ZeroDivisionError: division by zero.")])
def test_a_check_says_what_it_finds(answer, said, capsys):
    def exercise_1(): answer()
    assert show.check(exercise_1) is (said == "right.")
    assert capsys.readouterr().out == f"Exercise 1: {said}\n"


# ---- panels

def test_without_a_kernel_the_picture_is_there():
    fig, ax = show.canvas(figsize=(2, 1))
    line, = ax.plot([0, 1], [0, 1])
    explorer = show.Explorer(fig, lambda k: line.set_ydata([0, k]), "a line", k=ipywidgets.FloatSlider(.5, min=0, max=1))
    before = explorer.png
    explorer.controls["k"].value = 1.
    bundle, about = explorer._repr_mimebundle_()
    assert explorer.png != before, "moving a slider must redraw the picture"
    assert base64.b64decode(bundle["image/png"]) == explorer.png, "where no widget can run, the last picture shows"
    assert house.WIDGET in bundle, "in JupyterLab the sliders must come up"
    assert "a line" in about["image/png"]["alt"] and "1.0" in about["image/png"]["alt"], "the text says what the controls say"
    assert 'alt="a line' in explorer.picture.value


def test_the_playground():
    with pytest.raises(ValueError, match="holds 2 names for 0 classes"):
        show.playground(cloud(), names=["cat", "dog"])
    plain, noted = show.playground(cloud(), n=9), show.playground(cloud(), n=9, note="hardly trained")
    assert set(plain.controls) == {"steps", "seed"}, "guidance and class belong to networks with classes"
    size = lambda panel: Image.open(io.BytesIO(panel.png)).size
    assert size(plain)[1] == size(noted)[1] and plain.png != noted.png, "the note stands in the title"
    drawn = show.generate(cloud(), 4000, 4)
    assert drawn.min() < -.1 and drawn.max() > 1, "points must not be cut off at 0 and 1"


# ---- curves

def test_curves_leave_out_what_is_not_finite():
    assert np.allclose(show.thin([1, np.nan, 3, 5, np.nan, np.nan], 3)[:2], [1, 4])
    assert np.isclose(show.smooth(np.array([np.nan, 2, np.nan, 2]))[3], 2)
    assert len(show.thin(range(1001))) <= 200
    rows = [dict(step=1, loss=None), dict(step=2, loss=-1.), dict(step=2, score=3.), dict(step=3, loss=2.)]
    show.curves({"a": rows}, ["loss"])
    ax, = plt.gcf().axes
    assert ax.get_yscale() == "linear", "a negative loss has no logarithm"
    assert np.isnan(ax.lines[0].get_ydata()[0]) and list(ax.lines[0].get_xdata()) == [1, 2, 3]
    plt.close()
    with pytest.raises(ValueError, match="no row holds fid; the rows hold loss, score, step"):
        show.curves(rows, ["fid"])


# ---- the live view

class Page:
    "Takes the place of the notebook's display, and keeps what it was told"
    def __init__(self): self.shown = []
    def __call__(self, what, **kwargs): self.shown.append(what); return self
    def update(self, what, **kwargs): self.shown.append(what)


@pytest.fixture
def page(monkeypatch):
    monkeypatch.setattr(show, "display", page := Page())
    return page


def steps(view, first, last, budget=100, model=None, objective=None, stop_at=None):
    "As `fit`, without the training"
    training = SimpleNamespace(progress=0., stop=False, ema=model or cloud(), objective=objective)
    for step in range(first, last + 1):
        training.progress, training.stop = step / budget, step == stop_at
        view(training, SimpleNamespace(step=step, loss=1/step, grad_norm=2., images_s=9., left=0.))
    return training


def test_the_first_step_shows_curves_and_samples(page):
    steps(live := show.Live(text=False), 1, 1)
    assert "text/html" in page.shown[-1] and 'alt="step 1 ' in page.shown[-1]["text/html"]
    assert live.scene.row is not None and live.scene.row.getbbox()[2] > 800, "all four sheets are there at once if they are cheap"
    assert [len(ax.lines[0].get_xdata()) for ax in live.scene.axes] == [1, 1, 1] and live.scene.axes[0].lines[0].get_marker() == "."


def test_dear_samples_are_put_off():
    drawn = []
    def slow(model, jumps):
        drawn.append(jumps)
        time.sleep(.25)
        return torch.rand(4, 1, 8, 8)
    scene = show.Scene(slow)
    assert scene.sample(None, first=True) > 15 * .25 and drawn == [1] and scene.row is not None, "one sheet, and what four will cost"
    assert scene.sample(None, first=False) is None and drawn[1:] == [1, 2, 4, 8]


def test_a_ration_saves_for_what_is_dear():
    now, done = [0.], []
    def work():
        done.append(now[0])
        now[0] += 30. if len(done) > 1 else 2.
        return 30.
    ration = show.Ration(work, every=2., share=.01, clock=lambda: now[0])
    while now[0] < 7000:
        now[0] += 1.
        ration()
    assert len(done) == 3 and done[0] == 1 and abs(done[1] - 3100) < 10, "31 s are missing after the first time: 3,100 s at one percent"
    assert ration(force=True) and len(done) == 4, "the end does not ask for the price"


def test_latents_get_curves_alone(page):
    steps(live := show.Live(text=False), 1, 100, model=cloud(4, 32))
    assert live.scene.row is None and page.shown[-1]["image/png"]


def test_what_is_left_needs_no_kernel(page):
    steps(live := show.Live(text=False), 1, 100)
    text, still = page.shown[-2:]
    assert text["text/plain"].startswith("done at step 100 after 00:0") and set(text) == {"text/plain"}
    assert base64.b64decode(still["image/png"]) == live.window.png


def test_a_broken_run_says_so(page, capsys):
    for text in (False, True):
        live = show.Live(text=text)
        steps(live, 1, 5)
        live.after_cell(SimpleNamespace(error_in_exec=Broken("20 steps in a row had a gradient that is not finite")))
        said = capsys.readouterr().out.splitlines()[-1] if text else page.shown[-2]["text/plain"]
        assert said.startswith("broken at step 5 ") and said.endswith("Broken: 20 steps in a row had a gradient that is not finite")
        assert not live.running
        live.after_cell(SimpleNamespace(error_in_exec=None))              # the next cell must find nothing to say


def test_the_end_of_a_cell_is_the_end(page):
    steps(live := show.Live(text=False), 1, 5)
    live.after_cell(SimpleNamespace(error_in_exec=None))
    assert page.shown[-2]["text/plain"].startswith("stopped at step 5 ")


def test_late_clicks_do_nothing(page):
    training = steps(live := show.Live(text=False), 1, 3, stop_at=3)
    assert page.shown[-2]["text/plain"].startswith("stopped at step 3 ")
    training.stop = False
    live.stop()
    assert training.stop is False, "a click that arrives after the end does nothing"


def test_curves_go_on_with_their_training(page):
    live = show.Live(text=False)
    steps(live, 1, 30, stop_at=30)
    steps(live, 31, 40, stop_at=40)
    assert list(live.scene.rows["step"]) == list(range(1, 41)), "the next step continues the curves"
    steps(live, 5, 6, stop_at=6)
    assert list(live.scene.rows["step"]) == [5, 6], "a step that lies behind the last one belongs to another training"
    past = [dict(step=s, loss=None, grad_norm=1., images_s=2.) for s in (1, 2, 3, 9)] + [dict(step=2, score=1.)]
    steps(again := show.Live(text=False, past=past), 4, 5)
    assert list(again.scene.rows["step"]) == [1, 2, 3, 4, 5] and math.isnan(again.scene.rows["loss"][0])


def test_the_objective_says_what_is_drawn(page):
    seen = []
    objective = SimpleNamespace(as_trained=lambda model: "a sampler's view")
    steps(show.Live(lambda model, jumps: seen.append(model), text=False), 1, 1, objective=objective)
    assert set(seen) == {"a sampler's view"}


def test_text_is_a_line_now_and_then(capsys):
    steps(show.Live(text=True), 1, 100)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step 1  loss 1  9 images/s  00:00 left" and last.startswith("done at step 100 after 00:0")
    record = SimpleNamespace(step=12000, loss=.03127, images_s=1834.2, left=3723.)
    assert show.in_words(record) == "step 12,000  loss 0.0313  1,834 images/s  1:02:03 left"
    record.left = math.inf
    assert show.in_words(record).endswith("? left")


# ---- in a real JupyterLab

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


@pytest.fixture
def notebook(tmp_path, request):
    "A page of JupyterLab with a training that runs in it, and the file behind it"
    playwright, chromium = _browser()
    address = request.getfixturevalue("lab")
    cell = dict(cell_type="code", id="fit", metadata={}, execution_count=None, outputs=[], source=FIT)
    kernel = dict(kernelspec=dict(display_name="Python 3 (ipykernel)", language="python", name="python3"))
    file = tmp_path / "fit.ipynb"
    file.write_text(json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)))
    with playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1280, height=900))
        page.goto(address("lab/tree/fit.ipynb"))
        page.wait_for_selector(".jp-StatusBar-TextItem:has-text('| Idle')", timeout=60_000)
        _run(page, "notebook:run-all-cells")
        _wait(lambda: _stop_button(page), 60, "the window does not appear")
        page.wait_for_selector(".widget-label:has-text('images/s')", timeout=20_000)
        page.wait_for_selector(".jp-OutputArea img[alt^='step']", timeout=20_000)
        yield page, file
        browser.close()


def test_stop_works_while_the_cell_runs(notebook):
    page, file = notebook
    time.sleep(2)
    _stop_button(page).click()
    said = page.wait_for_selector(".jp-OutputArea pre:has-text('ended at step')", timeout=40_000).inner_text()
    page.wait_for_selector(".jp-OutputArea pre:has-text('stopped at step')", timeout=10_000)
    assert not page.query_selector(".jupyter-widgets"), "what is over has no controls"
    _run(page, "docmanager:save")
    _wait(lambda: '"image/png"' in file.read_text(), 20, "the saved notebook must carry a picture")
    step = int(said.split()[-1])
    assert 20 < step < 500, f"Stop was clicked after some two seconds of thirty, and the loop went on to step {step} of 600"
    stored, = house.pictures(house.read(file))
    assert len(stored) > 5000, "the saved notebook must carry the last picture"


def test_a_view_outlives_its_kernel(notebook):
    page, file = notebook
    last = page.query_selector(".imm-last")
    assert not last.is_visible(), "while the kernel lives there is nothing to say"
    _run(page, "kernelmenu:restart")
    page.wait_for_selector("dialog.jp-Dialog")
    page.keyboard.press("Enter")
    page.wait_for_selector(".imm-last:has-text('Run the cell again')", timeout=40_000)
    assert not page.query_selector(".imm-live").is_visible(), "there is nothing left to stop"
    assert page.query_selector(".jp-OutputArea img[alt^='step']").is_visible(), "the picture stays"
    _run(page, "docmanager:save")
    stored = lambda: ["".join(o["data"].get("text/html", "")) for o in house.outputs(house.read(file)) if "data" in o]
    _wait(lambda: any("<img" in html and "Run the cell again" in html for html in stored()), 20, "the file keeps picture and sentence")
    page.reload()
    page.wait_for_selector(".imm-last:has-text('Run the cell again')", timeout=60_000)
    time.sleep(3)
    assert not [e for e in page.query_selector_all(".jp-OutputArea .jupyter-widgets") if e.is_visible()], "no error in the place of the controls"
    assert page.query_selector(".jp-OutputArea img[alt^='step']").is_visible()
