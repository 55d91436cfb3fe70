"Data: bad input, accidents, odd pictures, links, two sources of CIFAR-10, and streams that no process changes."
import errno
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.error

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from PIL import Image

from imm_edu import data

BYTES = torch.arange(6*3*4*4, dtype=torch.uint8).view(6, 3, 4, 4)


def refuses(f, *words):
    "The error of a call, whose one sentence holds all these words"
    with pytest.raises((ValueError, TypeError, OSError, MemoryError)) as e:
        f()
    for word in words:
        assert word in str(e.value), f"{word!r} is missing in: {e.value}"


def pictures(folder, n=6):
    for i in range(n):
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 12, 3), 10 * i, np.uint8)).save(folder / f"class{i % 2}" / f"{i}.png")
    return folder


# ---- names of draws, and the stream

@pytest.mark.parametrize("salt", ["0", "random"])
def test_seeds_are_the_same_in_every_process(salt):
    "Python salts its own hash of a string; ours must not depend on that, nor ever change"
    code = "from imm_edu.data import seeded, order; print(seeded(0, 12, 'flip').initial_seed(), order(9, 3, 4, 5).tolist())"
    out = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONHASHSEED=salt), capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "372726598 [4, 3, 1, 2]", "another number would change every run there is"


def test_each_name_has_its_own_stream():
    keys = [(0, 1), (1, 0), (0, "1"), (0, 1, "flip"), (0, 1, "latent"), (-1,), ("01",)]
    firsts = {tuple(torch.rand(2, generator=data.seeded(*k)).tolist()) for k in keys}
    assert len(firsts) == len(keys)
    refuses(lambda: data.seeded(0, 1.5), "whole numbers and strings", "1.5")
    refuses(lambda: data.seeded(torch.tensor(3)), "tensor(3)")


@pytest.mark.parametrize("ask, words", [
    (dict(step=-1, size=4), "step must be a whole number from 0 up; got -1"), (dict(step=True, size=4), "got True"),
    (dict(step=0, size=0), "size must be a whole number from 1 up; got 0"), (dict(step=0, size=4, seed=.5), "0.5"),
    (dict(step=0, size=64, part=3), "part must be a slice of the batch, such as slice(0, 32)")])
def test_batches_one_cannot_ask_for(ask, words):
    for d in (data.toy("moons"), data.Images(BYTES)):
        refuses(lambda: d.batch(**ask), words)


@pytest.mark.parametrize("n, size", [(10, 4), (7, 7), (5, 16), (1, 3), (30, 1)])
def test_every_image_once_an_epoch(n, size):
    stream = torch.cat([data.order(n, step, size, 3) for step in range(2*n)])[:2*size*n // n * n].view(-1, n)
    assert (stream.sort(1).values == torch.arange(n)).all()


@pytest.mark.parametrize("x", [BYTES, BYTES / 127.5 - 1], ids=["bytes", "floats"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("augment", [0., .5])
def test_a_batch_has_no_past_and_its_parts_are_the_whole(x, flip, augment):
    images = data.Images(x, range(6), flip=flip, augment=augment)
    run = [images.batch(step, 12, 5) for step in range(8)]
    again = data.Images(x, range(6), flip=flip, augment=augment).batch(7, 12, 5)
    assert len(again) == (3 if augment else 2) and all(torch.equal(a, b) for a, b in zip(run[7], again))
    for cuts in ((0, 6, 12), (0, 1, 12), range(13)):
        parts = [images.batch(7, 12, 5, slice(a, b)) for a, b in zip(cuts, cuts[1:])]
        assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts), again)), list(cuts)


# ---- toys

def test_toys():
    refuses(lambda: data.toy("moon"), "toy 'moon' is unknown; choose one of checkerboard, moons, gaussians, spiral")
    refuses(lambda: data.toy("moons").density(torch.zeros(1, 2, 1, 1)), "density of moons has no closed form", "checkerboard, gaussians")
    moons = data.toy("moons")
    assert moons.to("cpu").batch(3, 5)[0].shape == (5, 2, 1, 1) and moons.batch(3, 5)[1] is None and moons.classes == 0
    assert len({data.toy(n).digest() for n in data.TOYS}) == 4 and data.toy("moons").digest() == moons.digest()


def test_the_checkerboard_fills_its_squares_evenly_and_no_other():
    raw = data.toy("checkerboard").sample(50_000, data.seeded(0)).flatten(1) * (4/3)**.5 / .5
    column, row = (raw + 2).floor().long().clamp(0, 3).T
    assert raw.abs().max() <= 2 and ((column + row) % 2 == 0).all()
    share = torch.bincount(4*row + column, minlength=16).double() / len(raw)
    assert (share[share > 0] - 1/8).abs().max() < 4.5 * (7/64 / len(raw))**.5 and (share > 0).sum() == 8


@pytest.mark.parametrize("name", ["moons", "spiral"])
def test_curves_are_where_their_formula_says(name):
    "The distance to the noiseless curve is that of the blur, at most five standard deviations"
    law, u = data.TOYS[name], (torch.arange(4000) + .5).double() / 4000
    if name == "moons":
        turn = torch.pi * u
        upper = torch.stack([turn.cos(), turn.sin()], 1)
        curve = torch.cat([upper, torch.tensor([1, .5]) - upper])
    else:
        arm = u.sqrt()[:, None] * torch.stack([(data.TURNS * u.sqrt()).cos(), (data.TURNS * u.sqrt()).sin()], 1)
        curve = torch.cat([arm, -arm])
    raw = data.toy(name).sample(2000, data.seeded(1)).flatten(1).double() / .5 * torch.tensor(law.variance).sqrt() + torch.tensor(law.mean)
    assert torch.cdist(raw, curve.double()).min(1).values.max() < 5 * data.BLUR[name]


@pytest.mark.parametrize("name", ["checkerboard", "gaussians"])
def test_densities_by_counting(name):
    "Shares of 64 cells of the plane are the integrals of the density over them"
    z = data.toy(name).sample(200_000, data.seeded(2)).flatten(1)
    cell = ((z + 1.2) / .3).floor().long().clamp(0, 7)
    share = torch.bincount(cell[:, 0] * 8 + cell[:, 1], minlength=64) / len(z)
    fine = (torch.arange(480).double() + .5) / 480 * 2.4 - 1.2
    plane = torch.stack(torch.meshgrid(fine, fine, indexing="ij"), -1).view(-1, 2, 1, 1)
    want = data.toy(name).density(plane).view(8, 60, 8, 60).sum((1, 3)).flatten() * (2.4/480)**2
    assert (share - want).abs().max() < 4.5 * (want.max() / len(z))**.5 + 1e-3


# ---- own tensors

@pytest.mark.parametrize("make, words", [
    (lambda: data.Images(BYTES.numpy()), ["ndarray", "torch.from_numpy(x)"]), (lambda: data.Images(BYTES[0]), ["got [3, 4, 4]"]),
    (lambda: data.Images(BYTES[:0]), ["at least one; got [0, 3, 4, 4]"]), (lambda: data.Images(BYTES[:, :, :3]), ["square images"]),
    (lambda: data.Images(BYTES.permute(0, 2, 3, 1)), ["permute(0, 3, 1, 2)"]), (lambda: data.Images(BYTES.float()), ["from 0 to 255", "x / 127.5 - 1"]),
    (lambda: data.Images(BYTES.int()), ["torch.int32", "torch.uint8"]), (lambda: data.Images(BYTES * float("nan")), ["nan"]),
    (lambda: data.Images(BYTES, [0, 1]), ["6 images", "shape [2]"]), (lambda: data.Images(BYTES, torch.rand(6)), ["whole numbers", "torch.float32"]),
    (lambda: data.Images(BYTES, [-1, 0, 0, 0, 1, 1]), ["0 ... 1; got -1 ... 1"]),
    (lambda: data.Images(BYTES, range(6), ("cat", "dog")), ["label must lie in 0 ... 1; got 0 ... 5"]),
    (lambda: data.Images(BYTES, names=("cat", "dog")), ["2 names of classes"]), (lambda: data.Images(BYTES, augment=-.1), ["augment must be a share from 0 to 1; got -0.1"]),
    (lambda: data.Images(BYTES).shrink(3), ["size = 3 does not divide the 4 pixels"]), (lambda: data.Images(BYTES).shrink(0), ["from 1 up; got 0"])])
def test_tensors_that_are_no_data_set(make, words):
    refuses(make, *words)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_labels_of_every_integer_type(dtype):
    images = data.Images(BYTES, torch.tensor([0, 1, 9, 3, 4, 5]).to(dtype))
    assert images.label.dtype == torch.int64 and images.classes == 10 and images.label.tolist() == [0, 1, 9, 3, 4, 5]
    assert images.batch(0, 6)[1].dtype == torch.int64
    refuses(lambda: data.Images(BYTES, torch.tensor([0, 1, 9, 3, 4, 5]).to(dtype), "abcdefghi"), "0 ... 8; got 0 ... 9")
    many = torch.tensor([0, 1, 300, 3, 4, 255]) if dtype.itemsize > 1 else torch.tensor([0, 1, 100, 3, 4, 127])
    assert data.Images(BYTES, many.to(dtype)).label.tolist() == many.tolist(), "none wraps around"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_floats_are_kept_as_they_are(dtype):
    x = torch.linspace(-1, 1, 6*3*4*4).view(6, 3, 4, 4).to(dtype)
    images = data.Images(x, range(6))
    assert images.x.dtype == torch.float32 and torch.equal(images.floats(), x.float())
    batch, label = images.batch(0, 6)
    assert torch.equal(batch, x.float()[label]), "a batch is a gather of what was given"
    assert torch.allclose(images.shrink(2).x, x.float().unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)), atol=1e-6)
    batch.zero_(), images.floats().zero_()
    assert torch.equal(images.x, x.float()), "what is handed out may be written to"
    with pytest.warns(UserWarning, match="pass 2\\*x - 1"):
        data.Images(torch.rand(2, 3, 4, 4))


def test_floats_are_kept_in_a_cache(tmp_path):
    x = torch.rand(2, 3, 4, 4) * 2 - 1
    data.write_cache(tmp_path / "own.safetensors", dict(x=x), mark="m")
    assert torch.equal(data.Images(data.read_cache(tmp_path / "own.safetensors", "m")[0]["x"]).x, x)


def test_bytes_become_exact_floats_and_come_back():
    ramp = data.Images(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16))
    exact = torch.tensor([(2*v - 255) / 255 for v in range(256)], dtype=torch.float64)
    x = ramp.floats().flatten()
    assert (x.double() - exact).abs().max() < 1e-7 and x[0] == -1 and x[255] == 1
    assert torch.equal(((x + 1) * 127.5).round().byte(), ramp.x.flatten())


def test_shrinking():
    board = data.Images(torch.tensor([[0, 10, 50, 60], [20, 30, 70, 80], [8]*4, [9]*4], dtype=torch.uint8)[None, None])
    assert board.shrink(2).x.tolist() == [[[[15, 65], [8, 8]]]], "means of 2x2 squares; halves go to the even byte"
    assert board.size == 4 and board.shrink(4).x.equal(board.x) and board.shrink(2).size == 2


def test_what_a_digest_notices():
    x = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    seen = {"as it is": data.Images(x, range(50)), "no label": data.Images(x), "floats": data.Images(x / 127.5 - 1, range(50))}
    seen["one byte"] = data.Images(x.clone(), range(50))
    seen["one byte"].x[49, 2, 7, 7] ^= 1
    seen["two labels"] = data.Images(x, [1, 0, *range(2, 50)])
    seen["another shape"] = data.Images(x.view(50, 12, 4, 4), range(50))
    found = {name: d.digest() for name, d in seen.items()}
    assert len(set(found.values())) == len(found), found
    again = data.Images(x.clone(), torch.arange(50).byte(), flip=True).to("cpu")
    assert again.digest() == found["as it is"], "same images and labels; what is done to them stands in the repr"
    int(found["as it is"], 16)


def test_what_changes_a_batch_stands_in_the_repr():
    x = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    lines = {repr(data.Images(x, **kw)) for kw in ({}, dict(flip=True), dict(augment=.1), dict(label=range(6)), dict(source="CIFAR-10 (JPEG 75)"))}
    assert len(lines) == 5 and any("JPEG 75" in line for line in lines)


def test_there_is_no_gpu_or_no_room_on_it(monkeypatch):
    images = data.Images(BYTES)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuses(lambda: images.to("cuda"), "there is no GPU here; use 'cpu'")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    refuses(lambda: images.to("cuda"), "need 288 bytes on cuda, where 100 are free")



# ---- digits

def test_digits_are_those_of_the_source():
    from sklearn.datasets import load_digits
    raw, train, test = load_digits(), data.digits(), data.digits("test")
    whole, both = torch.from_numpy(raw.images).float()[:, None] / 8 - 1, torch.cat([train.floats(), test.floats()])
    gap, source = torch.cdist(both.flatten(1), whole.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert len(source.unique()) == len(whole) == 1797 and (len(train), len(test)) == (1400, 397)
    assert (both - whole[source]).abs().max() < 1/255 + 1e-6, "bytes hold the grey levels to half a byte"
    assert torch.equal(torch.cat([train.label, test.label]), torch.from_numpy(raw.target)[source]) and train.names[3] == "3"
    refuses(lambda: data.digits("valid"), "split 'valid' is unknown; choose one of train, test, all")


# ---- what is kept

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
        assert data.read_cache(place, "one") is None
        assert torch.equal(data.folder(pics, 8, cache=cache).x, whole) and place.read_bytes() == good


@pytest.mark.parametrize("problem", ["a file in the way", "full disk"])
def test_no_place_to_keep_costs_a_warning(problem, tmp_path, monkeypatch):
    pics, cache = pictures(tmp_path / "pics"), tmp_path / "cache"
    if problem == "full disk":
        import safetensors.torch

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(safetensors.torch, "save_file", full)
    else:
        cache.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="could not be kept in .* which needs 1,200 bytes there"):
        assert len(data.folder(pics, 8, cache=cache)) == 6


def test_a_file_of_ones_own_is_never_replaced(tmp_path):
    from safetensors.torch import save_file
    mine = tmp_path / "cifar10-train.safetensors"
    save_file(dict(x=torch.arange(5)), mine)
    before = mine.read_bytes()
    with pytest.warns(UserWarning, match="a file of yours is there, and is left alone"):
        data.write_cache(mine, dict(x=torch.zeros(2)), mark="m")
    assert mine.read_bytes() == before and data.read_cache(mine, "m") is None
    data.write_cache(tmp_path / "other", dict(x=torch.zeros(2)), mark="m")
    data.write_cache(tmp_path / "other", dict(x=torch.ones(2)), mark="n", names=["a"])
    assert data.read_cache(tmp_path / "other", "m") is None and data.read_cache(tmp_path / "other", "n")[1]["names"] == ["a"]
    assert data.read_cache(tmp_path / "none", "n") is None


def test_a_file_written_whole_may_be_read_by_whom_others_may(tmp_path):
    note, plain = tmp_path / "note", tmp_path / "plain"
    plain.touch()
    with data.atomic(note) as part:                     # as safetensors writes: a new file for the owner's eyes
        part.unlink()
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    assert note.stat().st_mode == plain.stat().st_mode and set(tmp_path.iterdir()) == {note, plain}


# ---- pictures

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


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_greys_are_scaled_by_what_the_folder_holds(bits, suffix, tmp_path):
    ramp = np.linspace(0, 2**bits - 1, 64).round().astype(np.uint16)
    for name, share in (("bright", 1.), ("dark", .25)):
        Image.fromarray(np.tile((share * ramp).astype(np.uint16), (64, 1))).save(tmp_path / f"{name}.{suffix}")
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(tmp_path / "shallow.png")
    bright, dark, shallow = data.folder(tmp_path, 64, 1, cache=False).x.int()
    want = torch.linspace(0, 255, 64)
    assert (bright - want).abs().max() <= 1.5, f"{bits} bits must fill black to white"
    assert (dark - want / 4).abs().max() <= 1.5 and (shallow == 77).all(), "a quarter as bright stays so, and bytes stay bytes"


def test_animations_capitals_and_large_pictures(tmp_path):
    frames = [Image.fromarray(np.full((20, 20, 3), v, np.uint8)) for v in (50, 200)]
    frames[0].save(tmp_path / "a.GIF", "gif", save_all=True, append_images=frames[1:])
    x = data.folder(tmp_path, 8, cache=False).x
    assert len(x) == 1 and (x.int() - 50).abs().max() <= 2, "the first frame"


def test_a_camera_on_its_side(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6                    # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    x = data.folder(tmp_path, 8, cache=False).x[0, 0]
    assert (x[:, -1] == 255).all() and (x[:, :-1] == 0).all(), "the top row of the sensor is the right column"


def test_the_middle_square_without_false_patterns(tmp_path):
    rng = np.random.default_rng(0)
    same, stripes, wide = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), np.zeros((64, 64), np.uint8), np.zeros((16, 48), np.uint8)
    stripes[:, ::2], wide[:, 16:32] = 255, 200
    clear = Image.merge("LA", [Image.fromarray(np.full((16, 16), v, np.uint8)) for v in (100, 128)])
    for name, img in dict(clear=clear, same=Image.fromarray(same), stripes=Image.fromarray(stripes), wide=Image.fromarray(wide)).items():
        img.save(tmp_path / f"{name}.png")
    clear, same_, stripes, wide = data.folder(tmp_path, 16, cache=False).x
    assert np.array_equal(same_.permute(1, 2, 0), same), "the right size is left alone"
    assert (stripes[0, 2:-2, 2:-2].float() - 127.5).abs().max() < 10, "fine stripes become grey"
    assert (wide == 200).all() and (clear.float() - (100*128 + 255*127)/255).abs().max() <= 1, "cut to the middle; laid on white"


# ---- folders

def test_image_folder_agrees_on_random_trees(tmp_path):
    from torchvision.datasets import ImageFolder
    rng = np.random.default_rng(1)
    pixel = Image.fromarray(np.zeros((2, 2), np.uint8))
    for tree in range(5):
        top = tmp_path / f"tree{tree}"
        for i in range(30):
            parts = rng.choice(["a", "B", "a-b", "a b", "Z9", "é"], rng.integers(1, 4))
            (where := top.joinpath(*parts)).mkdir(parents=True, exist_ok=True)
            pixel.save(where / f"{rng.choice(list('xYz_1'))}{i}.{rng.choice(['png', 'PNG', 'jpg', 'tif', 'pgm'])}", "png")
        theirs, ours = ImageFolder(top), data.folder(top, 2, cache=False)
        assert list(ours.names) == theirs.classes and ours.label.tolist() == theirs.targets
        assert [top / f for f in data.listing(top)[0]] == [type(top)(f) for f, _ in theirs.samples]


def test_litter_leaves_no_trace(tmp_path):
    zoo = tmp_path / "zoo"
    for f in ("dog/a.PNG", "cat/b.png", "cat/kittens/c.png", "cat/._b.png", ".cache/d.png"):
        (zoo / f).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(zoo / f, "png")
    (zoo / "README.txt").write_text("my animals"), (zoo / "bird").mkdir()
    animals = data.folder(zoo, 8, cache=False)
    assert animals.names == ("cat", "dog") and animals.label.tolist() == [0, 0, 1]


def test_links_are_followed_but_not_in_circles(tmp_path, monkeypatch):
    pics = pictures(tmp_path / "pics", 3)
    (pics / "class0" / "up").symlink_to(pics)
    assert len(data.listing(pics)[0]) == 3, "a link to a folder it lies in adds nothing"
    (pics / "class1" / "further").symlink_to(tmp_path)
    elsewhere = pictures(tmp_path / "elsewhere", 2)
    (pics / "class2").symlink_to(elsewhere / "class0")
    (elsewhere / "class0" / "back").symlink_to(pics)
    files, label, names = data.listing(pics)
    assert len(files) == 4 and label == [0, 0, 1, 2] and names == ["class0", "class1", "class2"], [str(f) for f in files]
    monkeypatch.chdir(pics)
    assert len(data.folder(".", 8, cache=False)) == 4, "from within, too"


def test_dangling_links_pipes_and_bad_files_are_named_together(tmp_path):
    pics, cache = pictures(tmp_path / "pics"), tmp_path / "cache"
    (pics / "class0" / "text.jpg").write_text("I am no image")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(pics / "class0" / "half.jpg")
    (pics / "class0" / "half.jpg").write_bytes((pics / "class0" / "half.jpg").read_bytes()[:2000])
    (pics / "class1" / "gone.png").symlink_to("/nowhere/at/all.png")
    (pics / "class1" / "self.png").symlink_to("self.png")
    os.mkfifo(pics / "class1" / "pipe.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(pics / "class1" / "float.tif")
    said = ["6 of 12 images", "class0/text.jpg (UnidentifiedImageError", "class0/half.jpg (OSError: image file is truncated",
            "class1/gone.png (a link to /nowhere/at/all.png, which is not there)", "class1/self.png (a link to self.png",
            "class1/pipe.png (a pipe or device, no file)", "class1/float.tif (its pixels are floating point", "skip=True"]
    for place in (cache, False):
        refuses(lambda: data.folder(pics, 8, cache=place), *said)
    for reading in ("decoding", "keeping"):
        with pytest.warns(UserWarning, match="6 images in .* cannot be read and were left out(.|\n)*gone.png"):
            images = data.folder(pics, 8, skip=True, cache=cache)
        assert len(images) == 6 and images.label.tolist() == [0]*3 + [1]*3
    for f in pics.rglob("[0-9].png"):
        f.unlink()
    refuses(lambda: data.folder(pics, 8, skip=True, cache=False), "6 of 6 images")


def test_a_folder_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    pics, cache = pictures(tmp_path / "pics"), tmp_path / "cache"
    first = data.folder(pics, 8, cache=cache)
    with monkeypatch.context() as m:
        m.setattr(data, "decode", None)
        assert torch.equal(data.folder(pics, 8, cache=cache).x, first.x), "the kept file answers"
    Image.fromarray(np.full((9, 12, 3), 99, np.uint8)).save(pics / "class1" / "6.png")
    assert len(data.folder(pics, 8, cache=cache)) == 7 and len(list(cache.iterdir())) == 1, "one file for one folder and size"
    Image.fromarray(np.full((9, 12, 3), 55, np.uint8)).save(pics / "class1" / "6.png")
    assert (data.folder(pics, 8, cache=cache).x[-1] == 55).all(), "a picture changed is noticed"
    assert data.folder(pics, 16, 1, cache=cache).x.shape == (7, 1, 16, 16) and len(list(cache.iterdir())) == 2
    flat = data.folder(pics / "class0", 8, cache=False, flip=False)
    assert flat.label is None and flat.classes == 0 and not flat.flip


def test_folders_that_hold_no_data_set(tmp_path, monkeypatch):
    pics = pictures(tmp_path / "pics")
    (tmp_path / "empty").mkdir()
    refuses(lambda: data.folder(tmp_path / "nowhere", 8), "nowhere does not exist; give the folder")
    refuses(lambda: data.folder(pics / "class0" / "0.png", 8), "is a file, not a folder")
    refuses(lambda: data.folder(tmp_path / "empty", 8), "holds no images: files ending in .bmp .gif")
    refuses(lambda: data.folder(pics, 0), "size must be a whole number from 1 up; got 0")
    refuses(lambda: data.folder(pics, 8, channels=4), "channels '4' is unknown; choose one of 3, 1")
    refuses(lambda: data.folder(pics, 8, augment=3), "augment must be a share from 0 to 1; got 3")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(pics / "stray.png")
    refuses(lambda: data.folder(pics, 8), "1 images directly and 6 in subfolders")
    (pics / "stray.png").unlink()
    monkeypatch.setattr(os, "sysconf", dict(SC_PAGE_SIZE=10, SC_PHYS_PAGES=100).get)
    refuses(lambda: data.folder(pics, 20, cache=False), "6 images of 3x20x20 need 7,200 bytes", "1,000; take size=7 or less")


# ---- CIFAR-10

@pytest.fixture
def archive(tmp_path, monkeypatch):
    "A forged archive with the layout of the original, four images a batch, its checksums told; and no network"
    import hashlib
    from torchvision.datasets import CIFAR10
    rows = np.random.default_rng(0).integers(0, 256, (6, 4, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {name: pickle.dumps(dict(data=r, labels=[0, 1, 2, i]), 2) for i, (name, r) in enumerate(zip(names, rows))}
    files["batches.meta"] = pickle.dumps(dict(label_names=["plane", "car", "bird", "cat", "deer", "dog"]), 2)
    (folder := tmp_path / "cifar" / CIFAR10.base_folder).mkdir(parents=True)
    for name, b in files.items():
        (folder / name).write_bytes(b)
    place = tmp_path / "cifar" / CIFAR10.filename
    with tarfile.open(place, "w:gz") as t:
        t.add(folder, CIFAR10.base_folder)
    shutil.rmtree(folder)
    md5 = {name: hashlib.md5(b).hexdigest() for name, b in files.items()}
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(place.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5[n]] for n in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[n, md5[n]] for n in names[5:]])
    monkeypatch.setattr(CIFAR10, "meta", dict(filename="batches.meta", key="label_names", md5=md5["batches.meta"]))
    offline(monkeypatch)
    return place, torch.from_numpy(rows).view(6, 4, 3, 32, 32)


def offline(monkeypatch):
    def none(*args, **kw):
        raise urllib.error.URLError("no network here")
    monkeypatch.setattr("urllib.request.urlopen", none)


def as_files(root, split="test", suffix="jpg", **kw):
    for i, c in enumerate("airplane automobile bird cat deer dog frog horse ship truck".split()):
        (at := root / "cifar10-images" / split / c).mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 20*i, np.uint8)).save(at / f"0.{suffix}", **kw)
    return root


def test_the_archive_is_unpacked_and_kept(archive, monkeypatch, capsys):
    archive, rows = archive
    root = archive.parent
    as_files(root)
    train, test = data.cifar10(root, download=False), data.cifar10(root, "test")
    assert torch.equal(train.x, rows[:5].flatten(0, 1)) and torch.equal(test.x, rows[5]), "planes, rows and columns in order"
    assert train.label.tolist() == [v for i in range(5) for v in (0, 1, 2, i)] and train.names[3] == "cat" and train.flip
    assert train.source == test.source == "CIFAR-10" and "CIFAR-10," in repr(train) and not capsys.readouterr().out
    archive.unlink()
    shutil.rmtree(root / "cifar-10-batches-py")
    for source in (None, "original"):
        assert torch.equal(data.cifar10(root, download=False, source=source).x, train.x), "the kept file needs neither archive nor network"
    small = data.cifar10(root, "test", False, .1, 8)
    assert small.x.shape == (4, 3, 8, 8) and not small.flip and small.augment == .1
    pictures = data.cifar10(root, "test", source="images")
    assert pictures.source == "CIFAR-10 (JPEG 75)" and len(pictures) == 10, "asked for, they come although the original is there"
    assert pictures.digest() != test.digest()


def test_without_network_the_advice(archive, monkeypatch):
    archive, _ = archive
    half = archive.read_bytes()[:1000]
    for left in (None, half):
        archive.unlink()
        if left:
            archive.write_bytes(left)
        refuses(lambda: data.cifar10(archive.parent), f"put it here as {archive}", "no network here", "170,498,071 bytes, md5")
        refuses(lambda: data.cifar10(archive.parent, download=False), "data.cifar10() fetches it")
        assert not left or archive.read_bytes() == half, "what someone put there is not deleted"
        archive.touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 9*10**8, 10**8))
    refuses(lambda: data.cifar10(archive.parent), f"needs {data.CIFAR10_BYTES:,} bytes in {archive.parent}, of which 100,000,000 are free")


def test_class_folders_stand_in_only_when_said(tmp_path, monkeypatch, capsys):
    offline(monkeypatch)
    as_files(tmp_path, quality=30)
    for download in (True, False):
        images = data.cifar10(tmp_path, "test", download=download)
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "original CIFAR-10 is not here" in out and "CIFAR-10 (JPEG 30)" in out
        refuses(lambda: data.cifar10(tmp_path, "test", download=download, source="original"), "CIFAR-10")
    assert images.source == "CIFAR-10 (JPEG 30)" and images.source in repr(images) and images.names[3] == "cat"
    assert data.cifar10(tmp_path, "test", source="images").x.equal(images.x) and not capsys.readouterr().out
    refuses(lambda: data.cifar10(tmp_path, "train", source="images"), "cifar10-images/train does not exist")
    as_files(tmp_path / "png", suffix="png")
    assert data.cifar10(tmp_path / "png", "test", source="images").source == "CIFAR-10 (PNG)", "lossless, but still not the archive"
    shutil.rmtree(tmp_path / "cifar10-images" / "test" / "cat")
    refuses(lambda: data.cifar10(tmp_path, "test", source="images"), "must hold ten class folders; it holds 9")


def test_slips_before_anything_is_fetched(tmp_path):
    none = tmp_path / "none"
    refuses(lambda: data.cifar10(none, "validation"), "split 'validation' is unknown; choose one of train, test")
    refuses(lambda: data.cifar10(none, source="jpeg"), "source 'jpeg' is unknown; choose one of original, images")
    refuses(lambda: data.cifar10(none, augment=3), "augment must be a share from 0 to 1; got 3")
    refuses(lambda: data.cifar10(none, size=0), "size must be a whole number from 1 up; got 0")
    refuses(lambda: data.cifar10(none, download=False), "none; data.cifar10() fetches it")
    assert not none.exists()


def test_a_file_of_tensors(tmp_path):
    file, x, label = tmp_path / "waves.safetensors", torch.rand(6, 1, 8, 8) * 2 - 1, torch.arange(6) % 3
    def written(**tensors):
        save_file(tensors, file)
        return data.tensors(file)
    found = written(x=x, label=label)
    assert torch.equal(found.x, x) and found.label.tolist() == label.tolist() and found.classes == 3 and found.source == file.name
    assert written(x=(255 * (x + 1) / 2).byte()).classes == 0
    for wrong, words in ((dict(y=x), "holds y; needed is"), (dict(x=x[0]), "square images"), (dict(x=x * torch.nan), "floats in -1 ... 1"),
                         (dict(x=9 * x), "floats in -1 ... 1"), (dict(x=x, label=label[:5]), "one for each of 6 images"),
                         (dict(x=x, label=label.float()), "whole numbers")):
        with pytest.raises(ValueError, match=re.escape(words)) as e:
            written(**wrong)
        assert str(file) in str(e.value), "the file is named"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        data.tensors(file)
    with pytest.raises(FileNotFoundError, match="is no file"):
        data.tensors(tmp_path / "none.safetensors")


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    "After a power cut a name without its content would be all that is left"
    done = []
    monkeypatch.setattr("os.fsync", lambda number: done.append("flushed"))
    monkeypatch.setattr("os.replace", lambda a, b: done.append("named"))
    with data.atomic(tmp_path / "file") as part: part.write_text("x")
    assert done == ["flushed", "named"]
