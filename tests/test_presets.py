"Presets: that all of them fit together, that changing one is safe, and what a slip is answered."
import dataclasses
import json

import pytest
import torch
from PIL import Image
from torch import nn

from imm_edu import presets
from imm_edu.precond import IMM
from imm_edu.presets import get
from imm_edu.train import Training, train

SMALL = ("toy-checkerboard", "toy-moons", "toy-gaussians", "toy-spiral", "digits")


def refused(f, *words):
    with pytest.raises(ValueError) as e:
        f()
    assert all(w in str(e.value) for w in words), e.value


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_plain_values_and_its_parts_fit(name):
    p = get(name)
    assert p.name == name and json.loads(json.dumps(dataclasses.asdict(p))), "plain values"
    assert str(p).startswith(f"{name}: ") and max(map(len, str(p).splitlines())) <= 98
    m, o, c = p.model(device="meta"), p.make_objective(), p.config()
    assert isinstance(m, IMM) and next(m.parameters()).is_meta and p.config(seed=3).seed == 3
    assert c.batch % c.accumulate == 0 and c.batch // c.accumulate % o.M == 0, "groups are whole in every part"
    (kind, data), net = p.data, p.net[1]
    if kind == "cifar10":
        assert data.get("size", 32) == net["size"] and net["channels"] == 3
        assert (data.get("augment", 0) > 0) == (net.get("augment", 0) == 9), "augmented data, and a network that is told"
    assert (p.sampling.get("guidance", 1) == 1 or m.classes and o.label_drop > 0), "guidance needs labels that are sometimes dropped"


@pytest.mark.parametrize("name", SMALL)
def test_the_small_ones_take_a_step(name):
    p = get(name)
    m, d, o = p.model(), p.load_data(), p.make_objective()
    loss = o(m, *d.batch(0, 16)).loss
    assert loss.isfinite().all() and len(loss) == 16 / o.M
    assert (m.classes, m.net.channels, m.net.size) == (d.classes, d.channels, d.size)
    if name == "digits":
        assert len(p.load_data(split="test")) == 397


def test_operations_are_those_of_the_matrices():
    net = get("toy-moons").model().net
    layers = [l for l in net.modules() if isinstance(l, nn.Linear)]
    assert presets.forward_flops(net) == 2 * (net.frequencies.numel() + sum(l.in_features * l.out_features for l in layers))
    assert get("toy-moons").cost().parameters == sum(p.numel() for p in net.parameters())


def test_names_that_are_not_there():
    refused(lambda: get("toy-checkers"), "did you mean toy-checkerboard? There are toy-checkerboard, toy-moons")
    refused(lambda: get("xyz"), "'xyz' is unknown; There are")
    digits, laptop = get("digits"), get("cifar10-laptop")
    refused(lambda: digits.changed(widht=3), "digits has no option 'widht'; did you mean width?")
    refused(lambda: digits.changed(**{"train.width": 3}), "no option 'train.width'", "did you mean width?")
    refused(lambda: digits.changed(**{"nets.width": 3}), "no option 'nets.width'")
    refused(lambda: digits.changed(path="x"), "no option 'path'")
    for name in ("size", "augment"):
        refused(lambda: laptop.changed(**{name: 8}), f"say net.{name} and data.{name}", "must fit")
    refused(lambda: digits.changed(loss="flow"), "loss 'flow' is unknown; choose one of imm, flow_matching, consistency")
    refused(lambda: digits.changed(loss="flow_matching", k=9), "those of train.Config, FlowMatching")
    refused(lambda: digits.changed(lr=-1).config(), "lr must be positive")


def test_where_an_option_is_found():
    p = get("cifar10-laptop")
    for name, where in dict(lr="train", k="objective", loss="objective", width="net", flow="wrap", time_scale="wrap", flip="data",
                            guidance="sampling", steps="train", dropout="net", download="data", source="data").items():
        assert p.find(name) == (where, name) == p.find(f"{where}.{name}")
    assert p.find("sampling.steps") == ("sampling", "steps") and p.find("net.size") == ("net", "size")
    assert get("digits").find("size") == ("net", "size"), "where the data has no such option, there is nothing to ask"


def test_a_change_reaches_its_part_and_nothing_else():
    before = {n: json.dumps(dataclasses.asdict(get(n))) for n in presets.names()}
    p = get("cifar10-laptop").changed(lr=1e-4, k=9, width=64, sigma_d=.4, **{"data.flip": False, "sampling.steps": 4, "net.size": 32})
    assert (p.train["lr"], p.objective["k"], p.net[1]["width"], p.wrap["sigma_d"]) == (1e-4, 9, 64, .4)
    assert (p.data[1]["flip"], p.sampling["steps"], p.net[1]["size"], p.data[1]["size"]) == (False, 4, 32, 16)
    p.net[1]["mults"].append(3)
    assert {n: json.dumps(dataclasses.asdict(get(n))) for n in presets.names()} == before, "the registry is as it was"
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.name = "mine"


def test_another_loss_starts_from_its_own_defaults():
    digits = get("digits")
    flow = digits.changed(loss="flow_matching", lr=1.)
    assert type(flow.make_objective()).__name__ == "FlowMatching" and flow.train["lr"] == 1 and flow.objective["label_drop"] == .1
    for name in ("loss", "objective.loss"):
        o = digits.changed(k=9, **{name: "consistency", "objective.gap": 1e-4}).make_objective()
        assert (o.k, o.gap, o.mapping) == (9, 1e-4, "edm"), "options given with the loss are its own"
    assert digits.changed(loss="imm").make_objective().k == (7, 10.55), "the same loss keeps its settings"
    assert flow.changed(loss="imm").make_objective().k == 12, "and there is a way back, to the defaults"


def test_first_weights_depend_on_the_seed_alone():
    p, state = get("digits"), torch.get_rng_state()
    a = p.model(1)
    torch.manual_seed(5)
    with torch.device("meta"):
        b = p.model(1)                                        # whatever the device around
    assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values()))
    assert not torch.equal(torch.get_rng_state(), state) and torch.initial_seed() == 5, "the generator is the user's"


def test_a_network_of_ones_own():
    net = nn.Conv2d(1, 1, 1)
    state = net.weight.clone()
    model = get("digits").changed(eps=.01).model(net=net)
    assert model.net is net and torch.equal(net.weight, state) and model.eps == .01 and model.classes == 0
    assert get("digits").model(net=nn.Sequential()).net is not None, "a network without layers is one, too"


def test_cifar10_gets_its_options(monkeypatch):
    asked = []
    monkeypatch.setattr(presets, "cifar10", lambda *a, **k: asked.append((a, k)))
    p = get("cifar10-paper")
    p.load_data("here"), p.load_data("here", "test"), p.changed(source="images", download=False).load_data()
    assert asked == [(("here", "train", True, .12, 32, True), {}), (("here", "test", False, 0., 32, True), {}),
                     ((None, "train", True, .12, 32, False), dict(source="images"))], "the test set is neither mirrored nor augmented"


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="imagenet256-train.safetensors is no file"):
        get("imagenet256-s").load_data(tmp_path)
    own = dataclasses.replace(get("digits"), data=("folder", dict(size=8, channels=1)))
    refused(lambda: own.load_data(), "which folder of images? pass root")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        get("digits").on_images(tmp_path / "nowhere")


@pytest.fixture
def folder(tmp_path):
    "Twelve pictures of 20x16 in three classes"
    for i in range(12):
        (tmp_path / "pictures" / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (20 * i, 0, 255 - 20 * i)).save(tmp_path / "pictures" / f"class{i % 3}" / f"{i}.png")
    return tmp_path / "pictures"


def test_pictures_of_ones_own(folder):
    p = get("cifar10-laptop").on_images(folder, cache=False)
    d = p.load_data()
    assert (d.size, d.channels, d.classes, len(d), d.flip) == (16, 3, 3, 12, True) and p.net[1]["classes"] == 3
    assert p.sampling["guidance"] == 1.5 and json.dumps(dataclasses.asdict(p)) and str(folder) in str(p).replace("\n", "")
    tiny = p.changed(width=32, batch=4, steps=2, **{"net.attention": []})
    records = list(train(Training(tiny.model(), d, tiny.make_objective(), tiny.config())))
    assert len(records) == 2 and all(r.loss > 0 for r in records)

    again = get("cifar10-laptop").on_images("/no/such/folder", classes=3)
    assert again.net == p.net, "with the number of classes given, nothing is read"


def test_pictures_take_the_networks_form_unless_told(folder):
    grey = get("digits").on_images(folder, cache=False, flip=False)
    assert grey.net[1] == {**get("digits").net[1], "classes": 3}
    assert (grey.load_data().channels, grey.load_data().size, grey.load_data().flip) == (1, 8, False)
    large = get("digits").on_images(folder, size=16, channels=3, cache=False)
    assert large.load_data().x.shape == (12, 3, 16, 16) and (large.model().net.size, large.model().net.channels) == (16, 3)
    flat = get("digits").on_images(folder / "class0", cache=False)
    assert flat.net[1]["classes"] == 0 and flat.sampling == dict(steps=2, guidance=1.) and flat.load_data().label is None
    assert get("digits").sampling["guidance"] == 1.5

    told = get("cifar10-paper").on_images(folder / "class0", cache=False)
    assert told.load_data().augment == .12 and told.net[1]["augment"] == 9, "augmentation stays, in both"
    assert get("imagenet256-s").on_images(folder, classes=0).net[1]["channels"] == 3, "no picture has four colours"
    refused(lambda: get("toy-moons").on_images(folder), "points of the plane; take a preset of pictures")


def test_a_preset_of_ones_own(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", dict(presets.PRESETS))
    p = get("digits")
    presets.add("mine", "as the digits", **{f.name: getattr(p, f.name) for f in dataclasses.fields(p)[2:]})
    assert get("mine") == dataclasses.replace(p, name="mine", about="as the digits") and "mine" in presets.names()
    assert "\nmine " in presets.overview()


def test_the_overview_fits_a_terminal():
    lines = presets.overview().splitlines()
    assert max(map(len, lines)) <= 118 and [l.split()[0] for l in lines[1:]] == list(presets.names())
    assert "20 min" in next(l for l in lines if l.startswith("cifar10-coffee")) and lines[1].endswith("e+12")
    assert presets.aligned([("a", "b"), ("cc", "100")]) == "a     b\ncc  100"
