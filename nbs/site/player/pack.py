"""Everything the player needs, in one folder: `python nbs/site/player/pack.py OUT_FOLDER`.

It writes `models.js`, the kept models in float16 and base85, since a page opened as a file may fetch nothing; `player.png`, what the
page shows where scripts are off; and `index.html`, the player alone, with player.js and player.css beside it.
"""
import base64
import json
import shutil
import sys
from pathlib import Path

import torch
from PIL import Image

from imm_edu import pretrained, sample, show
from imm_edu.data import seeded, toy

HERE = Path(__file__).resolve().parent
KEPT = HERE.parents[1] / "results"
TOYS = ("moons", "checkerboard", "spiral", "gaussians")
WINDOW = 1.3        # the plane is drawn from -WINDOW to WINDOW
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Inductive Moment Matching in your browser</title>
<link rel="icon" href="data:,">
<body class="imm-alone">
<main>
{player}
</main>
</body>
</html>
"""


def text(array) -> str:
    return base64.b85encode(array.tobytes()).decode("ascii")


def pack(model) -> dict:
    "A model's settings, the names and shapes of its tensors, and all their numbers as float16"
    state, settings = model.net.state_dict(), pretrained.describe(model)
    half = {k: v.half() for k, v in state.items()}
    if not all(torch.equal(v.float(), state[k]) for k, v in half.items()):
        raise SystemExit("weights lose digits in float16: keep the model with pretrained.save(..., dtype=torch.float16) first")
    known = dict(flow="OTFM", param="simple_edm", second_time="s")
    if wrong := {k: settings[k] for k, v in known.items() if settings[k] != v}:
        raise SystemExit(f"player.js computes {known} and not {wrong}: add the case to its class IMM")
    numbers = torch.cat([v.flatten() for v in half.values()]).numpy()
    return settings | dict(shapes={k: list(v.shape) for k, v in state.items()}, weights=text(numbers),
                           parameters=sum(p.numel() for p in model.parameters()))


def points(name, n=3000) -> str:
    "Points of the data for the faint picture behind the particles: one byte a coordinate"
    z = toy(name).sample(n, seeded(0, "player", name)).flatten(1)
    return text(((z / WINDOW + 1) * 127.5).round().clip(0, 255).byte().numpy())


def still(models) -> Image.Image:
    "What the player would show, drawn here: sixteen digits, and the four distributions after four jumps"
    digits = sample.sample(models["digits"], 16, steps=4, label=torch.arange(16) % 10, guidance=1.5)
    parts = [show.montage(digits, columns=4, scale=8)]
    parts += [show.montage(sample.points(models[f"toy-{name}"], 1000, steps=4), scale=126, paper=None) for name in TOYS]
    sheet = Image.new("RGBA", (parts[0].width + 12 + 2*126 + 4, parts[0].height))
    sheet.paste(parts[0], (0, 0))
    for i, part in enumerate(parts[1:]): sheet.paste(part, (parts[0].width + 12 + i % 2 * 130, i // 2 * 130))
    return sheet


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    models = {name: pretrained.load(KEPT / name) for name in ("digits", *(f"toy-{name}" for name in TOYS))}
    packed = {name: pack(model) for name, model in models.items()}
    for name in TOYS: packed[f"toy-{name}"] |= dict(points=points(name), window=WINDOW)
    (out / "models.js").write_text(f"window.IMM_MODELS = {json.dumps(packed)};\n", encoding="ascii")
    still(models).save(out / "player.png", optimize=True)
    player = (HERE / "player.html").read_text(encoding="utf-8")
    (out / "index.html").write_text(PAGE.format(player=player.replace("_static/", "")), encoding="utf-8")
    for name in ("player.js", "player.css"): shutil.copy(HERE / name, out)


if __name__ == "__main__":
    if len(sys.argv) != 2: raise SystemExit("say where to: python nbs/site/player/pack.py OUT_FOLDER")
    main(Path(sys.argv[1]))
