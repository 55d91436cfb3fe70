"What lets a chapter run on Colab and Kaggle: written where the book has an address, and taken out where it has none."
import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import house

URL = "https://github.com/someone/book"


@pytest.fixture(params=["01_flow", "index"])
def chapter(request, tmp_path):
    return Path(shutil.copy(house.NBS / f"{request.param}.ipynb", tmp_path)), house.read(house.NBS / f"{request.param}.ipynb")


def test_doors_come_and_go(chapter):
    path, before = chapter
    content = path.read_bytes()
    house.write_doors(path, URL + "/")
    once = path.read_bytes()
    links, door = house.read(path)["cells"][1:3]
    assert f"colab.research.google.com/github/someone/book/blob/main/nbs/{path.name}" in links["source"] and f"src={URL}/blob/main/nbs/{path.name}" in links["source"]
    assert URL in door["source"] and door["metadata"]["jupyter"]["source_hidden"], "folded: it is not the chapter's matter"
    house.write_doors(path, URL)
    assert path.read_bytes() == once, "a second time changes nothing"
    house.write_doors(path, "https://github.com/other/place")
    assert "someone" not in path.read_text(), "another address takes the place of the old one"
    house.write_doors(path, "")
    assert house.read(path) == before and json.loads(path.read_bytes()) == json.loads(content), "without an address nothing is left"


def test_the_cell_does_nothing_at_home_and_fetches_elsewhere(tmp_path):
    cell = house.DOOR.replace("{url}", URL)
    ast.parse(cell)
    program = f"""
asked = []
class Shell:
    def system(self, line): asked.append(line); __import__("os").makedirs("imm_edu-book/nbs")
def get_ipython(): return Shell()
{cell}
print(asked, os.getcwd())"""

    def run(home):
        done = subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(house.ROOT) if home else ""})
        return done.stdout.strip()
    assert run(home=True) == f"[] {tmp_path}", "where the package is, nothing is asked for"
    elsewhere = run(home=False)
    assert f"git clone -q --depth 1 {URL} imm_edu-book && pip install -q ./imm_edu-book" in elsewhere
    assert elsewhere.endswith("imm_edu-book/nbs"), "the kept results lie beside the notebooks"


def test_the_books_own_notebooks_follow_settings():
    from configparser import ConfigParser
    ini = ConfigParser(delimiters=["="])
    ini.read(house.ROOT / "settings.ini", encoding="utf-8")
    url = ini["DEFAULT"]["git_url"].rstrip("/")
    for path in house.chapters():
        nb = house.read(path)
        assert house.with_door(nb, path.stem, url, ini["DEFAULT"]["branch"])["cells"] == nb["cells"], f"{path.name}: run python tests/house.py doors"
