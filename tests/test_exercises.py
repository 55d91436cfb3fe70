"Every exercise: its check passes with the solution, and fails with the empty stub and with each wrong answer that people give."
import math
import re

import pytest
import torch

import house
from imm_edu import show


def blocks(path):
    "The answers in a file of solutions or wrong answers: (exercise, name of the mistake) -> code"
    if not path.exists():
        return {}
    parts = re.split(r"^# Exercise (\d+)(?:: *(.*))?$", path.read_text(encoding="utf-8"), flags=re.M)[1:]
    return {(int(n), why or ""): code for n, why, code in zip(parts[::3], parts[1::3], parts[2::3])}


def exercises(path):
    "The exercises of a chapter: number -> (stub, check)"
    found, number = {}, None
    for cell in house.read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            heads = re.findall(r"^#+ *Exercise (\d+)", cell["source"], re.M)
            number = int(heads[-1]) if heads else None
        elif number is not None:
            found.setdefault(number, []).append(cell["source"])
    return {n: ("\n".join(cells[:-1]), cells[-1]) for n, cells in found.items()}


BOOK = {p.stem: exercises(p) for p in house.chapters()}
SOLUTIONS = {stem: blocks(house.NBS / "solutions" / f"{stem}.py") for stem in BOOK}
WRONG = {stem: blocks(house.ROOT / "tests" / "wrong" / f"{stem}.py") for stem in BOOK}
ALL = [(stem, n) for stem, found in BOOK.items() for n in found]
MISTAKES = [(stem, *key) for stem, wrong in WRONG.items() for key in wrong]


def right(answer, check):
    "Does the check accept the answer?"
    space = dict(torch=torch, math=math, show=show, __name__="exercise")
    torch.manual_seed(0)
    exec(answer, space)
    name = re.search(r"def (exercise_\w+)", check)[1]
    exec(check, space)
    return space[name]


@pytest.mark.parametrize("stem, n", ALL)
def test_the_solution_passes_and_the_stub_does_not(stem, n):
    stub, check = BOOK[stem][n]
    assert (n, "") in SOLUTIONS[stem], f"nbs/solutions/{stem}.py has no solution of exercise {n}"
    assert right(SOLUTIONS[stem][n, ""], check) is True, "the solution must pass its own check"
    assert right(stub, check) is False, "the check must notice that nothing has been written yet"


@pytest.mark.parametrize("stem, n", ALL)
def test_mistakes_are_known(stem, n):
    assert sum(m == n for m, _ in WRONG[stem]) >= 2, f"tests/wrong/{stem}.py needs two plausible wrong answers to exercise {n}"


@pytest.mark.parametrize("stem, n, why", MISTAKES)
def test_a_wrong_answer_is_told_what_is_wrong(stem, n, why, capsys):
    assert right(WRONG[stem][n, why], BOOK[stem][n][1]) is False, f"the check of exercise {n} lets this pass: {why}"
    said = capsys.readouterr().out
    assert "not yet" in said and "an assertion of the check failed" not in said, f"the check must say in words what is wrong with: {why}"
