"Metrics against closed forms, loops and other libraries; the feature network and its file; what is refused, and in which words."
import hashlib
import json
import math
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from torch.nn import functional as F

import house
from imm_edu import data, metrics as m
from imm_edu.dit import DiT
from imm_edu.flow import OTFM
from imm_edu.mmd import mmd2
from imm_edu.precond import IMM
from imm_edu.sample import sample

F64 = torch.float64
RESULTS = house.NBS / "results"
KEPT = RESULTS / "judge_cifar10_jpeg75.safetensors"


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits():
    return data.digits(), data.digits("test")


@pytest.fixture(scope="module")
def net(digits):
    return m.feature_network(*digits, epochs=2, device="cpu")


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(m, "data_folder", lambda root=None: tmp_path / "data" if root is None else Path(root))


def tiny(size=8, channels=1, classes=10):
    torch.manual_seed(0)
    model = IMM(DiT(size=size, channels=channels, patch=min(4, size), width=16, depth=1, heads=1, classes=classes), OTFM()).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=.2)
    return model


def unit(d):
    return d.x / 255


def fingerprint(net):
    return hashlib.blake2b(b"".join(v.numpy().tobytes() for v in net.state_dict().values()), digest_size=3).hexdigest()


# ---- rows

def test_rows():
    assert m.flat(torch.zeros(5, 3, 8, 8, dtype=torch.uint8)).shape == (5, 192)
    for bad, words in ((torch.zeros(5), r"x\[:, None\]"), (torch.zeros(0, 3), "must hold samples"),
                       (torch.full((5, 2), math.nan), "and 10 NaN or infinite values")):
        with pytest.raises(ValueError, match=words):
            m.flat(bad)
    with pytest.raises(ValueError, match=r"of equally many numbers; got \[5, 2\] and \[5, 3\]"):
        m.mmd(torch.zeros(5, 2), torch.zeros(5, 3))


# ---- MMD

@pytest.mark.parametrize("step", (3, 5, 256))
def test_mmd_by_loops(step):
    x, y = randn(7, 3), randn(5, 3, seed=1) + .5
    k = lambda p, q: math.exp(-1.7 * (p - q).norm().item() / 3)
    within = lambda s: sum(k(p, q) for i, p in enumerate(s) for j, q in enumerate(s) if i != j) / len(s) / (len(s) - 1)
    want = within(x) + within(y) - 2*sum(k(p, q) for p in x for q in y) / 35
    assert m.split_mmd2(x, y, 1.7, step=step).item() == pytest.approx(want, abs=1e-7)
    assert m.mmd_test(x, y, 50, w=1.7).mmd2 == pytest.approx(want, abs=1e-7)


def test_the_distance_of_the_road():
    "Chapter 02's V-statistic, less what each point has with itself"
    x, y = randn(2, 9, 3)
    want = 9/8 * mmd2(x[None], y[None], 1.7).item() - 1/4 + sum(math.exp(-1.7/3 * (p - q).norm().item()) for p in x for q in y) / 324
    assert m.split_mmd2(x, y, 1.7).item() == pytest.approx(want, abs=1e-7)


def test_splits_give_each_point_the_same_chance():
    "Five of 20 points lie far off; the first part, five points, holds none of them, or one, as often as the hypergeometric law says"
    x = torch.cat([torch.full((5, 1), 1e6), torch.zeros(15, 1)]).double()
    found = m.split_mmd2(x[:5], x[5:], 1., 4000, seed=1)[1:]
    none, one = 1 + 55/105 - 2*50/75, .6 + 61/105 - 2*48/75
    share = [(found - v).abs().lt(1e-6).double().mean().item() for v in (none, one)]
    assert len(found) == 4000 and share == pytest.approx([3003/15504, 5*1365/15504], abs=.03)


def test_random_halves_are_as_good_as_fresh_pairs():
    w = m.median_width(randn(1000, 2))
    fresh = torch.tensor([m.mmd(*randn(2, 150, 2, seed=i), w) for i in range(300)]).quantile(.95).item()
    assert np.mean([m.mmd_null(randn(300, 2, seed=1000 + i), w) for i in range(5)]) == pytest.approx(fresh, rel=.2)


def test_power_grows_with_n():
    found = {n: np.mean([m.mmd_test(randn(n, 2, seed=i), randn(n, 2, seed=500 + i) + .35, 99).p <= .05 for i in range(40)]) for n in (10, 160)}
    assert found[10] < found[160] and found[160] > .9


def test_the_observed_split_is_one_of_all():
    assert m.mmd_test(randn(20, 2), randn(20, 2, seed=1) + 50, 50).p == 1/51, "no p-value is 0"


def test_median_width():
    x = torch.tensor([[0.], [3.], [3.]])
    assert m.median_width(x) == pytest.approx(1/3), "zero distances do not count"


def test_what_a_test_refuses():
    x = randn(9, 3)
    for call, words in ((lambda: m.mmd_test(x, x, w=-1.), "must be positive and finite; got -1"),
                        (lambda: m.mmd(x, x, 0.), "must be positive and finite; got 0"),
                        (lambda: m.mmd_test(x, x[:1]), r"at least 2 samples each, .* got \[9, 3\] and \[1, 3\]"),
                        (lambda: m.mmd_null(x[:3]), r"one and other must hold at least 2 samples each")):
        with pytest.raises(ValueError, match=words):
            call()


# ---- Fréchet

def exactly(mean, root, n=50):
    "n points whose mean and covariance are mean and root @ root.T, to the last digits"
    x = randn(n, len(mean), seed=n)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return mean + x @ root.T


def test_two_gaussians():
    mu, va, vb = randn(6), randn(6, seed=1).square() + .1, randn(6, seed=2).square() + .1
    want = (mu.square().sum() + (va.sqrt() - vb.sqrt()).square().sum()).item()
    a, b = exactly(0*mu, va.sqrt().diag()), exactly(mu, vb.sqrt().diag(), 60)
    Q = torch.linalg.qr(randn(6, 6))[0]
    assert m.frechet(a, b) == pytest.approx(want, rel=1e-10), "independent coordinates: |mu|² + sum of (sqrt a - sqrt b)²"
    assert m.frechet(a @ Q.T, b @ Q.T) == pytest.approx(want, rel=1e-10), "turning both changes nothing"
    assert m.frechet(a, a @ Q.T) > .01 > 1e-9 > m.frechet(a, a), "turning one is noticed"
    c = randn(6, 6, seed=3)
    values = torch.linalg.eigvalsh(torch.linalg.cholesky(c @ c.T).T @ va.diag() @ torch.linalg.cholesky(c @ c.T))
    want = va.sum() + c.square().sum() - 2*values.sqrt().sum()
    assert m.frechet(a, exactly(0*mu, c, 70)) == pytest.approx(want.item(), rel=1e-9), "any two covariances"


def test_with_fewer_samples_than_features():
    few = randn(100, 256).relu()
    with pytest.warns(UserWarning, match="100 samples of 256 features: the covariance has rank 99") as caught:
        assert m.frechet(few, few) < 1e-6 * few.var(0).sum()
    assert len(caught) == 1 and caught[0].filename == __file__, "where the sets were given"


def test_a_single_feature():
    x, y = 2 + 3*randn(100, 1, seed=0), randn(80, 1, seed=1)
    beside = lambda v: torch.cat([v, torch.zeros_like(v)], 1)
    assert m.frechet(x, y) == pytest.approx(m.frechet(beside(x), beside(y)), rel=1e-6), "a feature that is always zero adds nothing"


def test_a_large_mean_costs_no_digits():
    x, y = (randn(500, 8, seed=i) @ randn(8, 8, seed=2) for i in (0, 1))
    assert m.frechet(x + 1e6, y + 1e6) == pytest.approx(m.frechet(x, y), rel=1e-6)
    for call in (lambda: m.frechet(x, x[:1]), lambda: m.frechet(x, x[:, :5])):
        with pytest.raises(ValueError, match="at least 2 samples each, of equally many numbers"):
            call()


# ---- KID

def test_kid_of_four_points():
    "The U-statistic by a double loop"
    x, y = randn(2, 4, 3)
    k = lambda p, q: (p @ q / 3 + 1).item()**3
    within = lambda s: sum(k(s[i], s[j]) for i in range(4) for j in range(4) if i != j) / 12
    want = within(x) + within(y) - 2*sum(k(p, q) for p in x for q in y) / 16
    assert m.kid(x, y, 4, 1).mean == pytest.approx(want, rel=1e-12) and m.kid(x, y, 4, 1).std == 0


def test_kid_is_unbiased():
    for n in (5, 20):
        values = torch.tensor([m.kid(randn(n, 4, seed=i), randn(n, 4, seed=10_000 + i), n, 1).mean for i in range(400)])
        assert abs(values.mean()) < 4*values.std() / 20, f"n = {n}: KID of one distribution must be 0 on average"


def test_kid_of_subsets():
    x, y = randn(60, 4), randn(50, 4, seed=1)
    assert m.kid(x, y, 20, 5, seed=1) == m.kid(x, y, 20, 5, seed=1) != m.kid(x, y, 20, 5, seed=2)
    assert m.kid(x, y, 20, 400).mean == pytest.approx(m.kid(x[:50], y, 50, 1).mean, abs=5 * m.kid(x, y, 20, 400).std / 20**.5)
    with pytest.raises(ValueError, match=r"at least 1000 samples each, .* got \[60, 4\] and \[50, 4\]"):
        m.kid(x, y)


# ---- neighbours

@pytest.mark.parametrize("n, k", ((130, 3), (130, 1), (1100, 5)))
def test_precision_and_recall_by_another_library(n, k):
    real, fake = randn(n, 10).numpy(), 1.1*randn(n - 7, 10, seed=1).numpy()
    reach = lambda s: NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(s).kneighbors(s)[0][:, -1]
    d = np.linalg.norm(real[:, None] - fake, axis=-1)
    want = (d <= reach(real)[:, None]).any(0).mean(), (d <= reach(fake)).any(1).mean()
    assert m.precision_recall(real, fake, k) == pytest.approx(want, abs=1e-12)


def test_precision_and_recall_at_the_ends():
    x = randn(40, 2)
    assert m.precision_recall(x, x) == (1, 1) and m.precision_recall(x, x + 100) == (0, 0)
    for k, fake in ((3, x[:3]), (40, x)):
        with pytest.raises(ValueError, match=f"real and fake must hold at least {k + 1} samples each"):
            m.precision_recall(x, fake, k)


def test_variance_ratio():
    x = randn(40, 3)
    assert m.variance_ratio(x, 1.5*x + 7) == pytest.approx(2.25)
    with pytest.raises(ValueError, match="at least 2 samples"):
        m.variance_ratio(x[:1], x)


@pytest.mark.parametrize("d", (2, 40))
def test_nearest_by_a_full_matrix(d):
    fake, real = randn(50, d), randn(130, d, seed=1)
    want = torch.cdist(fake, real, compute_mode="donot_use_mm_for_euclid_dist").topk(2, largest=False)
    found = m.nearest(fake, real, 2)
    assert torch.allclose(found.distance, want.values, atol=1e-7) and torch.equal(found.index, want.indices)
    with pytest.raises(ValueError, match="n_neighbors = 131, n_samples_fit = 130"):
        m.nearest(fake, real, 131)


def test_copies(digits):
    train, test = digits
    x, half, rest = unit(train), unit(test)[:198], unit(test)[198:]
    assert m.copies(x[:50], x, rest)[:2] == (1, 1), "exact copies"
    near = m.copies(x[:200] + .02*torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)), x, rest)
    assert near.close == 1 and near.single > .98
    honest = m.copies(half, x, rest)
    assert honest.close < .12 and honest.single == 0
    mean = torch.stack([x[train.label == c].mean(0) for c in range(10)])
    assert m.copies(mean, x, rest).single == 0, "smooth is not copied"
    line = torch.tensor([[0.], [1.], [10.]])
    assert m.copies(torch.tensor([[.4]]), line, line + .3).single == 0 and m.copies(torch.tensor([[.3]]), line, line + .3).single == 1, \
        "single: at most half as far from one as from any other"
    with pytest.raises(RuntimeError, match="must be in the range"):
        m.copies(half, x, rest, q=5)


# ---- digits

def test_digit_scores(digits):
    train, test = digits
    real = m.real_digit_scores(train, test)
    assert json.loads(json.dumps(real)) == real and real["svm_test_accuracy"] == real["accuracy"]
    assert min(real["precision"], real["recall"]) > .8 and real["single"] == 0 and real["close"] < .06
    theirs = SVC(gamma="scale", C=10).fit(train.x.flatten(1) / 255., train.label).score(test.x.flatten(1) / 255., test.label)
    assert real["accuracy"] == pytest.approx(theirs, abs=.006), "the classifier has learned from the training digits alone"
    label = torch.arange(300) % 10
    mean = torch.stack([unit(train)[train.label == c].mean(0) for c in range(10)])
    cheat = m.digit_scores((mean[label] + .03*torch.rand(300, 1, 8, 8)).clamp(0, 1), label, train, test)
    assert cheat["accuracy"] == 1 and cheat["recall"] == 0 and cheat["variance"] < .1, "collapse"
    assert m.digit_scores(unit(test), (test.label + 1) % 10, train, test)["accuracy"] < .02, "every answer wrong"
    few = m.digit_scores(unit(test), test.label, train, test)
    assert few["accuracy"] == real["accuracy"] and few["recall"] < real["recall"], "40 digits of a class reach less than 80"
    for x, y, error, words in ((2*mean[label] - 1.0001, label, ValueError, r"must be floats in 0 ... 1; got -1"),
                               (mean[label], label[:5], ValueError, r"label must hold the class of each image, \[300\]; got \[5\]"),
                               (mean[label][:20], label[:20], ValueError, r"at least 4 samples each, .* \[2, 64\]")):
        with pytest.raises(error, match=words):
            m.digit_scores(x, y, train, test)


# ---- features and their network

def test_features(digits):
    body = torch.nn.Linear(64, 5).double().eval()
    x = m.flat(digits[1].x)
    assert torch.allclose(m.features(body, x), body(x)) and torch.allclose(m.features(body, iter(x.split(50))), body(x)), "batches change nothing"
    assert torch.equal(m.features(lambda v: v[:, :2], x), x[:, :2]), "any function will do"
    with pytest.raises(ValueError, match=r"call net.eval\(\)"):
        m.features(torch.nn.Dropout(), x)


@pytest.mark.parametrize("flip", (False, True))
def test_moved_images_are_windows_of_the_padded_one(flip):
    image = torch.arange(2*36).view(1, 2, 6, 6).float()
    wide = F.pad(image, (1, 1, 1, 1), mode="reflect")
    windows = {tuple(wide[0, :, i:i+6, j:j+6].flatten().tolist()) for i in range(3) for j in range(3)}
    many = m.moved(image.expand(400, -1, -1, -1), flip, 1, data.seeded("moved"))
    upright = torch.tensor([tuple(v.flatten().tolist()) in windows for v in many])
    assert {tuple(v.flatten().tolist()) for v in many[upright]} == windows, "every window, and nothing else"
    assert upright.all() if not flip else .4 < upright.double().mean() < .6
    assert not flip or {tuple(v.flatten().tolist()) for v in many[~upright].flip(-1)} == windows, "the others are mirrored windows"


@pytest.mark.parametrize("channels, size", ((1, 8), (3, 32), (3, 64), (1, 5)))
def test_shapes(channels, size):
    fresh = m.FeatureNet(channels, size, 7).eval()
    rows = m.features(fresh, torch.rand(3, channels, size, size))
    assert rows.shape == (3, 128) and sum(fresh.accuracy(rows[:1], torch.tensor([c])) for c in range(7)) == 1, "one class of seven"
    for bad, words in ((torch.rand(1, channels, 4, 4), f"has learned images of {channels}x{size}x{size}"),
                       (torch.rand(1, channels, size, size) - .5, "must be floats in 0 ... 1")):
        with pytest.raises(ValueError, match=words):
            fresh(bad)


def test_the_kept_network_of_cifar10():
    "A file from before the network had its name"
    net, told = m.load_feature_network(KEPT), json.loads(KEPT.with_suffix(".json").read_text())
    with safe_open(KEPT, "pt") as f:
        assert {f.get_tensor(k).dtype for k in f.keys() if f.get_tensor(k).dim() == 4} == {torch.float16}
    assert KEPT.stat().st_size < 2e6 and net.notes == told["judge"] and fingerprint(net) == net.notes["weights"]
    assert net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 128) and not net.training
    assert net.protocol.startswith("feature network 03b694 of 50,000 images of 3x32x32 in 10 classes, 82.6% right on 10,000 others")
    rows = {row["n"]: row["frechet"] for row in told["test_against_train"]}
    assert rows[1000] > rows[5000] > rows[10_000] > 0, "biased in n"


def test_a_network_comes_back_from_its_file(digits, tmp_path, capsys):
    train, test = digits
    place = tmp_path / "new" / "net.safetensors"
    first = m.feature_network(train, test, place, epochs=1, device="cpu")
    assert "training a network on Images(1,400 x 1x8x8" in capsys.readouterr().out
    again = m.feature_network(train, test, place, epochs=1, device="cpu")
    assert not capsys.readouterr().out and again.notes == first.notes
    assert torch.equal(m.features(again, test.x), m.features(first, test.x)) and torch.equal(m.features(again, test.x), m.features(again, unit(test)))
    fresh = m.feature_network(train, test, epochs=1, device="cpu")
    assert fresh.notes["weights"] == first.notes["weights"] == fingerprint(again), "the seed decides, and the file rounds nothing"
    assert m.feature_network(train, test, epochs=1, seed=1, device="cpu").notes["weights"] != first.notes["weights"]
    fewer = data.Images(train.x[:700], train.label[:700], train.names)
    for call, words in ((lambda: m.feature_network(fewer, test, place), "holds a network of other data or settings"),
                        (lambda: m.feature_network(train, test, place, epochs=1, seed=1), "'seed': 1")):
        with pytest.raises(ValueError, match=words):
            call()
    place.write_text("not a network")
    with pytest.raises(ValueError, match="holds no feature network"):
        m.feature_network(train, test, place)


def test_where_a_network_is_kept(digits, tmp_path):
    place = m.feature_file(*digits)
    old = place.with_name(place.name.replace("features-", "judge-"))
    place.parent.mkdir()
    old.touch()
    assert place.parent == tmp_path / "data" and m.feature_file(*digits) == old, "a file from before the network had its name is found"


def test_data_that_teach_nothing(digits):
    train, test = digits
    for a, b, words in ((data.Images(train.x), test, "a feature network learns from labels"),
                        (train, data.Images(test.x[..., 1:, 1:], test.label), "of one kind; got 1,400 images of 1x8x8 in 10 classes and 397 images of 1x7x7")):
        with pytest.raises(ValueError, match=words):
            m.feature_network(a, b)


def test_training_leaves_no_trace_and_every_draw_depends_on_the_seed(digits, monkeypatch):
    keys, real = [], m.seeded
    monkeypatch.setattr(m, "seeded", lambda *key, **kw: keys.append(key) or real(*key, **kw))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    m.feature_network(*digits, epochs=1, seed=3, device="cpu")
    assert torch.equal(torch.get_rng_state(), before), "the global random numbers"
    assert keys == [(3, step, "judge") for step in range(11)], "the images are moved by seed and step"


def test_a_network_that_cannot_be_written_leaves_nothing(digits, tmp_path, monkeypatch):
    def full(tensors, path, notes):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        m.feature_network(*digits, tmp_path / "net.safetensors", epochs=1)
    assert not list(tmp_path.iterdir())


def test_colour_and_size(tmp_path):
    "Any square images with labels; those above 32 pixels are averaged down first"
    x, label = torch.randint(256, (40, 3, 48, 48), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(40) % 3
    images = data.Images(x, label)
    net = m.feature_network(images, images, tmp_path / "net", epochs=1)
    again = m.load_feature_network(tmp_path / "net")
    assert again.protocol == net.protocol and torch.equal(m.features(again, x), m.features(net.cpu(), x))


def test_own_floats_are_rounded_to_bytes(digits):
    x = digits[0].x[:9]
    assert torch.equal(m.as_bytes(SimpleNamespace(x=x / 127.5 - 1)), x) and m.as_bytes(SimpleNamespace(x=x)) is x
    with pytest.raises(ValueError, match=r"From -1 ... 1: \(x \+ 1\) / 2"):
        m.to_uint8(x / 127.5 - 1)


# ---- networks of the literature

@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    "A file as torch-fidelity's, with random weights; its class reads one when it is built, so build one that does not"
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_): pass
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    blank = Blank("blank", ["2048"], str(folder / "empty.pth"))
    torch.save(blank.state_dict(), folder / "random.pth")
    return folder, blank


def test_inception_from_a_file(random_inception):
    folder, blank = random_inception
    net, grey = m.inception(folder / "random.pth"), m.to_uint8(torch.rand(1, 1, 8, 8))
    assert m.features(net, grey).shape == (1, 2048) and torch.equal(net(grey), blank(grey.repeat(1, 3, 1, 1))[0]), "grey becomes RGB"
    assert "NOT the standard weights" in net.protocol and len(m.FID_SHA256) == 64
    with pytest.raises(ValueError, match="dtype=torch.uint8"):
        net(torch.rand(2, 3, 32, 32))
    (folder / "page.pth").write_text("404: not found")
    for file, error, words in (("nowhere.pth", FileNotFoundError, "nowhere.pth or pass its path"), ("empty.pth", ValueError, "does not hold the weights of"),
                               ("page.pth", ValueError, "does not hold the weights of")):
        with pytest.raises(error, match=words):
            m.inception(folder / file)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    "An empty cache, and a download that fails"
    def fail(*_): raise urllib.error.URLError("no network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path / "hub"


def test_without_a_network_the_message_says_it_all(offline):
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    with pytest.raises(FileNotFoundError) as e:
        m.inception()
    assert all(part in str(e.value) for part in (URL_INCEPTION_V3, str(offline), "no network", "pass its path"))


def test_dinov2(offline, tmp_path, monkeypatch):
    "Up to its two sentences, and beyond them with a stand-in for its code"
    stand_in, weights = torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten(), torch.nn.Linear(48, 5)), tmp_path / "vits.pth"
    torch.save(stand_in.state_dict(), weights)
    with pytest.raises(FileNotFoundError, match="git clone https://github.com/facebookresearch/dinov2"):
        m.dinov2(weights, name="dinov2-vit-s-14")
    code = offline / "facebookresearch_dinov2_main"
    code.mkdir(parents=True)
    (code / "hubconf.py").write_text("import torch.nn as nn\ndef dinov2_vits14(pretrained):\n    assert not pretrained\n"
                                     "    return nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 5))\n")
    with pytest.raises(FileNotFoundError, match="dinov2_vits14_pretrain.pth on another machine"):
        m.dinov2(name="dinov2-vit-s-14")
    net, x = m.dinov2(weights, name="dinov2-vit-s-14"), torch.full((2, 3, 9, 9), 100, dtype=torch.uint8)
    mean, std = torch.tensor([[.485, .456, .406], [.229, .224, .225]]).view(2, 1, 3, 1, 1)
    assert torch.allclose(m.features(net, x), stand_in((100/255 - mean).expand(2, 3, 224, 224) / std), atol=1e-5), "ImageNet's mean and spread"
    assert "224x224" in net.protocol and not any(p.requires_grad for p in net.parameters())
    torch.save({}, weights)
    with pytest.raises(ValueError, match="does not hold the weights of this network"):
        m.dinov2(weights, name="dinov2-vit-s-14")


# ---- a data set is looked at once

def test_reference(digits, net, tmp_path, monkeypatch):
    train, test = digits
    first = m.reference(train, net)
    assert torch.allclose(first, m.features(net, train.x[data.order(1400, 0, 1400, 0)]))
    slow, looks = m.Extractor(lambda x: looks.append(len(x)) or net(x[:, :1]), "ours, as if it were slow"), []
    rows = m.reference(train, slow)
    assert torch.allclose(rows, first, atol=1e-5) and sum(looks) == 1400
    assert m.reference(train, slow) is rows and sum(looks) == 1400, "in memory"
    slow.seen.clear()
    assert torch.equal(m.reference(train, slow), rows) and sum(looks) == 1400, "from the file"
    m.reference(train, m.Extractor(slow.net, "another")), m.reference(test, slow)
    assert sum(looks) == 1400 + 1400 + 397 and len(list((tmp_path / "data").iterdir())) == 3, "a file for each network and set, none for ours"


def test_feature_scores(digits, net):
    train, test = digits
    rows = [m.features(net, d.x) for d in (train, test)]
    i = data.order(397, 0, 397, 0)
    found = m.feature_scores(rows[1][i], test.label[i], train, test, net)
    assert found["frechet"] == pytest.approx(m.frechet(*rows), rel=1e-6) and found["frechet"] == pytest.approx(found["frechet_real"], rel=1e-9)
    assert found["accuracy"] == pytest.approx(net.notes["accuracy"]) and json.loads(json.dumps(found)) == found
    more = m.feature_scores(rows[0][:500], None, train, test, net)
    assert "accuracy" not in more and more["n"] == 500 and more["frechet_real"] == pytest.approx(m.frechet(*rows), rel=1e-5), "all 397"


def test_a_folder_sorted_by_class_scores_as_any_other(digits, net):
    train, test = digits
    i, j = train.label.argsort(stable=True), test.label.argsort(stable=True)
    by_class = data.Images(train.x[i], train.label[i]), data.Images(test.x[j], test.label[j])
    a, b = (m.feature_scores(m.features(net, test.x)[:200], None, *sets, net) for sets in (digits, by_class))
    assert b["frechet_real"] < 1.5 * a["frechet_real"] and abs(a["recall"] - b["recall"]) < .15


# ---- FID

@pytest.mark.parametrize("sampler", ("pushforward", "restart"))
def test_an_image_depends_on_its_seed_alone(sampler):
    model = tiny()
    model.sampler = sampler
    one, three, drawn = next(m.by_seed(model, [17])), next(m.by_seed(model, range(16, 19))), 255 * sample(model, 1, label=7, seed=17)
    assert (one - three[1:2].float()).abs().max() <= 1 and (one - drawn).abs().max() <= 1 and one.dtype == torch.uint8
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        next(m.by_seed(model.train()))


def test_every_seed_once(digits, net):
    model = tiny()
    every = torch.cat(list(m.by_seed(model, range(70, 330))))
    assert len(every) == 260 and (every[-1].float() - next(m.by_seed(model, [329]))[0]).abs().max() <= 1, "in batches, none beyond the last"
    assert m.frechet(m.features(net, m.by_seed(model, range(70, 330))), m.reference(digits[0], net)) == pytest.approx(
        m.frechet(m.features(net, every), m.features(net, digits[0].x)), rel=1e-6)


# ---- tables

def test_a_table_refuses_what_cannot_be_read():
    rows = [dict(samples="1 step", n=5, frechet=1.23456, guidance=1.5, seed=0, features="pixels"),
            dict(samples="real images", n=5, frechet=1., seed=0, features="pixels")]
    assert m.score_table(iter(rows)).splitlines() == [
        "samples      n  frechet  guidance", "1 step       5    1.235       1.5", "real images  5        1          ", "features  pixels", "seed      0"]
    for key in ("samples", "n", "seed", "features"):
        with pytest.raises(ValueError, match=f"must name its samples, n, seed and features.*'{key}': None"):
            m.score_table([{k: v for k, v in rows[0].items() if k != key}, rows[1]])
    for bad in ([rows[0]], [rows[0], rows[1] | dict(features="others")]):
        with pytest.raises(ValueError, match="the same in all, and one must be real"):
            m.score_table(bad)


def test_scores_of_a_toy():
    toy = data.toy("moons")
    rows = list(m.score_toy(tiny(1, 2, 0), toy, 300, 1))
    assert [r["samples"] for r in rows] == ["1 step", "2 steps", "4 steps", "real points"]
    assert all(r["mmd"] > 3*r["null95"] > 0 for r in rows[:3]) and rows[3]["times_null95"] < 2 and "null95" in m.score_table(rows)


def test_scores_of_digits(digits):
    rows = list(m.score_digits(tiny(), *digits, 60))
    assert [(r["samples"], r.get("guidance")) for r in rows] == [
        ("1 step", 1.), ("1 step", 1.5), ("2 steps", 1.), ("2 steps", 1.5), ("real digits", None)]
    assert rows[-1]["n"] == 397 and "support vector machine" in m.score_table(rows)


def test_scores_of_images(digits, net):
    model = tiny()
    rows = list(m.score_images(model, *digits, net, 40, 2, steps=(1, 2)))
    assert [(r["samples"], r.get("guidance")) for r in rows] == [("1 step", 1.), ("1 step", 1.5), ("2 steps", 1.), ("2 steps", 1.5), ("real images", None)]
    assert all(r["n"] == 40 and r["seed"] == 2 and r["features"] == net.protocol for r in rows) and "accuracy" in rows[-1]
    assert rows[-1]["frechet"] == rows[0]["frechet_real"] < rows[0]["frechet"] / 3
    assert rows == list(m.score_images(model, *digits, net, 40, 2, steps=(1, 2))), "same seed, same scores"


def test_scores_in_features_of_the_literature(tmp_path, monkeypatch):
    "Images by seed; with what it knows of the data in files"
    g = torch.Generator().manual_seed(0)
    train, test = (data.Images(torch.randint(256, (n, 3, 8, 8), generator=g).byte()) for n in (90, 60))
    net = m.Extractor(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6)).double(), "random features")
    net.net.insert(0, type("Double", (torch.nn.Module,), {"forward": lambda self, x: x.double() / 255})())
    rows = list(m.score_images(tiny(8, 3, 0), train, test, net, 40, 2, steps=(1,)))
    assert rows[0]["seeds"] == "80 ... 119" and rows[0]["guidance"] == 1. and "accuracy" not in rows[0]
    assert len(list((tmp_path / "data").glob("rows-*"))) == 2, "train and test"
    assert rows[0]["frechet"] > rows[0]["frechet_real"] == rows[1]["frechet"]
    drawn = []
    monkeypatch.setattr(m, "by_seed", lambda model, seeds, *_: drawn.extend(seeds) or [torch.zeros(len(seeds), 3, 8, 8).byte()])
    m.score_samples(tiny(8, 3, 0), train, test, net, n=40, seed=2)
    assert drawn == list(range(80, 120)), "a third run has the seeds that follow those of the second"


@pytest.mark.parametrize("n", (-1, 0, 1, True, 2.5))
def test_too_few_samples(n, digits, net):
    calls = (lambda: list(m.score_toy(None, data.toy("moons"), n)), lambda: list(m.score_digits(None, *digits, n)),
             lambda: list(m.score_images(tiny(), *digits, net, n)), lambda: m.Scores(".", *digits, net, n=n))
    for call in calls:
        with pytest.raises(ValueError, match=f"n must be a whole number of samples, at least [24]; got {n}"):
            call()


def test_latents_are_no_pictures(digits, net):
    with pytest.raises(ValueError, match="these are latents, which need a decoder"):
        list(m.score_images(tiny(8, 4), *digits, net, 40))


def test_one_set_for_both_is_divided(digits):
    everything = data.digits("all")
    train, test = m.held_out(everything, everything)
    assert (len(train), len(test)) == (1498, 299) and train.classes == test.classes == 10
    both = torch.cat([train.x, test.x]).flatten(1).sum(1).sort().values
    assert torch.equal(both, everything.x.flatten(1).sum(1).sort().values), "every image once"
    assert m.held_out(*digits) == digits, "two sets stay as they are"


# ---- scores on the way

def training(model):
    return SimpleNamespace(ema=model, objective=SimpleNamespace(as_trained=lambda model: model), seconds=12.34, config=SimpleNamespace(batch=8))


def test_scores_on_the_way(digits, net, tmp_path, capsys):
    model, view = tiny(), m.Scores(tmp_path, *digits, net, times=2, n=20, steps=(1, 2))
    for step in range(1, 9):
        view(training(model), SimpleNamespace(step=step, progress=step / 8))
    rows = m.read_scores(tmp_path)
    assert [(r["step"], r["steps"], r["images"]) for r in rows] == [(4, 1, 32), (4, 2, 32), (8, 1, 64), (8, 2, 64)]
    assert rows[0] == json.loads(json.dumps(rows[0])) and rows[0]["seconds"] == 12.3 and rows[0]["features"] == net.protocol
    resumed = m.Scores(tmp_path, *digits, net, times=2, n=20, steps=(1,))
    resumed(training(model), SimpleNamespace(step=6, progress=6 / 8))
    assert m.read_scores(tmp_path) == rows, "a run that goes on at step 6 was scored at step 4"
    with open(tmp_path / "scores.jsonl", "a") as f:
        f.write(json.dumps(rows[0] | dict(frechet=-1)) + '\n{"step": 9, "st')
    again = m.read_scores(tmp_path)
    assert again[0]["frechet"] == -1 and len(again) == 4, "of repeated rows the last; a line cut off is left out"
    assert m.read_scores(tmp_path / "nothing") == []


def test_scores_that_cannot_be_written(digits, net, tmp_path, capsys):
    view = m.Scores(tmp_path / "gone", *digits, net, times=1, n=20, steps=(1,))
    view(training(tiny()), SimpleNamespace(step=1, progress=1.))
    assert "could not write scores (No such file or directory); training goes on" in capsys.readouterr().out


def test_labels_of_another_number_of_digits():
    train, test = data.digits(), data.digits("test")
    with pytest.raises(ValueError, match=r"label must hold the class of each image, \[20\]; got \[19\]"):
        m.digit_scores(torch.rand(20, 1, 8, 8), torch.arange(19) % 10, train, test)


def test_an_unknown_dinov2():
    with pytest.raises(ValueError, match="name must be one of .*dinov2-vit-b-14.*; got 'dinov2-xl'"):
        m.dinov2(name="dinov2-xl")
