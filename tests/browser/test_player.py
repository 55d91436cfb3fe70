"""The player of the front page, opened as a file in headless Chromium: what it computes against torch, and what it must never do.

Needs `pip install playwright` and a chromium on the PATH; without them the tests are skipped, since nothing else here needs a browser.
"""
import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from imm_edu import pretrained, sample

playwright = pytest.importorskip("playwright.sync_api", reason="the player is tested with playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("the player is tested in chromium, and there is none on the PATH", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
TOYS = ("moons", "checkerboard", "spiral", "gaussians")
WALK = """([name, plain, x, steps, labels, guidance]) => {
    const model = ImmPlayer.load(name, plain);
    return [...model.pushforward(x, model.uniform(steps), labels, guidance).at(-1)];
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("player")
    subprocess.run([sys.executable, ROOT / "nbs/site/player/pack.py", out], cwd=ROOT, check=True)
    return out


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, folder):
    "Opens the page as a file; at the end there may be no error, and no request for anything beyond the folder"
    contexts, said, asked = [], [], []

    def open_page(before=None, **options):
        options = dict(viewport=dict(width=1280, height=900), reduced_motion="reduce", color_scheme="light") | options
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: asked.append(r.url))
        if before: page.add_init_script(before)
        page.goto(folder.joinpath("index.html").as_uri())
        return page

    yield open_page
    for context in contexts: context.close()
    assert not said, f"the page complains: {said}"
    away = [url for url in asked if not url.startswith((folder.as_uri(), "data:"))]
    assert not away, f"nothing may leave the page, and it asked for {away}"


def settled(page, figure="digits"):
    page.wait_for_selector(f"[data-figure={figure}][data-state=done]")
    return page.locator(f"[data-figure={figure}]")


def noise(model, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return model.sigma_d * torch.randn(n, *sample.image_shape(model), dtype=torch.float64, generator=g)


def in_torch(model, x, times, label=None, guidance=1.):
    *_, x = sample.pushforward(model, x, times, label, guidance)
    return x


def pictures(figure, where=".imm-sheet canvas"):
    "What the canvases show, as the share of ink, read from their pixels: [n, 8, 8]"
    grey = figure.locator(where).evaluate_all("""all => all.map(c => [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]
        .filter((_, i) => i % 4 === 0))""")
    paper, ink = figure.evaluate("""f => ["--paper", "--ink"].map(v => getComputedStyle(f).getPropertyValue(v).trim().slice(1))
        .map(v => parseInt(v.length === 3 ? v[0] + v[0] : v.slice(0, 2), 16))""")
    return ((torch.tensor(grey, dtype=torch.float64) - paper) / (ink - paper)).view(len(grey), 8, 8)


@pytest.mark.parametrize("plain", [False, True], ids=["WebAssembly", "plain"])
def test_digits_are_those_of_torch(visit, plain):
    page, model = visit(), pretrained.load(ROOT / "nbs/results/digits")
    x, label = noise(model, 11), torch.arange(11) - 1                       # null, and every digit
    for steps in (1, 2, 8):
        for guidance in (1., 1.5):
            want = in_torch(model, x, sample.grid("uniform", steps, model), label, guidance)
            got = page.evaluate(WALK, ["digits", plain, x.flatten().tolist(), steps, label.tolist(), guidance])
            off = (torch.tensor(got).view_as(want) - want).abs().max() / 2          # images are -1 ... 1, pixels 0 ... 1
            assert off < 1/255, f"{steps} jumps, guidance {guidance}: a pixel is {255*off:.2g} grey levels from torch's"


@pytest.mark.parametrize("plain", [False, True], ids=["WebAssembly", "plain"])
@pytest.mark.parametrize("name", TOYS)
def test_points_are_those_of_torch(visit, name, plain):
    page, model = visit(), pretrained.load(ROOT / f"nbs/results/toy-{name}")
    x = noise(model, 101)
    for steps in (1, 2, 8):
        want = in_torch(model, x, sample.grid("uniform", steps, model))
        got = page.evaluate(WALK, [f"toy-{name}", plain, x.flatten().tolist(), steps, [-1] * 101, 1])
        off = (torch.tensor(got).view_as(want) - want).abs().max()
        assert off < 1e-4, f"{steps} jumps: a point lands {off:.1e} from torch's, in a plane where the data have deviation 0.5"


def test_what_is_seen_is_what_was_computed(visit):
    page, model = visit(), pretrained.load(ROOT / "nbs/results/digits")
    figure = settled(page)
    page.get_by_role("radio", name="7").check()
    figure.locator("[name=guidance]").fill("2")
    figure.locator("[name=steps]").fill("3")
    figure.get_by_role("button", name="Another").click()
    figure, seed = settled(page), 2
    x = model.sigma_d * torch.tensor(page.evaluate(f"[...ImmPlayer.normal({seed}, 16 * 64)]"), dtype=torch.float64).view(16, 1, 8, 8)
    want = ((in_torch(model, x, sample.grid("uniform", 3, model), 7, 2.) + 1) / 2).clip(0, 1)[:, 0]
    assert (pictures(figure) - want).abs().max() < 2/255, "the sheet must show sixteen sevens, three jumps from this noise, guidance 2"
    way = pictures(figure, ".imm-states canvas")
    assert len(way) == 4 and (way[-1] - want[3]).abs().max() < 2/255, "the way of the pressed digit ends in that digit"
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in figure.locator("[data-out=facts]").text_content()


def test_the_assembled_product_is_the_one_that_can_be_read(tmp_path):
    if not shutil.which("wat2wasm"):
        pytest.skip("no wat2wasm on the PATH to assemble product.wat with: npm install wabt")
    subprocess.run(["wat2wasm", ROOT / "nbs/site/player/product.wat", "-o", tmp_path / "product.wasm"], check=True)
    text = re.search("const PRODUCT = `([^`]*)`", (ROOT / "nbs/site/player/player.js").read_text())[1]
    assert base64.b64decode(text) == (tmp_path / "product.wasm").read_bytes(), "assemble product.wat again, and write it into player.js"


def test_noise_is_normal(visit):
    z = torch.tensor(visit().evaluate("[...ImmPlayer.normal(1, 20000)]"), dtype=torch.float64)
    assert z.mean().abs() < .04 and (z.std() - 1).abs() < .03, "the sampler starts from mean 0 and deviation 1, times sigma_d"
    assert ((z.abs() < 1).double().mean() - .6827).abs() < .02, "two thirds of normal numbers lie within one deviation"


def test_a_dragged_stop_changes_the_picture(visit):
    page = visit()
    figure = settled(page)
    before, stop = pictures(figure), figure.get_by_role("slider", name="Stop 2 of 3")
    box = stop.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * .65, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    dragged = pictures(settled(page))
    assert float(stop.input_value()) < .4, "to the right is nearer to the data: a smaller time"
    assert (dragged - before).abs().max() > .05, "other times, another picture"
    stop.press("ArrowRight")
    assert (pictures(settled(page)) - dragged).abs().max() > 0, "a key moves a stop as well as a hand does"
    times = page.evaluate("ImmPlayer.figures[0].times")
    assert times == sorted(times, reverse=True), "stops may not overtake each other"
    figure.get_by_role("button", name="Even stops").click()
    assert torch.equal(pictures(settled(page)), before), "even stops are what the page began with"


def test_particles_follow_the_stops_too(visit):
    page = visit()
    figure = settled(page, "plane")
    ends = lambda: torch.tensor(page.evaluate("[...ImmPlayer.figures[1].states.at(-1)]"), dtype=torch.float64)
    before = ends()
    figure.get_by_role("slider", name="Stop 1 of 3").press("End")
    settled(page, "plane")
    assert not torch.equal(ends(), before), "a stop at its end, other places"
    page.get_by_role("radio", name="spiral").check()
    settled(page, "plane")
    model, where = pretrained.load(ROOT / "nbs/results/toy-spiral"), "ImmPlayer.figures[1]"
    x, times = (torch.tensor(page.evaluate(f"[...{where}.{v}]"), dtype=torch.float64) for v in ("states[0]", "times"))
    want = in_torch(model, x.view(-1, 2, 1, 1), times).flatten()
    assert (ends() - want).abs().max() < 1e-4, "the spiral's particles must be where torch puts them with these stops"
    colours = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert figure.locator(".imm-plane").evaluate(colours) > 9, "and they are drawn"


def test_with_motion_it_ends_where_it_does_without(visit):
    moving, still = visit(reduced_motion="no-preference"), visit()
    assert torch.equal(pictures(settled(moving)), pictures(settled(still))), "motion shows the way, and does not change where it ends"
    plane = settled(moving, "plane")
    plane.scroll_into_view_if_needed()
    plane.get_by_role("button", name="Play").click()
    settled(moving, "plane"), settled(still, "plane")
    ends = "[...ImmPlayer.figures[1].states.at(-1)]"
    assert moving.evaluate(ends) == still.evaluate(ends), "particles rest where the jumps put them"


def test_without_webassembly_it_is_slower_and_the_same(visit):
    facts = "[data-out=facts]"
    plain, fast = settled(visit("delete window.WebAssembly")), settled(visit())
    assert "plain JavaScript" in plain.locator(facts).text_content() and "WebAssembly" in fast.locator(facts).text_content()
    assert (pictures(plain) - pictures(fast)).abs().max() < 2/255, "both products of matrices give one picture"


def test_without_scripts_there_is_a_picture(visit, folder):
    page = visit(java_script_enabled=False)
    picture, size = page.locator("#imm-player img"), Image.open(folder / "player.png").size
    assert picture.is_visible() and tuple(picture.bounding_box()[k] for k in ("width", "height")) == size, "the still must be shown"
    seen = Image.open(io.BytesIO(picture.screenshot())).convert("L").resize((64, 32))
    assert len(set(seen.tobytes())) > 20, "and be more than an empty frame"
    assert not page.locator(".imm-figure").first.is_visible(), "controls that do nothing are not shown"


@pytest.mark.parametrize("width", [390, 736, 1280])
def test_nothing_is_wider_than_the_page(visit, width):
    page = visit(viewport=dict(width=width, height=800))
    for steps in "18":
        settled(page).locator("[name=steps]").fill(steps)
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{steps} jumps: a reader would have to scroll sideways"


def test_the_page_is_small(folder):
    models = json.loads((folder / "models.js").read_text().removeprefix("window.IMM_MODELS = ").rstrip(";\n"))
    large = {name: len(m["weights"]) for name, m in models.items() if len(m["weights"]) > 1_500_000}
    assert not large, f"weights over 1.5 MB: {large}; the front page is read on telephones too"
