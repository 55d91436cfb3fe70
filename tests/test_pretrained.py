"""Reading strangers' checkpoints: parity with the released code, hostile files, random damage, and our own format.

Run as a script it is the child process whose time and memory a test watches:
`python tests/test_pretrained.py fuzz FOLDER COUNT`, or `peak FILE SMALL_FILE`.
"""
import builtins
import codecs
import collections
import functools
import io
import json
import operator
import os
import pickle
import pickletools
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from imm_edu import pretrained, sample
from imm_edu.dit import DiT
from imm_edu.flow import OTFM, Cosine
from imm_edu.mlp import MLP
from imm_edu.neighbours import Euler, ToEnd
from imm_edu.precond import IMM
from imm_edu.pretrained import Refused, Unreadable
from imm_edu.unet import UNet, small

PARITY = Path(os.environ.get("IMM_PARITY", Path(__file__).resolve().parents[2] / "shared" / "parity"))
needs_parity = pytest.mark.skipif(not (PARITY / "dit_stride.npz").exists(),
    reason="no reference outputs; set IMM_PARITY to their folder")


# ---- a writer for the released format

def _reconstruct_persistent_obj(meta):
    raise RuntimeError("called")


def fake_module(name, **members):
    "A module that pickle finds under `name`, so that a file carries that name"
    parts = name.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[:i + 1]), types.ModuleType(".".join(parts[:i + 1])))
    for k, v in members.items():
        v.__module__ = name
        setattr(sys.modules[name], k, v)


fake_module("torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj)
fake_module("timm.models.vision_transformer", Attention=type("Attention", (torch.nn.Module,), {}))


class Persistent:
    "Pickles as an object of the released classes does"
    source = "raise RuntimeError('executed')"

    def __init__(self, kind, **state):
        empty = dict(_parameters={}, _buffers={}, _modules={}, _non_persistent_buffers_set=set())
        self.kind, self.state = kind, dict(training=False) | empty | state

    def __reduce__(self):
        meta = dict(type="class", version=6, module_src=self.source, class_name=self.kind, state=self.state)
        return _reconstruct_persistent_obj, (meta,)


def tree(kind, weights, **state):
    root = Persistent(kind, **state)
    for name, t in weights.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            node = node.state["_modules"].setdefault(part, Persistent("Module"))
        node.state["_parameters"][leaf] = t if isinstance(t, torch.nn.Parameter) else torch.nn.Parameter(t)
    attention = sys.modules["timm.models.vision_transformer"].Attention()
    root.state["_modules"] |= {"act": torch.nn.SiLU(), "attn": attention}
    return root


def randomised(net, seed=0):
    gen = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data.copy_(.2 * torch.randn(p.shape, generator=gen))
    return net.eval()


def released_weights(net):
    own, filters = net.state_dict(), torch.full((1, 1, 2, 2), .25)
    return {theirs: own[ours].contiguous().clone() if ours else filters.clone()
            for theirs, ours in net.released_names().items()}


def dit_settings(net, **other):
    c = net.config
    inner = dict(
        num_classes=c["classes"], patch_size=c["patch"], hidden_size=c["width"], depth=c["depth"],
        num_heads=c["heads"], qk_norm=c["qk_norm"])
    outer = dict(
        img_resolution=c["size"], img_channels=c["channels"], label_dim=c["classes"], noise_schedule="fm",
        f_type="euler_fm", temb_type="stride", time_scale=1000, sigma_data=.5, eps=0., T=.994)
    return outer | other, inner, "DiT"


def unet_settings(net, **other):
    c = net.config
    inner = dict(
        model_channels=c["width"], channel_mult=list(c["mults"]), num_blocks=c["blocks"],
        attn_resolutions=list(c["attention"]), dropout=.2, embedding_type="positional", encoder_type="standard",
        decoder_type="standard", channel_mult_noise=1, resample_filter=[1, 1], s_embed=True)
    outer = dict(
        img_resolution=c["size"], img_channels=c["channels"], label_dim=c["classes"], noise_schedule="fm",
        f_type="simple_edm", temb_type="identity", time_scale=1000, sigma_data=.5, eps=.006, T=.994)
    return outer | other, inner, "SongUNet"


def checkpoint(net, settings=None, source=None, weights=None, **extra):
    "The bytes of a released file"
    outer, inner, kind = settings or dit_settings(net)
    model = tree(kind, weights or released_weights(net), _init_kwargs=inner, skip_scale=np.sqrt(.5))
    obj = Persistent(
        "IMMPrecond", **outer, _init_kwargs=outer | inner | {"model_type": kind}, nt_high=np.float64(165.7),
        mixed_precision=torch.float32, _modules={"model": model})
    if source:
        obj.source = source
    return pickle.dumps({"ema": obj, **extra}, protocol=4)


def tiny(**kw):
    return randomised(DiT(**dict(size=4, channels=1, patch=2, width=8, depth=1, heads=2, classes=3) | kw))


# ---- parity with the released code

def outputs(model, z):
    "Every reference output, computed by ours"
    x, w = torch.from_numpy(z["x"]), 1.5 if model.classes else 1.
    label = torch.from_numpy(z["labels"]) if "labels" in z else None
    t, s = (torch.from_numpy(z[k].astype(np.float64).round(6)) for k in ("t_vec", "s_vec"))
    last = lambda steps: list(steps)[-1]
    with torch.no_grad():
        yield "raw_F", model.G(x, t, s, label)
        yield "forward_vec_f32", model(x, t, s, label)
        yield "forward_scalar_f32", model(x, .8, .2, label)
        yield "forward_scalar_f64", model(x.double(), .8, .2, label)
        if model.classes:
            yield "cfg1p5_scalar_f64", model(x.double(), .8, .2, label, 1.5)
            yield "forward_nolabel_f64", model(x.double(), .8, .2)
    pushed = (("push_uniform_1", "uniform", 1), ("push_uniform_4", "uniform", 4), ("push_edm_4", "edm", 4),
              ("push_mid_1p4", "eta", 2))
    for key, name, steps in pushed:
        yield key, last(sample.pushforward(model, x, sample.grid(name, steps, model), label, w))
    noise = torch.from_numpy(z["restart_uniform_4_noise"])
    yield "restart_uniform_4", last(sample.restart(model, x, sample.grid("uniform", 4, model), label, w, noise=noise))


@needs_parity
@pytest.mark.parametrize("source", ["npz", "pkl"])
@pytest.mark.parametrize("name", ["dit_stride", "songunet_uncond"])
def test_every_output_of_the_released_code(name, source):
    z = np.load(PARITY / f"{name}.npz")
    if source == "pkl":
        model = pretrained.load(PARITY / f"{name}.pkl")
    else:
        weights = {k[8:]: torch.from_numpy(z[k]) for k in z.files if k.startswith("weights/")}
        model = pretrained.rebuild(json.loads(str(z["config"])), weights)
    seen = set()
    for key, ours in outputs(model, z):
        theirs = torch.from_numpy(z[key]).double()
        error = ((ours.double() - theirs).abs().max() / theirs.abs().max()).item()
        print(f"{name} {source} {key}: {error:.1e}")
        assert ours.shape == theirs.shape and error < 1e-5, f"{key} differs by {error:.1e}"
        seen.add(key)
    inputs = {"config", "x", "t_vec", "s_vec", "labels", "restart_uniform_4_noise"}
    left = {k for k in z.files if not k.startswith("weights/")} - seen - inputs
    assert not left, f"not compared: {left}"


# ---- other networks in the released format

CASES = {
    "dit": (dict(), dict()),
    "qk_norm": (dict(qk_norm=True), dict()),
    "larger": (dict(size=8, channels=4, depth=3, width=16, heads=4), dict(temb_type="identity")),
    "cosine": (dict(), dict(noise_schedule="vp_cosine", f_type="simple_edm", eps=.01, T=.99)),
    "identity": (dict(patch=4), dict(f_type="identity", eps=.01)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dit_comes_back(case, tmp_path):
    args, other = CASES[case]
    net = tiny(**args)
    settings = dit_settings(net, **other)
    (tmp_path / "a.pkl").write_bytes(checkpoint(net, settings))
    compare(pretrained.load(tmp_path / "a.pkl"), net, settings[0])


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("schedule", ["fm", "vp_cosine"])
def test_a_unet_comes_back(classes, schedule, tmp_path):
    net = randomised(UNet(size=8, channels=3, width=32, mults=(1, 2), blocks=1, attention=(4,), classes=classes))
    settings = unet_settings(net, noise_schedule=schedule)
    (tmp_path / "a.pkl").write_bytes(checkpoint(net, settings))
    compare(pretrained.load(tmp_path / "a.pkl"), net, settings[0])


def compare(model, net, s):
    flow = dict(fm=OTFM, vp_cosine=Cosine)[s["noise_schedule"]]()
    want = IMM(net, flow, s["f_type"], dict(identity="s", stride="t-s")[s["temb_type"]], eps=s["eps"], T=s["T"])
    c = net.config
    x = torch.randn(3, c["channels"], c["size"], c["size"])
    label = torch.tensor([0, 2, -1]) if c["classes"] else None
    with torch.no_grad():
        assert torch.allclose(model(x, .8, .2, label), want(x, .8, .2, label), atol=1e-6)
    assert not model.training and all(not t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in net.parameters()]
    strides, own = ([p.stride() for p in m.parameters()] for m in (model, net))
    assert strides == own, "the memory layout is the network's own"


def test_a_row_for_dropped_labels_is_left_out(tmp_path):
    net = tiny()
    weights = released_weights(net)
    key = "y_embedder.embedding_table.weight"
    weights[key] = torch.cat([weights[key], torch.full((1, 8), 99.)])
    (tmp_path / "a.pkl").write_bytes(checkpoint(net, weights=weights))
    compare(pretrained.load(tmp_path / "a.pkl"), net, dit_settings(net)[0])


def test_source_text_is_not_executed(tmp_path):
    writes = f"open({str(tmp_path / 'executed')!r}, 'w').write('x')"
    for source in (writes, "raise SystemExit", "import os; os._exit(3)"):
        (tmp_path / "a.pkl").write_bytes(checkpoint(tiny(), source=source))
        pretrained.load(tmp_path / "a.pkl")
        assert pretrained.read(tmp_path / "a.pkl")["ema"].source == source
    assert not (tmp_path / "executed").exists()


def test_extra_keys_old_numpy_names_cuda_and_protocol_5(tmp_path):
    net, path = tiny(), tmp_path / "a.pkl"
    data = checkpoint(net, step=np.int64(7), loss={"kind": "mmd", "list": [1, 2.5, None]}, G=torch.randn(3))
    old_numpy = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    on_cuda = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    for old, new in (old_numpy, on_cuda):
        assert old in data
        path.write_bytes(edited(data, old, new))
        compare(pretrained.load(path), net, dit_settings(net)[0])
        assert pretrained.read(path)["step"] == 7


def edited(data, old, new):
    "Replace bytes of a pickle, within its byte strings too, whose lengths change; frames are left out"
    out, ops = b"", [*pickletools.genops(data), (None, None, len(data))]
    for (op, arg, at), (_, _, end) in zip(ops, ops[1:]):
        if op.name != "FRAME":
            arg = arg.replace(old, new) if isinstance(arg, bytes) else None
            out += data[at:end].replace(old, new) if arg is None else b"B" + struct.pack("<I", len(arg)) + arg
    return out


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_state_dict(zipped, tmp_path):
    net = tiny()
    outer, inner, kind = dit_settings(net)
    for wrap, prefix in ((lambda w: w, "model."), (lambda w: {"ema": w, "step": 3}, "")):
        weights = collections.OrderedDict((prefix + k, v) for k, v in released_weights(net).items())
        torch.save(wrap(weights), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        compare(pretrained.load(tmp_path / "a.pt", outer | inner | {"model_type": kind}), net, outer)
    with pytest.raises(Unreadable, match="a.pt holds weights without settings"):
        pretrained.load(tmp_path / "a.pt")


# ---- hostile files

class Calls:
    "Pickles as a call"
    def __init__(self, function, *args):
        self.how = function, args

    def __reduce__(self):
        return self.how


class Sets(Calls):
    "Pickles as a call and a state"
    def __reduce__(self):
        return *self.how, {"__class__": "x"}


def storage_with(inner):
    "A tensor whose bytes are a torch.save with something else inside"
    prologue = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    return Calls(torch.storage._load_from_bytes, prologue + inner + b"\x80\x02]." + b"\0" * 8)


def tensor(storage, offset=0, shape=(2,), stride=(1,)):
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, collections.OrderedDict())


def short(text):
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def stack_global(module, name):
    return b"\x80\x04" + short(module) + short(name) + b"\x93"


def hostile(touch):
    "name -> (file, what the refusal must name)"
    system = f"touch {touch}"
    called = b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(system)) + system.encode() + b"\x85R."
    again_inside = b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01x\x85R."
    calls = {
        "os.system": (Calls(os.system, system), "posix.system"),
        "eval": (Calls(eval, f"open({touch!r}, 'w')"), "builtins.eval"),
        "exec": (Calls(exec, f"open({touch!r}, 'w')"), "builtins.exec"),
        "getattr": (Calls(getattr, "x", "upper"), "builtins.getattr"),
        "__import__": (Calls(builtins.__import__, "os"), "builtins.__import__"),
        "open": (Calls(open, touch, "w"), "io.open"),
        "compile": (Calls(compile, "1", "a", "eval"), "builtins.compile"),
        "subprocess": (Calls(subprocess.Popen, ["touch", touch]), "subprocess.Popen"),
        "torch.load": (Calls(torch.load, touch), "torch.serialization.load"),
        "torch.save": (Calls(torch.save, 1, touch), "torch.serialization.save"),
        "partial": (Calls(functools.partial, os.system, system), "functools.partial"),
        "attrgetter": (Calls(operator.attrgetter, "system"), "operator.attrgetter"),
        "codecs.encode": (Calls(codecs.encode, "a", "rot13"), "_codecs.encode"),
        "pickle.loads": (Calls(pickle.loads, b"\x80\x04N."), "_pickle.loads"),
        "numpy.load": (Calls(np.load, touch), "numpy.load"),
        "builtins.map": (Calls(map, len, []), "builtins.map"),
        "bytearray": (Calls(bytearray, 10**12), "builtins.bytearray"),
        "torch.hub": (Calls(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        "type with three arguments": (Calls(type, "X", (), {}), "builtins.type"),
        "call with a state": (Sets(os.system, system), "posix.system"),
        "numpy array": (np.zeros(3), "numpy"),
        "object dtype": (Calls(np._core.multiarray.scalar, np.dtype("O"), b"x" * 8), "type 'O8'"),
        "huge dtype": (Calls(np._core.multiarray.scalar, np.dtype("V1000000"), b"x"), "type 'V1000000'"),
    }
    calls = {k: (pickle.dumps({"ema": v}, protocol=4), name) for k, (v, name) in calls.items()}
    raw = {
        "GLOBAL": (b"\x80\x02cos\nsystem\n.", "os.system"),
        "GLOBAL nt": (b"\x80\x02cnt\nsystem\n.", "nt.system"),
        "STACK_GLOBAL": (stack_global("posix", "system") + b".", "posix.system"),
        "INST": (b"\x80\x04(" + short(system) + b"ios\nsystem\n.", "os.system"),
        "INST of a kind": (b"\x80\x02(itorch.nn.modules.linear\nLinear\n.", "INST"),
        "OBJ": (b"\x80\x02(ctorch.nn.modules.linear\nLinear\no.", "OBJ"),
        "NEWOBJ": (stack_global("os", "system") + b")\x81.", "os.system"),
        "NEWOBJ_EX": (stack_global("torch.nn.modules.linear", "Linear") + b")}\x92.", "NEWOBJ_EX"),
        "EXT1": (b"\x80\x04\x82\x01.", "EXT1"),
        "EXT4": (b"\x80\x04\x84\1\0\0\0.", "EXT4"),
        "PERSID": (b"\x80\x02Pfile\n.", "PERSID"),
        "dotted name": (stack_global("torch.nn.modules.module", "torch.os.system") + b".", "torch.os.system"),
        "function of torch.nn": (
            stack_global("torch.nn.modules.module", "register_module_forward_hook") + b".",
            "register_module_forward_hook",
        ),
        "submodule that is not one": (
            stack_global("torch.nn.modules.linear.os", "system") + b".",
            "linear.os.system",
        ),
        "package that begins like timm": (stack_global("timm_evil.layers", "Mlp") + b".", "timm_evil"),
        "newline in a name": (stack_global("torch.nn.modules.linear", "Linear\n") + b".", "Linear"),
        "accented letter in a name": (stack_global("torch.nn.modules.linear", "Linéar") + b".", "Linéar"),
        "call a list": (b"\x80\x04])R.", "'list' object is not callable"),
        "call a text": (b"\x80\x04" + short("os.system") + b")R.", "'str' object is not callable"),
        "state of a list": (b"\x80\x04]}b.", "'list' object has no attribute"),
        "state of a function": (b"\x80\x02ctorch._utils\n_rebuild_parameter\n}" + text("call") + b"Nsb.", "sets the state of a Function"),
        "state of a tensor": (with_state("shape", (10**9,)), "sets the state of a Stored"),
        "state of a number type": (b"\x80\x02ctorch\nfloat32\nN}" + text("x") + b"Ns\x86b.", "'torch.dtype' object has no attribute"),
        "state of a class": (b"\x80\x02ctorch.nn.modules.linear\nLinear\n}b.", "__setstate__"),
        "memo of 2^31 slots": (b"\x80\x02Nr\xff\xff\xff\x7f.", "far more memory"),
        "memo that skips one": (b"\x80\x02Nq\x00q\x02.", "far more memory"),
        "text of 512 MB": (b"\x80\x02X" + struct.pack("<I", 2**29) + bytes(100) + b".", "ends too early"),
        "text of half the file": (b"\x80\x02X" + struct.pack("<I", 5_000_000) + bytes(5_000_000) + b".", "far more memory"),
        "numbers that share a hash": (b"\x80\x02\x8a\x14" + b"\1" * 20 + b".", "far more memory"),
        "BINGET amplification": (b"\x80\x02]q\0(" + b"h\0" * 500_000 + b"e.", "far more memory"),
        "frames": (b"\x80\x04" + b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f" * 500_000 + b"N.", "far more memory"),
        "half a million marks": (b"\x80\x02" + b"(" * 500_000 + b"t.", "far more memory"),
        "a million classes": (b"\x80\x02" + b"".join(
            b"ctorch.nn.modules.a\nA%d\n0" % i for i in range(20_000)).replace(b"\n0", b"\n") + b".", "far more memory"),
        "text as a persistent id": (b"\x80\x02" + text("file") + b"Q.", "refers to numbers"),
        "number as a persistent id": (b"\x80\x02K\7Q.", "out of range"),
        "encrypted archive": (archive(flag=1), "encrypted"),
        "archive of a deflated bomb": (archive(method=8), "compressed"),
        "archive with a lying length": (archive(size=10**9), "compressed"),
        "archive with entries in one another": (archive(inside=True), "overlap"),
        "archive with one name twice": (archive(twice=True), "repeat"),
        "archive without its entry": (archive(head=b"XX"), "not where it says"),
        "call inside a storage": (pickle.dumps({"ema": storage_with(called)}, 4), "os.system"),
        "storage inside a storage": (pickle.dumps({"ema": storage_with(again_inside)}, 4), "_load_from_bytes"),
        "a million sets": (b"\x80\x04" + b"\x8f" * 1_000_000 + b".", "far more memory"),
        "400 000 memo entries": (
            b"\x80\x04}" + b"".join(b"r" + struct.pack("<I", i) for i in range(400_000)) + b".",
            "far more memory",
        ),
        "a million nested tuples": (b"\x80\x04" + b")" + b"\x85" * 1_000_000 + b".", "far more memory"),
        "same storage again": (again(), "far more memory"),
        "BYTEARRAY8 of 4 EiB": (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".", "BYTEARRAY8"),
        "LONG4 of 2 GiB": (b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b".", "LONG4"),
        "DUP doubling": (b"\x80\x04}" + b"2\x86" * 60 + b".", "DUP"),
        "compressed archive": (compressed(), "compressed"),
    }
    return calls | raw


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def with_state(key, value):
    "A tensor that was checked, and then is given another shape"
    data = pickle.dumps(tensor(Calls(torch.storage._load_from_bytes, storage_bytes())), 4)
    return edited(data, b"", b"")[:-1] + pickle.dumps({key: value}, 2)[2:-1] + b"b."


def archive(flag=0, method=0, size=None, inside=False, twice=False, head=None):
    "A zip archive of torch.save, with its table of contents (and the entry's own header) edited"
    f = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, f)
    data = bytearray(f.getvalue())
    with zipfile.ZipFile(f) as z:
        infos, table = z.infolist(), z.start_dir
    if twice:
        with zipfile.ZipFile(f, "a") as z, pytest.warns(UserWarning):
            z.writestr(infos[0].filename, b"N.")
        return f.getvalue()
    if head:
        data[infos[1].header_offset:infos[1].header_offset + 2] = head
    if flag or method:
        data[table + 8:table + 12] = struct.pack("<HH", flag, method)
    if size:
        data[table + 24:table + 28] = struct.pack("<I", size)
    if inside:              # the second entry begins where the first does
        second = data.index(b"PK\1\2", table + 4)
        data[second + 42:second + 46] = struct.pack("<I", infos[0].header_offset)
    return bytes(data)


def storage_bytes():
    f = io.BytesIO()
    raw = torch.zeros(2).untyped_storage()
    storage = torch.storage.TypedStorage(wrap_storage=raw, dtype=torch.float32, _internal=True)
    torch.save(storage, f, _use_new_zipfile_serialization=False)
    return f.getvalue()


def again():
    "Two small storages with different prologues, read in turn two hundred thousand times"
    blob = storage_bytes()
    other = blob[:15] + blob[15:].replace(b"\x80\x02M\xe9\x03.", b"\x80\x02M\xe8\x03.", 1)
    body = stack_global("torch.storage", "_load_from_bytes")[2:] + b"\x94"
    for b in (blob, other):
        body += b"B" + struct.pack("<I", len(b)) + b + b"\x85\x94"
    return b"\x80\x04" + body + b"h\x00h\x01Rh\x00h\x02R" * 200_000 + b"."


def compressed():
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 10_000_000 + b"N.")
    return f.getvalue()


TOUCHED = Path(tempfile.gettempdir()) / f"touched-by-a-checkpoint-{os.getpid()}"
HOSTILE = hostile(str(TOUCHED))
BY_PYTHON = {"call a list", "call a text", "state of a list", "state of a number type", "state of a class", "text of 512 MB",
             "text as a persistent id", "number as a persistent id"}       # these end as damage does, in an error of Python's


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(name, tmp_path):
    data, named = HOSTILE[name]
    (tmp_path / "a.pkl").write_bytes(data)
    with limited(seconds=10), pytest.raises(Unreadable) as e:
        pretrained.load(tmp_path / "a.pkl")
    assert isinstance(e.value, Refused) or name in BY_PYTHON, str(e.value)
    assert named in str(e.value) and "a.pkl" in str(e.value), str(e.value)
    assert not TOUCHED.exists()


def test_there_are_enough_hostile_files():
    assert len(HOSTILE) >= 70


def test_the_attacks_work_on_python():
    "Or refusing them would prove nothing"
    for name in ("os.system", "eval", "exec", "open", "subprocess", "INST"):
        out = pickle.loads(HOSTILE[name][0])
        if name == "subprocess":
            out["ema"].wait()
        assert TOUCHED.exists(), name
        TOUCHED.unlink()


LIES = {
    "negative offset": dict(offset=-1),
    "offset past the end": dict(offset=1),
    "too long": dict(shape=(3,)),
    "terabyte": dict(shape=(10**12,)),
    "one number repeated": dict(shape=(10**6, 10**6), stride=(0, 0)),
    "overlapping rows": dict(shape=(2, 1000), stride=(1, 0)),
    "negative stride": dict(stride=(-1,)),
    "ranks differ": dict(shape=(2, 1)),
    "float in the shape": dict(shape=(2.,)),
    "endless integer": dict(shape=(2**2000,)),
    "list as shape": dict(shape=[2]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_lies_about_its_size(lie, tmp_path):
    storage = Calls(torch.storage._load_from_bytes, storage_bytes())
    data = pickle.dumps({"ema": {"x": tensor(storage, **LIES[lie])}}, protocol=4)
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(Unreadable, match="a.pkl"):
        pretrained.read(tmp_path / "a.pkl")


def test_the_same_numbers_under_many_names(tmp_path):
    "A file may not turn into more numbers than it holds"
    big = torch.nn.Parameter(torch.randn(64, 64))
    (tmp_path / "a.pkl").write_bytes(checkpoint(tiny(), weights={f"blocks.{i}.x": big for i in range(50)}))
    with pytest.raises(Refused, match="more numbers than it holds"):
        pretrained.load(tmp_path / "a.pkl")


def test_settings_that_take_for_ever_to_print(tmp_path):
    v = (1,)
    for _ in range(60):
        v = (v, v)
    for k in ("f_type", "eps", "noise_schedule", "img_resolution", "s_embed", "num_heads", "model_type", "T"):
        outer, inner, kind = dit_settings(tiny())
        (tmp_path / "a.pkl").write_bytes(checkpoint(tiny(), (outer | {k: v}, inner | {k: v}, kind)))
        with limited(seconds=5):
            if k == "model_type":
                pretrained.load(tmp_path / "a.pkl")         # the network's own word counts
            else:
                with pytest.raises(Unreadable, match="a tuple"):
                    pretrained.load(tmp_path / "a.pkl")


def test_keys_that_take_for_ever_to_hash(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04}N\x94" + b"".join(b"h%c\x86\x94" % i for i in range(60)) + b"Ns.")
    with limited(seconds=5), pytest.raises(Unreadable, match="as a key"):
        pretrained.load(tmp_path / "a.pkl")


MONSTERS = [
    ("depth", 10**9), ("depth", 99_000), ("depth", "3"), ("hidden_size", 2**40), ("hidden_size", [8]),
    ("img_resolution", 10**8), ("num_heads", 0), ("num_heads", -2), ("patch_size", 0), ("num_classes", None)]


@pytest.mark.parametrize("key, value", MONSTERS, ids=[f"{k} = {v!r}" for k, v in MONSTERS])
def test_settings_of_a_monster(key, value, tmp_path):
    net = tiny()
    outer, inner, kind = dit_settings(net)
    (tmp_path / "a.pkl").write_bytes(checkpoint(net, (outer | {key: value}, inner | {key: value}, kind)))
    with limited(seconds=10), pytest.raises(Unreadable, match="a.pkl"):
        pretrained.load(tmp_path / "a.pkl")


NO_CHECKPOINT = {
    "empty file": b"",
    "first byte of a pickle": b"\x80",
    "pickle of nothing": b"\x80\x04.",
    "first bytes of an archive": b"PK",
    "archive header and zeros": b"PK\x03\x04" + b"\0" * 60,
    "web page": b"<html>not found</html>",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "pickle of None": b"\x80\x04N.",
    "magic number alone": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "list that holds itself": b"\x80\x04]\x94h\x00a.",
    "zeros": b"\0" * 1000,
}


@pytest.mark.parametrize("name", NO_CHECKPOINT)
def test_no_checkpoint_at_all(name, tmp_path):
    (tmp_path / "a.pkl").write_bytes(NO_CHECKPOINT[name])
    with pytest.raises(Unreadable, match="a.pkl"):
        pretrained.load(tmp_path / "a.pkl")


def test_every_truncation(tmp_path):
    data = checkpoint(tiny())
    for n in [*range(0, 600, 7), *range(600, len(data), 499), len(data) - 1]:
        (tmp_path / "a.pkl").write_bytes(data[:n])
        with pytest.raises(Unreadable, match="a.pkl"):
            pretrained.load(tmp_path / "a.pkl")


# ---- random damage, in a child process whose memory and time are watched

class limited:
    "Raises TimeoutError after some seconds"
    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        def stop(*_):
            raise BaseException(f"took longer than {self.seconds} s")
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)


def mutate(data, rng):
    data, n = bytearray(data), len(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        i, kind, n = rng.randrange(len(data)), rng.randrange(5), len(data)
        if kind == 0:
            data[i] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[i] = rng.randrange(256)
        elif kind == 2 and n > 100:
            del data[i:i + rng.randrange(1, 40)]
        elif kind == 3:
            j = rng.randrange(n)
            data[i:i] = data[j:j + rng.randrange(1, 60)]
        else:
            data[i:i] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data[:rng.randrange(1, len(data))]) if rng.random() < .05 else bytes(data)


def memory(reset=False):
    "Peak memory in bytes, since the last reset where the system can do that"
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz(folder, count):
    "Damage each original and load it; prints what happened"
    folder, rng, outcomes, slowest = Path(folder), random.Random(0), collections.Counter(), 0.
    settings, originals = json.loads((folder / "settings.json").read_text()), sorted(folder.glob("original*"))
    data = [p.read_bytes() for p in originals]
    for p in originals:
        pretrained.load(p, settings)
    before = memory(reset=True)
    for i in range(count):
        which = 0 if i % 4 else i // 4 % len(originals)
        path = folder / f"damaged{originals[which].suffix}"
        path.write_bytes(mutate(data[which], rng))
        begin = time.perf_counter()
        try:
            with limited(seconds=5):
                pretrained.load(path, settings if path.suffix == ".pt" else None)
            outcomes["loaded"] += 1
        except Unreadable as e:
            assert str(path) in str(e), f"the error does not name the file: {e}"
            outcomes[type(e).__name__] += 1
        slowest = max(slowest, time.perf_counter() - begin)
    print(json.dumps(dict(outcomes=outcomes, slowest=slowest, grown=memory() - before)))


def child(*args):
    done = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return json.loads(done.stdout)


def test_random_damage(tmp_path, pytestconfig, capsys):
    net, count = tiny(), 2400
    outer, inner, kind = dit_settings(net)
    (tmp_path / "settings.json").write_text(json.dumps(outer | inner | {"model_type": kind}))
    (tmp_path / "original.pkl").write_bytes(checkpoint(net, source=f"open({str(tmp_path / 'executed')!r}, 'w')"))
    for zipped in (True, False):
        torch.save(released_weights(net), tmp_path / f"original{zipped}.pt", _use_new_zipfile_serialization=zipped)
    found = child("fuzz", tmp_path, count)                  # the seed is fixed; what it prints shows on failure
    if pytestconfig.getoption("verbose") > 0:
        with capsys.disabled():
            print(f" {found['outcomes']}, slowest {found['slowest']:.2f} s", end=" ")
    counts = found["outcomes"].values()
    assert sum(counts) == count and min(counts) > 50 and len(counts) == 3, "damage of every kind must be met"
    assert found["slowest"] < 5 and found["grown"] < 2 * (tmp_path / "original.pkl").stat().st_size + 40e6
    assert not (tmp_path / "executed").exists()


def peak(path, small):
    "How much memory loading takes, at its worst"
    pretrained.load(small)
    before = memory(reset=True)
    try:
        pretrained.load(path)
        said = ""
    except Unreadable as e:
        said = str(e)
    print(json.dumps(dict(grown=memory() - before, said=said)))


@pytest.fixture(scope="session")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.pkl"
    path.write_bytes(checkpoint(tiny()))
    return path


@pytest.mark.parametrize("kind", ["released", "zip", "legacy"])
def test_the_memory_of_loading(kind, small_file, tmp_path):
    "The weights once, and little else; looking at a file does not read them"
    net = DiT(size=16, channels=4, patch=2, width=384, depth=5, heads=6, classes=100)
    path = tmp_path / ("a.pkl" if kind == "released" else "imagenet256_s_a1.pt")
    if kind == "released":
        path.write_bytes(checkpoint(net))
    else:
        torch.save(released_weights(net), path, _use_new_zipfile_serialization=kind == "zip")
    size = path.stat().st_size
    found = child("peak", path, small_file)
    assert size > 50e6 and found["grown"] < (1.3 * size if kind == "released" else .2 * size), found
    assert not found["said"] or "has weights that do not fit" in found["said"]


@pytest.mark.parametrize("start", [b"\x80\x04", b"\x80\x02(", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."])
def test_a_text_of_512_megabytes_is_refused_by_its_length(start, small_file, tmp_path):
    with open(tmp_path / "a.pkl", "wb") as f:                # sparse: takes no room on the disk
        f.write(start + b"X" + struct.pack("<I", 2**29))
        f.truncate(2**29 + 100)
    found = child("peak", tmp_path / "a.pkl", small_file)
    assert "far more memory" in found["said"] and found["grown"] < 20e6, found


def test_settings_that_ask_for_gigabytes(small_file, tmp_path):
    "Whatever a folder or a file says of its network, nothing is taken before the shapes agree"
    for net, changes in ((tiny(), dict(width=12_000)), (MLP(), dict(width=60_000)), (MLP(), dict(waves=90_000, size=200)),
                         (small(), dict(width=40_000)), (tiny(), dict(size=90_000, patch=1)), (tiny(), dict(classes=99_999))):
        config = tmp_path / "m" / "config.json"
        pretrained.save(IMM(net, OTFM()), tmp_path / "m")
        c = json.loads(config.read_text())
        config.write_text(json.dumps(c | dict(net=c["net"] | changes)))
        found = child("peak", tmp_path / "m", small_file)
        assert found["said"] and found["grown"] < 30e6, (changes, found)


# ---- our own format

def test_save_and_load(tmp_path):
    unet = UNet(size=8, channels=3, width=32, mults=(1, 2), blocks=1, attention=(4,), classes=4)
    for net in (tiny(), randomised(unet)):
        model = IMM(net, Cosine(), "simple_edm", "t-s", sigma_d=.4, eps=.01, T=.99)
        back = pretrained.load(pretrained.save(model, tmp_path / "m"))
        assert pretrained.describe(back) == pretrained.describe(model) and not back.training
        mine, theirs = back.state_dict(), model.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
        assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("dies_at", ["save_file", "replace", "interrupt"])
def test_a_failed_write_leaves_the_old_model(dies_at, tmp_path, monkeypatch):
    import safetensors.torch
    old, new = IMM(tiny(), OTFM()), IMM(randomised(tiny(), seed=1), Cosine())
    pretrained.save(old, tmp_path)

    def dies(*args, **kw):
        if dies_at != "replace":
            Path(args[1]).write_bytes(b"half")
        raise KeyboardInterrupt if dies_at == "interrupt" else OSError(28, "No space left on device")
    place = (os, "replace") if dies_at == "replace" else (safetensors.torch, "save_file")
    monkeypatch.setattr(*place, dies)
    with pytest.raises(KeyboardInterrupt if dies_at == "interrupt" else OSError):
        pretrained.save(new, tmp_path)
    monkeypatch.undo()
    back = pretrained.load(tmp_path)
    assert pretrained.describe(back) == pretrained.describe(old)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), old.parameters()))
    assert len(list(tmp_path.iterdir())) == 3, "no debris"


def test_a_damaged_folder(tmp_path):
    model = IMM(tiny(), OTFM())
    pretrained.save(model, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good, text, rng = weights.read_bytes(), config.read_text(), random.Random(0)
    for i in range(150):
        weights.write_bytes(mutate(good, rng) if i % 2 else good)
        config.write_bytes(text.encode() if i % 2 else mutate(text.encode(), rng))
        try:
            pretrained.load(tmp_path)
        except Unreadable as e:
            assert str(tmp_path) in str(e)
    config.write_text(text)
    for bad in (good[:100], b"", struct.pack("<Q", 2**60) + good[8:]):
        weights.write_bytes(bad)
        with pytest.raises(Unreadable, match="model.safetensors is damaged"):
            pretrained.load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        pretrained.load(tmp_path)


def test_another_architectures_weights(tmp_path):
    pretrained.save(IMM(tiny(), OTFM()), tmp_path / "a")
    pretrained.save(IMM(tiny(depth=2), OTFM()), tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes((tmp_path / "a" / "model.safetensors").read_bytes())
    with pytest.raises(Unreadable, match="do not fit the network: missing blocks.1"):
        pretrained.load(tmp_path / "b")


def header(tensors, more=b""):
    "The bytes of a safetensors file with this header"
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + more


SAFETENSORS = {
    "claims more than there is": header({"x": dict(dtype="F32", shape=[10**9], data_offsets=[0, 4 * 10**9])}, bytes(8)),
    "shape and offsets disagree": header({"x": dict(dtype="F32", shape=[10**6, 10**6], data_offsets=[0, 8])}, bytes(8)),
    "two in one place": header({k: dict(dtype="F32", shape=[2], data_offsets=[0, 8]) for k in "xy"}, bytes(8)),
    "a gap": header({"x": dict(dtype="F32", shape=[1], data_offsets=[4, 8])}, bytes(8)),
    "shape that overflows": header({"x": dict(dtype="F32", shape=[2**40, 2**40], data_offsets=[0, 8])}, bytes(8)),
    "negative shape": header({"x": dict(dtype="F32", shape=[-2], data_offsets=[0, 8])}, bytes(8)),
    "unknown type": header({"x": dict(dtype="Q7", shape=[2], data_offsets=[0, 8])}, bytes(8)),
    "header longer than the file": struct.pack("<Q", 10**8) + b"{}",
    "no JSON": struct.pack("<Q", 8) + b"not json",
    "deeply nested": struct.pack("<Q", 10**5) + b"[" * 10**5,
}


@pytest.mark.parametrize("lie", SAFETENSORS)
def test_a_safetensors_header_that_lies(lie, tmp_path):
    pretrained.save(IMM(tiny(), OTFM()), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS[lie])
    with limited(seconds=5), pytest.raises(Unreadable, match="model.safetensors is damaged"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("text, says", [
    ("[" * 100_000, "damaged"), ("{}", "does not describe"), ("[1]", "does not describe"), ("\xff", "damaged"),
    (" " * 2_000_000, "larger than any"), ('{"net": ' + "9" * 5000 + "}", "damaged")])
def test_a_config_that_is_none(text, says, tmp_path):
    pretrained.save(IMM(tiny(), OTFM()), tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Unreadable, match=says):
        pretrained.load(tmp_path)


def test_weights_that_are_no_floats(tmp_path):
    "What cannot be loaded is not saved; and if a file holds it, the type is named, not the shape"
    from safetensors.torch import load_file, save_file
    model = IMM(tiny(), OTFM())
    with pytest.raises(TypeError, match="torch.int8"):
        pretrained.save(model, tmp_path / "int8", torch.int8)
    assert not (tmp_path / "int8").exists()
    pretrained.save(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"positions": state["positions"].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(Unreadable, match="of another type positions torch.int8 instead of torch.float32"):
        pretrained.load(tmp_path)
    for p in model.parameters():
        p.requires_grad_(False).data = p.data.to(torch.int8)
    with pytest.raises(TypeError, match="torch.int8"):
        pretrained.save(model, tmp_path / "quantised")


class Own(torch.nn.Module):
    "A network that the package does not know: tied weights, a counter, no config"
    def __init__(self, width=8):
        super().__init__()
        self.a, self.b, self.norm = torch.nn.Linear(2, width), torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width)
        self.b.weight, self.out = self.a.weight, torch.nn.Linear(width, 2)

    def forward(self, x, t, u, label=None):
        return self.out(self.norm(self.a(x.flatten(1)) + self.b(x.flatten(1)).sin())).view_as(x)


def test_a_network_of_ones_own(tmp_path):
    model = IMM(Own(), Cosine(), eps=.01)
    model(torch.randn(50, 2, 1, 1), .8, .2)                                 # moves the norm's averages and its counter
    model.eval()
    for dtype, close in ((None, 0.), (torch.float16, 1e-2)):
        folder = pretrained.save(model, tmp_path / "own", dtype)
        with pytest.raises(ValueError, match=r"test_pretrained.Own.*no class is imported.*net=Own\(...\)"):
            pretrained.load(folder)
        back = pretrained.load(folder, net=Own())
        x = torch.randn(5, 2, 1, 1)
        assert torch.allclose(back(x, .8, .2), model(x, .8, .2), atol=close) and back.eps == .01
        assert back.net.norm.num_batches_tracked == 1 and back.net.a.weight is back.net.b.weight
    assert "net=Own(...)" in (folder / "README.md").read_text()
    with pytest.raises(Unreadable, match="do not fit the network: misshaped a.bias"):
        pretrained.load(folder, net=Own(9))
    assert pretrained.load(pretrained.save(IMM(tiny(), OTFM()), tmp_path / "known"), net=tiny()).net.config == tiny().config


def test_a_class_of_a_known_name_is_still_ones_own(tmp_path):
    class MLP(torch.nn.Linear):
        pass
    folder = pretrained.save(IMM(MLP(2, 2), OTFM()), tmp_path)
    assert json.loads((folder / "config.json").read_text())["network"].endswith("<locals>.MLP")
    assert isinstance(pretrained.load(folder, net=MLP(2, 2)).net, MLP)
    with pytest.raises(TypeError, match="IMM, Euler, ToEnd; this one is of class Other"):
        pretrained.describe(type("Other", (IMM,), {})(MLP(2, 2), OTFM()))


@pytest.mark.parametrize("kind", [Euler, ToEnd])
def test_the_kind_of_model_is_kept(kind, tmp_path):
    assert type(pretrained.load(pretrained.save(kind(IMM(tiny(), OTFM())), tmp_path))) is kind


RESULTS = sorted(p.parent for p in (Path(__file__).resolve().parents[1] / "nbs" / "results").glob("*/config.json"))


@pytest.mark.parametrize("folder", RESULTS, ids=lambda p: p.name)
def test_folders_kept_with_the_book_still_load(folder):
    model = pretrained.load(folder)
    kept = json.loads((folder / "config.json").read_text())
    assert json.loads(json.dumps(pretrained.describe(model))) == kept


def test_a_read_error_of_the_disk_stays_one(tmp_path, monkeypatch):
    (tmp_path / "a.pkl").write_bytes(checkpoint(tiny()))

    def eio(*args):
        raise OSError(5, "Input/output error")
    monkeypatch.setattr(pretrained, "scan", eio)
    with pytest.raises(OSError, match="Input/output"):
        pretrained.load(tmp_path / "a.pkl")


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for path, says in ((tmp_path / "gone.pkl", "gone.pkl"), (tmp_path / "link", "a link to nowhere"), ("cifar100", "known are cifar10")):
        with pytest.raises(FileNotFoundError, match=says):
            pretrained.load(path)


class FakeHub:
    sent = {}

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, private, exist_ok):
        self.sent.update(private=private)
        return types.SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id, folder_path, commit_message, **kw):
        self.sent.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()}, message=commit_message)
        return f"https://hub/{repo_id}"


def test_to_the_hub_and_back(tmp_path, monkeypatch):
    import huggingface_hub
    model = IMM(tiny(), OTFM(), "euler_fm")
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeHub)
    assert pretrained.push_to_hub(model, "me/mine", private=True, message="hello") == "https://hub/me/mine"
    assert FakeHub.sent.pop("private") is True and FakeHub.sent.pop("message") == "hello"
    assert set(FakeHub.sent) == {"config.json", "model.safetensors", "README.md"}
    for name, data in FakeHub.sent.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: str(tmp_path / file))
    for back in (pretrained.load("me/mine"), pretrained.OnHub.from_pretrained(tmp_path)):
        assert type(back) is IMM and pretrained.describe(back) == pretrained.describe(model)
        assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters()))
    pretrained.OnHub(model).save_pretrained(tmp_path / "again")
    assert pretrained.describe(pretrained.load(tmp_path / "again")) == pretrained.describe(model)


def test_offline(monkeypatch, capsys):
    import huggingface_hub

    def unreachable(url):
        raise OSError(f"no network to reach {url}")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: pytest.fail("it would try for half a minute"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(pretrained, "shown", set())
    for _ in range(2):
        with pytest.raises(ConnectionError, match="cifar10.pkl"):
            pretrained.load("cifar10")
    assert capsys.readouterr().out.count("research only") == 1, "the licence is told once"


# ---- ONNX

def halfway(model, n):
    "Inputs of a jump that says something: n samples between noise and data, each at times of its own, null among the labels"
    g, step = torch.Generator().manual_seed(n), torch.arange(1, n + 1, dtype=torch.float64) / n
    x = model.sigma_d * torch.randn(n, *sample.image_shape(model), generator=g)
    times = dict(t=.4 + .5*step, s=.3*step)
    return dict(x=x, **times) | (dict(label=torch.arange(n) % (model.classes + 1) - 1) if model.classes else {})


@pytest.mark.parametrize("name", ["digits", "cifar10_laptop", "toy-moons", "toy-moons-flow"])
def test_onnx_jumps_where_torch_does(name, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is optional: pip install -e '.[export]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is optional: pip install -e '.[export]'")
    model = pretrained.load(Path(__file__).parents[1] / "nbs/results" / name)
    session = onnxruntime.InferenceSession(str(pretrained.export(model.train(), tmp_path / "model.onnx")))
    assert model.training, "export must leave the model in the mode it was in"
    model.eval()
    for n in (1, 2, 5):
        inputs = halfway(model, n)
        jump, = session.run(None, {k: v.numpy() for k, v in inputs.items()})
        with torch.no_grad(): off = (torch.tensor(jump) - model(*inputs.values())).abs().max()
        assert off < 1e-5, f"{name}, {n} samples: ONNX lands {off:.1e} from where PyTorch lands; they compute one function"
    settings = json.loads(session.get_modelmeta().custom_metadata_map["imm_edu"])
    assert settings == json.loads(json.dumps(pretrained.describe(model))), "a sampler elsewhere needs eps, T and sigma_d"


def test_guidance_is_a_mixture_of_two_jumps():
    model = pretrained.load(Path(__file__).parents[1] / "nbs/results/digits")
    x, t, s, label = (v.double() if v.is_floating_point() else v for v in halfway(model, 4).values())
    with torch.no_grad(): null, own, guided = model(x, t, s, -1), model(x, t, s, label), model(x, t, s, label, 2.5)
    assert torch.allclose(-1.5*null + 2.5*own, guided, atol=1e-5), "a jump is linear in G, so guiding G is guiding the jump"


def test_a_model_too_large_for_one_file_is_told_before_the_work(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is optional: pip install -e '.[export]'")
    with torch.device("meta"): large = IMM(DiT(size=32, channels=4, patch=2, width=1152, depth=28, heads=16), OTFM())
    with pytest.raises(ValueError, match=r"bytes of weights, and one ONNX file holds 1.5e9 of them; export model.half\(\)"):
        pretrained.export(large, tmp_path / "model.onnx")


def test_without_onnx_there_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnx and onnxscript: pip install -e '.\[export\]'"):
        pretrained.export(IMM(MLP(), OTFM()), tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir()), "and nothing is written"


if __name__ == "__main__":
    {"fuzz": lambda folder, count: fuzz(folder, int(count)), "peak": peak}[sys.argv[1]](*sys.argv[2:])
