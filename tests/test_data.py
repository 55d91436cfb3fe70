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


def told_of(images, step=3, size=24, part=slice(None)):
    return images.batch(step, size, 1, part)


@pytest.mark.parametrize("size, channels", [(5, 1), (16, 3), (33, 3)])
def test_augmentation_is_the_same_in_every_split_and_on_any_number_of_threads(size, channels):
    x = torch.randint(0, 256, (40, channels, size, size), dtype=torch.uint8)
    images, threads = data.Images(x, range(40), flip=True, augment=.5), torch.get_num_threads()
    whole = told_of(images)
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for cuts in (range(25), (0, 7, 8, 24), (0, 12, 24)):
                parts = [told_of(images, part=slice(a, b)) for a, b in zip(cuts, cuts[1:])]
                assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts), whole)), (n, list(cuts))
    finally:
        torch.set_num_threads(threads)


def test_what_is_done_depends_on_nothing_else():
    x = torch.randn(60, 3, 9, 9).clamp(-1, 1)
    before, state = x.clone(), torch.get_rng_state()
    images, told = data.augment(x, data.seeded(4))
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state), "neither the images given nor the global generator"
    wide, again = data.augment(x.double(), data.seeded(4))
    assert wide.dtype == torch.float64 and told.dtype == torch.float32 and torch.equal(told, again)
    assert (wide - images).abs().max() < 1e-4, "in both precisions the same"
    grey = data.augment(x[:, 1:2], data.seeded(4))[0]
    assert torch.allclose(grey, images[:, 1:2], atol=1e-6), "each channel alike"


def test_what_is_done_never_changes():
    told = data._plan(3, data.seeded(0, 1, "augment"), .5)
    want = [[0, 0, -0.81776, -0.65488, -0.93856, 0, 0, 0.26176, 1.3165],
            [0, 0, -1.3846, -0.31291, 0.72658, -0.41569, 0.70172, 0, 0],
            [0, 0, 0, -0.70083, 0.9542, -0.36712, 0.45274, 0.60932, -1.4258]]
    assert (told - torch.tensor(want)).abs().max() < 1e-4, "frozen: other numbers would change every run there is"


def test_nothing_is_turned_at_zero_and_everything_at_one():
    x = torch.randn(50, 3, 8, 8)
    same, told = data.augment(x, data.seeded(0), p=0)
    assert torch.equal(same, torch.where(told[:, :1, None, None] > 0, x.flip(3), x)) and not told[:, 1:].any()
    done, told = data.augment(x, data.seeded(0), p=1)
    assert (told[:, [2, 4, 5, 7, 8]] != 0).all() and done.isfinite().all()
    for n in (1, 2):
        assert data.augment(x[:n], data.seeded(0))[0].shape == (n, 3, 8, 8)


def test_folders_are_augmented_on_request(tmp_path):
    pics = pictures(tmp_path / "pics")
    images = data.folder(pics, 8, cache=False, augment=.3)
    assert images.augment == .3 and len(images.batch(0, 4)) == 3 and "augment=0.3" in repr(images)
    assert len(images.to("cpu").batch(0, 4)) == 3 and len(data.folder(pics, 8, cache=False).batch(0, 4)) == 2
    for make in (lambda: data.folder(pics, 8, augment=3), lambda: data.cifar10(tmp_path / "none", augment=3)):
        with pytest.raises(ValueError, match="augment must be a share from 0 to 1; got 3"):
            make()
    assert not (tmp_path / "none").exists(), "refused before anything is fetched"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_does_the_same():
    x = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    here = data.Images(x, range(40), flip=True, augment=.5)
    for a, b in zip(told_of(here.to("cuda")), told_of(here)):
        assert a.device.type == "cuda" and (a.cpu() - b).abs().max() < 1e-4
