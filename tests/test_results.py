"Everything under nbs/results says where it comes from, and is read by a chapter."
import json
import re

import pytest

import house

RESULTS = house.NBS / "results"
FILES = sorted(p for p in RESULTS.iterdir() if p.is_file() and not p.name.startswith("."))
CODE = {p.stem: "\n".join(c["source"] for c in house.code_cells(house.read(p))) for p in house.chapters()}


def readers(name):
    "Chapters whose code names a file or folder of results, also by an f-string such as results/toy-{name}"
    def named(code):
        for place in re.findall(r"results/([^\"'`\s)]+)", code):
            pattern = ".*".join(re.escape(part) for part in re.split(r"\{[^}]*\}", place))
            if re.fullmatch(pattern, name):
                return True
    return [stem for stem, code in CODE.items() if named(code)]


@pytest.mark.parametrize("name", sorted(p.name for p in RESULTS.iterdir() if not p.name.startswith(".")))
def test_a_chapter_reads_it(name):
    assert readers(name), f"no chapter reads nbs/results/{name}: show it in one, or delete it"


def records(path):
    "The places in a file that should say where it comes from: its `where`, or each row"
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, list) else [found.get("where") or found]


@pytest.mark.parametrize("name", [p.name for p in FILES if p.suffix in (".json", ".jsonl")])
def test_it_says_where_it_was_measured(name):
    for record in records(RESULTS / name):
        known = dict(record, commit=record.get("commit") or record.get("added_in"))     # the state of the code, or what brought the file
        missing = [k for k in ("commit", "machine", "command") if not known.get(k)]
        assert not missing, f"nbs/results/{name} lacks {', '.join(missing)}: write run.surroundings() into it as `where`"


def test_no_cell_asserts_on_what_is_kept():
    bold = [f"{p.stem}: {c['source'].splitlines()[0][:60]}" for p in house.chapters() for c in house.code_cells(house.read(p))
            if "results/" in c["source"] and ".json" in c["source"] and re.search(r"^\s*assert ", c["source"], re.M)]
    assert not bold, f"an assertion beside a kept file can only fail when somebody measures again: {bold}"
