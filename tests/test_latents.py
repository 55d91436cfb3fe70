"Latents: the file they come from, and a stream that no split changes."
import math
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from imm_edu import latents as L
from imm_edu import presets
from imm_edu.data import Images
from imm_edu.flow import OTFM
from imm_edu.latents import LATENT_MEAN, LATENT_STD, Latents, Pictures, SmallVAE, decode, draw, encode, latents, load_vae, save_vae
from imm_edu.precond import IMM


def gaussians(n=9, C=4):
    return torch.randn(n, C, 8, 8), torch.rand(n, C, 8, 8)


def test_parts_seeds_and_the_way_back():
    mean, std = gaussians()
    codes = Latents(mean, std, torch.arange(9).byte())
    z, label = codes.batch(3, 12)
    parts = [codes.batch(3, 12, part=p) for p in (slice(0, 4), slice(4, 12))]
    assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts), (z, label))), "the parts are the batch, noise and all"
    assert not torch.equal(codes.batch(3, 12, seed=1)[0], z) and label.dtype == torch.int64 and codes.classes == 9
    m, s = (torch.tensor(v)[:, None, None] for v in (LATENT_MEAN, LATENT_STD))
    sharp = Latents(mean, 0*std)
    x, _ = sharp.batch(0, 9)
    assert torch.allclose(sharp.raw(x), x / .5 * s + m) and (torch.cdist(sharp.raw(x).flatten(1), mean.flatten(1)).min(1).values < 1e-4).all()
    assert Latents(mean[:, :1], std[:, :1], centre=[0.], spread=[2.]).batch(0, 2)[0].shape == (2, 1, 8, 8)


def test_from_a_file_in_half_precision(tmp_path):
    mean, std = gaussians()
    save_file(dict(mean=mean.half(), std=std.half(), label=torch.arange(9) % 3), tmp_path / "a.safetensors")
    codes = latents(tmp_path / "a.safetensors")
    assert codes.batch(0, 4)[0].dtype == torch.float32 and codes.classes == 3 and (len(codes), codes.size, codes.channels) == (9, 8, 4)
    assert codes.digest() == codes.to("cpu").digest() != Latents(mean, std, torch.arange(9) % 3).digest(), "half and whole are not the same"
    assert Latents(mean.bfloat16(), std.bfloat16()).digest() and "Latents(9 x 4x8x8" in repr(codes)


@pytest.mark.parametrize("make, words", [
    (lambda m, s: Latents(m, s[:3]), "of one shape; got torch.float32 \\[3, 4, 8, 8\\] where mean is \\[9, 4, 8, 8\\]"),
    (lambda m, s: Latents(m[0], s[0]), "mean must be floats \\[N, C, size, size\\]"), (lambda m, s: Latents(m.int(), s), "got torch.int32"),
    (lambda m, s: Latents(m[:, :3], s[:, :3]), "latents of 3 channels need as many numbers"),
    (lambda m, s: Latents(m, s, [1, 2]), "for each of 9 images.*shape \\[2\\]"), (lambda m, s: Latents(m, s).batch(-1, 4), "step must be"),
    (lambda m, s: Latents(m, s).batch(0, 4, part=2), "part must be a slice")])
def test_slips(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make(*gaussians())


def test_files_that_hold_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file; latents are read from a safetensors file"):
        latents(tmp_path / "nowhere")
    (tmp_path / "text").write_text("not at all")
    with pytest.raises(ValueError, match="is damaged or something else than a safetensors file"):
        latents(tmp_path / "text")
    save_file(dict(z=torch.zeros(2)), tmp_path / "other")
    with pytest.raises(ValueError, match='holds z; needed is a safetensors file with "mean"'):
        latents(tmp_path / "other")


# ---- encoding

class Halves(torch.nn.Module):
    "An autoencoder that is a formula: means of squares of 4, with a spread of .1; decoding repeats them"
    channels, name = 1, "halves"

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))
        self.centre, self.spread = torch.zeros(1), torch.full((1,), .5)

    def encode(self, x): return (m := F.avg_pool2d(x, 4) * self.one), .1 + 0*m

    def decode(self, raw): return raw.repeat_interleave(4, 2).repeat_interleave(4, 3)


def pictures(n=50):
    x = F.interpolate(torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(1)).float(), scale_factor=4).byte()
    return Images(x, torch.arange(n) % 3)


def test_shards_are_the_pictures_latents(tmp_path):
    found = encode(images := pictures(), tmp_path / "a", Halves(), shard=16, batch=5)
    assert list(found["files"].values()) == [16, 16, 16, 2] and found["psnr"] > 60, "four files, and the first pictures come back"
    x = images.floats()
    assert found["measured"]["centre"] == pytest.approx([x.mean().item()], abs=1e-3)
    assert found["measured"]["spread"] == pytest.approx([math.sqrt(F.avg_pool2d(x, 4).var(correction=0).item() + .01)], abs=1e-3)
    codes, whole = latents(tmp_path / "a"), Latents(F.avg_pool2d(x, 4).half(), torch.full((50, 1, 4, 4), .1).half(), images.label, [0.], [.5])
    assert (len(codes), codes.size, codes.channels, codes.classes) == (50, 4, 1, 3)
    for step in range(4):
        assert all(map(torch.equal, codes.batch(step, 16), whole.batch(step, 16))), "from disk or from memory, the same batches"
    z, _ = codes.batch(3, 12)
    assert torch.equal(torch.cat([codes.batch(3, 12, part=p)[0] for p in (slice(0, 5), slice(5, 12))]), z)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_makes_the_same_files(tmp_path, world):
    found = [encode(pictures(), tmp_path, Halves(), shard=8, share=(i, world)) for i in reversed(range(world))]
    assert found[:-1] == [None]*(world - 1) and len(found[-1]["files"]) == 7, "the last one sees them all"
    one = encode(pictures(), tmp_path / "alone", Halves(), shard=8)
    assert one["files"] == found[-1]["files"], "their names hold the digests of what is in them"


def test_a_stop_loses_nothing_and_makes_nothing_again(tmp_path, monkeypatch):
    made, shard = [], L.encode_shard
    def slow(images, rows, *args):
        if len(made) == 3: raise KeyboardInterrupt
        made.append(rows.start)
        return shard(images, rows, *args)
    monkeypatch.setattr(L, "encode_shard", slow)
    with pytest.raises(KeyboardInterrupt):
        encode(pictures(), tmp_path, Halves(), shard=8)
    with pytest.raises(FileNotFoundError, match="encoding is not finished; call encode again"):
        latents(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("0*")}
    monkeypatch.setattr(L, "encode_shard", lambda images, rows, *args: made.append(rows.start) or shard(images, rows, *args))
    assert len(encode(pictures(), tmp_path, Halves(), shard=8)["files"]) == 7 and made == [0, 8, 16, 24, 32, 40, 48], "each once"
    assert all(p.stat().st_mtime_ns == t for p, t in before.items()) and not list(tmp_path.glob(".*"))


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    import safetensors.torch
    write, calls = safetensors.torch.save_file, iter(range(9))
    def full(tensors, path, about):
        if next(calls) == 2:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        write(tensors, path, about)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"shard 2 could not be written to .*No space left.* the same call goes on"):
        encode(pictures(), tmp_path, Halves(), shard=8)
    assert sorted(p.name[:5] for p in tmp_path.iterdir()) == ["00000", "00001", "setti"], "and no half-written file"
    assert encode(pictures(), tmp_path, Halves(), shard=8)["pictures"] == 50


def test_a_flipped_byte_is_refused_by_name(tmp_path):
    encode(pictures(), tmp_path, Halves(), shard=8)
    broken = next(tmp_path.glob("00003-*"))
    content = bytearray(broken.read_bytes())
    content[-7] ^= 4
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=f"{broken.name} is damaged: its content does not match its name"):
        latents(tmp_path)
    broken.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {broken.name}; call encode again"):
        latents(tmp_path)
    encode(pictures(), tmp_path, Halves(), shard=8)
    assert len(latents(tmp_path)) == 50


def test_another_encoding_needs_another_folder(tmp_path):
    encode(pictures(), tmp_path, Halves(), shard=8)
    for images, shard, words in ((pictures(40), 8, "pictures was 50 and is now 40"), (pictures(), 16, "shard was 8 and is now 16")):
        with pytest.raises(ValueError, match=f"holds other latents: {words}"):
            encode(images, tmp_path, Halves(), shard=shard)
    other = pictures()
    other.x[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="holds other latents: contents was"):
        encode(other, tmp_path, Halves(), shard=8)
    broken = Halves()
    broken.one.data.fill_(float("inf"))
    with pytest.raises(ValueError, match="holds other latents: weights was"):
        encode(pictures(), tmp_path, broken, shard=8)
    with pytest.raises(ValueError, match="latents that are not finite in 16 bits"):
        encode(pictures(), tmp_path / "new", broken, shard=8)


def test_files_are_cropped_as_imagenet_is(tmp_path):
    (tmp_path / "a").mkdir()
    x = torch.arange(64*40*3).view(64, 40, 3).remainder(251).byte().numpy()
    Image.fromarray(x).save(tmp_path / "a" / "tall.png")
    found = Pictures(tmp_path, 20)
    want = torch.from_numpy(x[12:52].reshape(20, 2, 20, 2, 3).mean((1, 3)).round()).permute(2, 0, 1)
    picture, label = found[0]
    assert picture.shape == (3, 20, 20) and label == 0 and (picture.float() - want).abs().max() <= 1, "twice too large: means of four, then the middle"
    assert Pictures(tmp_path, 30)[0][0].shape == (3, 30, 30) and Pictures(tmp_path, 80)[0][0].shape == (3, 80, 80)
    manifest = encode(found, tmp_path / "out", Colour(), shard=1)
    assert len(latents(tmp_path / "out")) == 1 and manifest["size"] == 20


class Colour(Halves):
    channels = 3
    def __init__(self):
        super().__init__()
        self.centre, self.spread = torch.zeros(3), torch.ones(3)


def test_decoding_takes_fewer_where_memory_ends(monkeypatch):
    vae, sizes = Halves(), []
    def small(raw):
        sizes.append(len(raw))
        if len(raw) > 3: raise torch.OutOfMemoryError
        return Halves.decode(vae, raw)
    monkeypatch.setattr(vae, "decode", small)
    raw = torch.rand(10, 1, 4, 4) - .5
    assert torch.allclose(decode(vae, raw, 16), (Halves().decode(raw) + 1) / 2, atol=1e-6)
    assert sizes == [10, 8, 4, 2, 2, 2, 2, 2], "half as many each time, and then all"


def test_drawing_does_not_clip_and_does_not_depend_on_the_batch():
    class Far(torch.nn.Module):
        config, channels, size, classes = dict(size=4, channels=1), 1, 4, 0
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))
        def forward(self, x, t, u, label=None): return 3 + x
    model, vae, seen = IMM(Far(), OTFM(), "identity"), Halves(), []
    vae.decode = lambda raw: seen.append(raw) or Halves.decode(vae, raw)
    a, b = (draw(model, vae, 6, 2, batch=n) for n in (6, 4))
    assert torch.equal(a, b) and a.shape == (6, 1, 16, 16) and seen[0].max() > 1.5, "a latent of 3 arrives as 3"
    assert model.training, "left as it was"


# ---- autoencoders

def test_a_small_one_is_kept_and_read(tmp_path):
    vae = SmallVAE(1, 2, 8)
    vae.spread.fill_(2.)
    save_vae(vae, tmp_path / "vae")
    again = load_vae(tmp_path / "vae")
    x = torch.rand(2, 1, 16, 16)
    assert torch.allclose(again.encode(x)[0], vae.encode(x)[0], atol=2e-2) and again.decode(again.encode(x)[0]).shape == x.shape
    assert again.spread.tolist() == [2, 2] and again.name == "vae" and not again.training
    (tmp_path / "other").write_text("no")
    with pytest.raises(ValueError, match="other holds no small autoencoder"):
        load_vae(tmp_path / "other")


def test_without_diffusers_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs diffusers: pip install -e '.\[latents\]'"):
        load_vae("nowhere")


def test_stable_diffusions_by_its_own_class(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is optional")
    net = diffusers.AutoencoderKL(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",)*2, up_block_types=("UpDecoderBlock2D",)*2, latent_channels=4)
    net.save_pretrained(tmp_path / "vae")
    vae, x = load_vae(tmp_path / "vae"), torch.rand(2, 3, 32, 32)*2 - 1
    mean, std = vae.encode(x)
    law = net.eval().encode(x).latent_dist
    assert torch.allclose(mean, law.mean, atol=1e-5) and torch.allclose(std, law.std, atol=1e-5)
    assert vae.spread.tolist() == pytest.approx(LATENT_STD) and vae.decode(mean).shape == x.shape
    with pytest.raises(FileNotFoundError, match="put config.json and diffusion_pytorch_model.safetensors"):
        load_vae(tmp_path / "empty")


# ---- a released ImageNet file, end to end

DRAWS = """
import resource, sys, torch
from imm_edu import pretrained
from imm_edu.latents import SmallVAE, draw
model = pretrained.load(sys.argv[1])
x = draw(model, SmallVAE(3, 4, 8).eval(), 2, 2, torch.tensor([1, 980]), 1.5, batch=1)
print(*x.shape, model.second_time, int(x.isfinite().all()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("changes", [
    dict(width=64, depth=1, heads=2),
    pytest.param({}, marks=pytest.mark.skipif("slow" not in os.environ.get("FLAGS", ""), reason="XL/2 is a file of 2.7 GB; FLAGS=slow writes and samples it"))],
    ids=["small", "XL"])
def test_a_released_file_becomes_pictures(changes, tmp_path):
    "Weights under the authors' names, settings by the file's name"
    net = presets.get("imagenet256-xl-stride").changed(**changes).model().net
    for p in net.parameters():
        torch.nn.init.normal_(p, std=.02)
    own = net.state_dict()
    torch.save({theirs: own[ours] for theirs, ours in net.released_names().items() if ours}, path := tmp_path / "imagenet256_ts_a2.pt")
    if changes:                                                 # another size than the name promises: settings beside it
        path = path.rename(tmp_path / "small.pt")
        code = DRAWS.replace("sys.argv[1])", f"sys.argv[1], dict(pretrained.RELEASED['imagenet256_ts_a2'], hidden_size={net.config['width']}, depth={net.config['depth']}, "
                                             f"num_heads={net.config['heads']}, patch_size=2, num_classes=1000, label_dim=1000))")
    else: code = DRAWS
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *shape, told, finite, peak = done.stdout.split()
    assert (shape, told, finite) == (["2", "3", "128", "128"], "t-s", "1"), "two pictures of 4 times 32 pixels"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(peak) * unit < 8e9, "within 8 GB of memory"
