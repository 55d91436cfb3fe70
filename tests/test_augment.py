"Augmentation: the same on every machine and in every split, exact where nothing turns, refused where it cannot be."
import pytest
import torch

from imm_edu import data
from imm_edu.augment import CHANGES, augment, draw_labels, transform


@pytest.mark.parametrize("size, channels", [(5, 1), (16, 3), (33, 3)])
def test_the_same_in_every_split_and_on_any_number_of_threads(size, channels):
    x = torch.randint(0, 256, (40, channels, size, size), dtype=torch.uint8)
    images, threads = data.Images(x, range(40), flip=True, augment=.5), torch.get_num_threads()
    whole = images.batch(3, 24, 1)
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for cuts in (range(25), (0, 7, 8, 24), (0, 12, 24)):
                parts = [images.batch(3, 24, 1, slice(a, b)) for a, b in zip(cuts, cuts[1:])]
                assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts), whole)), (n, list(cuts))
    finally:
        torch.set_num_threads(threads)


def test_what_is_done_depends_on_nothing_else():
    x = torch.randn(60, 3, 9, 9).clamp(-1, 1)
    before, state = x.clone(), torch.get_rng_state()
    images, labels = augment(x, data.seeded(4))
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state), "neither the images given nor the global generator"
    wide, again = augment(x.double(), data.seeded(4))
    assert wide.dtype == torch.float64 and labels.dtype == torch.float32 and torch.equal(labels, again)
    assert (wide - images).abs().max() < 1e-4, "in both precisions the same"
    grey = augment(x[:, 1:2], data.seeded(4))[0]
    assert torch.allclose(grey, images[:, 1:2], atol=1e-6), "each channel alike"


def test_what_is_done_never_changes():
    labels = draw_labels(3, data.seeded(0, 1, "augment"), .5)
    want = [[0, 0, -0.81776, -0.65488, -0.93856, 0, 0, 0.26176, 1.3165],
            [0, 0, -1.3846, -0.31291, 0.72658, -0.41569, 0.70172, 0, 0],
            [0, 0, 0, -0.70083, 0.9542, -0.36712, 0.45274, 0.60932, -1.4258]]
    assert (labels - torch.tensor(want)).abs().max() < 1e-4, "other numbers would change every run there is"


def test_nothing_is_turned_at_zero_and_everything_at_one():
    x = torch.randn(50, 3, 8, 8)
    same, labels = augment(x, data.seeded(0), p=0)
    assert torch.equal(same, torch.where(labels[:, :1, None, None] > 0, x.flip(3), x)) and not labels[:, 1:].any()
    done, labels = augment(x, data.seeded(0), p=1)
    assert (labels[:, [2, 4, 5, 7, 8]] != 0).all() and done.isfinite().all()
    for n in (1, 2):
        assert augment(x[:n], data.seeded(0))[0].shape == (n, 3, 8, 8)


def test_images_that_nothing_turns_are_copied_or_mirrored_to_the_bit():
    "Ten pixels, not eight: at powers of two an interpolation that should not be there would not show"
    x, labels = torch.randn(400, 3, 10, 10), draw_labels(400, data.seeded("bits"), .12)
    out, plain = transform(x, labels), ~labels[:, 2:].any(1)
    want = torch.where(labels[:, :1, None, None] > 0, x.flip(3), x)
    want = torch.where(labels[:, 1:2, None, None] > 0, want.flip(2), want)
    assert torch.equal(out[plain], want[plain]) and ((out != want).flatten(1).any(1) == ~plain).all()


def test_changes_happen_independently():
    N, labels = 20_000, draw_labels(20_000, data.seeded("law"), .12).double()
    columns = [labels[:, 0], labels[:, 1], labels[:, 2], labels[:, 4], labels[:, 5:7].norm(dim=1), labels[:, 7]]
    chance = torch.corrcoef(torch.stack([(c != 0).double() for c in columns]))[*torch.triu_indices(6, 6, 1)]
    assert chance.abs().max() < 4.5 * N**-.5
    shifts = labels[labels[:, 7] != 0, 7:]
    assert torch.corrcoef(shifts.T)[0, 1].abs() < 4.5 * len(shifts)**-.5, "nor the shift in y on that in x"


def test_the_stream_is_the_plain_one_with_what_is_told_done_to_it():
    x = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    for own in (x, x / 127.5 - 1):
        images, label, labels = data.Images(own, range(50), flip=True, augment=.12).batch(0, 24)
        plain = data.Images(own, range(50), flip=True).batch(0, 24)
        assert torch.equal(plain[1], label) and torch.equal(images, transform(plain[0], labels)) and labels.shape == (24, len(CHANGES))
    batches = [data.Images(x, augment=.12).batch(step, 12)[2] for step in range(40)]
    assert len({tuple(b.flatten().tolist()) for b in batches}) == 40, "each step has its own changes"


def test_folders_are_augmented_on_request(tmp_path):
    import numpy as np
    from PIL import Image
    for i in range(4):
        Image.fromarray(np.full((9, 12, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    images = data.folder(tmp_path, 8, cache=False, augment=.3)
    assert images.augment == .3 and len(images.to("cpu").batch(0, 4)) == 3 and "augment=0.3" in repr(images)
    assert len(data.folder(tmp_path, 8, cache=False).batch(0, 4)) == 2


@pytest.mark.parametrize("call, words", [
    (lambda x: augment(x, p=1.2), "p must be a share from 0 to 1; got 1.2"), (lambda x: augment(x, p=True), "got True"),
    (lambda x: augment(x.byte()), "torch.uint8 .*For bytes: x.float\\(\\) / 127.5 - 1"), (lambda x: augment(x.numpy()), "got ndarray"),
    (lambda x: augment(x[0]), "square images \\[B, C, S, S\\] in floats; got torch.float32 \\[3, 8, 8\\]")])
def test_slips(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(2, 3, 8, 8))
