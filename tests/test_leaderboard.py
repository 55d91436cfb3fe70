"`imm-edu cifar`: one number from one command, and one line on the board."
import json

import pytest
import torch

import house
from imm_edu import cli, presets
from imm_edu.data import Images


def pictures(root, split, **options):
    g = torch.Generator().manual_seed(int(split == "test"))
    return Images(torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8, generator=g), torch.arange(64) % 2, source="noise")


@pytest.fixture
def board(tmp_path, monkeypatch):
    "A preset that takes seconds, and the arguments of a run of it"
    monkeypatch.setitem(presets.DATA, "cifar10", pictures)
    monkeypatch.setitem(presets.PRESETS, "cifar10-laptop", presets.get("cifar10-laptop").changed(
        **{"net.size": 8, "width": 8, "attention": [], "net.classes": 2, "steps": 4, "batch": 8, "warmup": 0}))
    monkeypatch.setattr("imm_edu.metrics.feature_file", lambda train, test: tmp_path / "features.safetensors")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return ["cifar", "--out", str(tmp_path / "run"), "--n", "16", "--board", str(tmp_path / "board.jsonl")], tmp_path / "board.jsonl"


def test_a_run_comes_onto_the_board_once(board, capsys):
    words, path = board
    assert cli.main(words) == 0
    row, = cli.read_board(path)
    assert row["images"] == 32 and row["steps"] == 4 and row["data"] == "noise" and row["n"] == 16 and row["score"].keys() >= {"1", "2"}
    work = 4 * presets.get("cifar10-laptop").cost().flops * row["images_s"]
    assert row["of_peak"] == pytest.approx(work / row["peak"], abs=1e-4) and {"commit", "machine", "command"} <= row.keys()
    lines = [json.loads(line) for line in (path.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["images_s"] == pytest.approx(sorted(line["images_s"] for line in lines)[len(lines) // 2], rel=.01) and row["size"] == 8, "the usual speed: compiling and pauses are not in it"
    assert f"{row['score']['2']:.2f}" in capsys.readouterr().out, "it ends with the number"
    assert cli.main(words) == 0 and len(cli.read_board(path)) == 1, "the same run is on the board once"
    assert "already" in capsys.readouterr().out


def test_a_damaged_board_is_named_before_anything_is_trained(board, capsys, tmp_path):
    words, path = board
    path.write_text('{"began": "x"}\n{"began": \n')
    assert cli.main(words) == 2 and "nothing was added" in capsys.readouterr().err
    assert path.read_text().count("\n") == 2 and not (tmp_path / "run").exists()


def test_the_best_in_two_jumps_comes_first():
    row = dict(preset="p", changes={}, data="d", size=8, minutes=1, images_s=1, of_peak=.1, peak=1e12, n=10, features="f", gpu=None, threads=1, commit="c")
    text = cli.board_table([row | dict(score={"1": 3, "2": 9}), row | dict(score={"1": 4, "2": 8})])
    assert text.index("8.00") < text.index("9.00")


@pytest.mark.parametrize("commit, shown", [("87aade384000", "87aade3"), ("87aade384000-dirty", "87aade3-dirty"), ("v1.2-5-g87aade384000", "v1.2-5-g87aade3"), (None, "")])
def test_a_commit_is_shown_short(commit, shown):
    row = dict(preset="p", data="d", size=8, minutes=1, images_s=1, of_peak=.1, peak=1e12, n=10, features="f", gpu=None, threads=1, commit=commit)
    assert cli.board_table([row | dict(score={"1": 3, "2": 9})]).endswith(f"| {shown} |")


def test_the_readme_shows_the_board():
    readme = (house.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == house.with_board(readme), "README.md shows another board than nbs/results/leaderboard.jsonl: python tests/house.py board"
