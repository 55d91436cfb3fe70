"Data across processes and accidents: seeds that no process changes, writes that die half-way, many odd images at once."
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from imm_edu import data


@pytest.mark.parametrize("salt", ["0", "random"])
def test_seeds_are_the_same_in_every_process(salt):
    "Python salts its own hash of a string; ours must not depend on that, nor ever change"
    code = "from imm_edu.data import seeded, order; print(seeded(0, 12, 'flip').initial_seed(), order(9, 3, 4, 5).tolist())"
    out = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONHASHSEED=salt), capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "372726598 [4, 3, 1, 2]", "frozen: another number would change every run there is"


def pictures(folder, n=6):
    for i in range(n):
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 12, 3), 10 * i, np.uint8)).save(folder / f"class{i % 2}" / f"{i}.png")
    return folder


@pytest.mark.parametrize("dies_at", ["save_file", "replace"])
def test_an_interrupted_write_leaves_no_debris(dies_at, tmp_path, monkeypatch):
    import safetensors.torch
    pics, cache = pictures(tmp_path / "pics"), tmp_path / "cache"
    first = data.folder(pics, 8, cache=cache)
    kept = {p: p.read_bytes() for p in cache.iterdir()}
    pictures(pics, 8)

    def dies(*args, **kw):
        raise KeyboardInterrupt
    monkeypatch.setattr(*(data.os, "replace") if dies_at == "replace" else (safetensors.torch, "save_file"), dies)
    with pytest.raises(KeyboardInterrupt):
        data.folder(pics, 8, cache=cache)
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in cache.iterdir()} == kept, "the old file stays as it was, and nothing beside it"
    assert len(first) == 6 and len(data.folder(pics, 8, cache=cache)) == 8


def test_a_damaged_kept_file_is_made_again(tmp_path):
    pics, cache = pictures(tmp_path / "pics"), tmp_path / "cache"
    whole = data.folder(pics, 8, cache=cache).x.clone()
    place, = cache.iterdir()
    good = place.read_bytes()
    for bad in (good[:50], good[:-3], b"", b"\xff" * 100):
        place.write_bytes(bad)
        assert torch.equal(data.folder(pics, 8, cache=cache).x, whole)
        assert place.read_bytes() == good


def test_no_place_to_keep_costs_a_warning(tmp_path):
    pics, cache = pictures(tmp_path / "pics"), tmp_path / "cache"
    cache.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="could not be kept in .* which needs 1,200 bytes there"):
        assert len(data.folder(pics, 8, cache=cache)) == 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_every_mode_in_both_depths(mode, tmp_path):
    "A grey image says grey in every mode a file can have, in colour and in grey"
    value = 255 if mode == "1" else 120
    img = Image.fromarray(np.full((20, 30), value, np.uint8))
    if mode.startswith("I"):
        img = Image.fromarray(np.full((20, 30), 257 * value, np.uint16 if mode == "I;16" else np.int32))
    else:
        img = img.convert(mode)
    img.save(tmp_path / "a.tif")
    for channels in (1, 3):
        x = data.folder(tmp_path, 10, channels, cache=False).x
        assert x.shape == (1, channels, 10, 10) and (x.int() - value).abs().max() <= 2


def test_a_camera_on_its_side(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6                    # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    x = data.folder(tmp_path, 8, cache=False).x[0, 0]
    assert (x[:, -1] == 255).all() and (x[:, :-1] == 0).all(), "the top row of the sensor is the right column"
