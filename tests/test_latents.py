"Latents: the file they come from, and a stream that no split changes."
import pytest
import torch
from safetensors.torch import save_file

from imm_edu.latents import LATENT_MEAN, LATENT_STD, Latents, latents


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
