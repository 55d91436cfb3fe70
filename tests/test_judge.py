"The judge: what is kept, what is refused, and what a broken disk or a missing network leaves behind."
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import house
from imm_edu import data, metrics

KEPT = house.NBS / "results" / "judge_cifar10_jpeg75.safetensors"


@pytest.fixture(scope="module")
def digits():
    return data.digits(), data.digits("test")


@pytest.fixture(scope="module")
def judge(digits):
    return metrics.judge(*digits, epochs=2, device="cpu")


def test_the_judge_of_cifar10_is_small_and_says_what_it_is():
    net, told = metrics.load_judge(KEPT), json.loads(KEPT.with_suffix(".json").read_text())
    assert KEPT.stat().st_size < 2e6
    with safe_open(KEPT, "pt") as f:
        assert {f.get_tensor(k).dtype for k in f.keys() if f.get_tensor(k).dim() == 4} == {torch.float16}
    assert net.notes == told["judge"] and net.notes["accuracy"] > .8 and net.notes["tested_on"] == 10_000
    assert net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 128) and not net.training
    rows = {row["n"]: row["frechet"] for row in told["test_against_train"]}
    assert rows[1000] > rows[5000] > rows[10_000] > 0, "biased in n"


def test_training_leaves_no_trace_in_the_generator(digits):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    metrics.judge(*digits, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_draw_depends_on_the_seed(digits, monkeypatch):
    keys, real = [], metrics.seeded
    monkeypatch.setattr(metrics, "seeded", lambda *key, **kw: keys.append(key) or real(*key, **kw))
    metrics.judge(*digits, epochs=1, seed=3)
    assert keys == [(3, step, "judge") for step in range(11)], "the images are moved by seed and step"


def test_a_judge_that_cannot_be_written_leaves_nothing(digits, tmp_path, monkeypatch):
    def full(tensors, path, notes):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        metrics.judge(*digits, tmp_path / "judge.safetensors", epochs=1)
    assert not list(tmp_path.iterdir())


def test_colour_and_size(tmp_path):
    "Any square images with labels; those above 32 pixels are averaged down first"
    g = torch.Generator().manual_seed(0)
    x, label = torch.randint(256, (40, 3, 48, 48), generator=g).byte(), torch.arange(40) % 3
    images = data.Images(x, label)
    net = metrics.judge(images, images, tmp_path / "a" / "j", epochs=1)
    assert metrics.features(net, x).shape == (40, 128) and net.classify(x).shape == (40,)
    again = metrics.load_judge(tmp_path / "a" / "j")
    assert again.protocol == net.protocol and torch.equal(metrics.features(again, x), metrics.features(net, x))


def test_scores_without_classes_and_beyond_the_test_set(digits, judge):
    train, test = digits
    scores = metrics.picture_scores(train.x[:500] / 255, None, train, test, judge)
    assert "accuracy" not in scores and scores["n"] == 500
    assert scores["frechet_real"] == pytest.approx(
        metrics.frechet(metrics.features(judge, test.x), metrics.features(judge, train.x)), rel=1e-5), "all 397"
    with pytest.raises(ValueError, match="floats in 0 ... 1"):
        metrics.picture_scores(train.floats(), None, train, test, judge)


def test_a_folder_sorted_by_class_scores_as_any_other(digits, judge):
    "Real images by class, as a folder has them, and in a random order: the same sets, nearly the same numbers"
    train, test = digits
    i, j = train.label.argsort(stable=True), test.label.argsort(stable=True)
    by_class = data.Images(train.x[i], train.label[i]), data.Images(test.x[j], test.label[j])
    few = 200
    a = metrics.picture_scores(test.x[:few] / 255, None, train, test, judge)
    b = metrics.picture_scores(test.x[:few] / 255, None, *by_class, judge)
    assert b["frechet_real"] < 1.5 * a["frechet_real"] and abs(a["recall"] - b["recall"]) < .15


def test_a_missing_network_is_told_before_anything_is_drawn(digits, tmp_path, monkeypatch):
    def gone(): raise FileNotFoundError("put it at /there")
    def draw(seeds): raise AssertionError("nothing may be drawn")
    monkeypatch.setattr(metrics, "inception", gone)
    with pytest.raises(FileNotFoundError, match="put it at /there"):
        metrics.fid(draw, digits[0], root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_reference_statistics_are_made_once(digits, judge, tmp_path, monkeypatch):
    train, test = digits
    first = metrics.reference_statistics(train, judge, tmp_path)
    monkeypatch.setattr(metrics, "_gaussian", None)
    again = metrics.reference_statistics(train, judge, tmp_path)
    assert torch.equal(first.cov, again.cov) and torch.equal(first.mean, again.mean) and first.n == again.n == 1400
    with pytest.raises(TypeError):
        metrics.reference_statistics(test, judge, tmp_path)
