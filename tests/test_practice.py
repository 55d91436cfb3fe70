"Chapter 40: what is remembered of an exercise, and questions that can be answered."
import json
import re
import shutil

import pytest

import house
from imm_edu import practice, show

QUIZZES = sorted((house.NBS / "quiz").glob("*.json"))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    "A folder with one chapter and the practice page, where a reader works"
    for name in ("01_flow", "40_practice"):
        shutil.copy(house.NBS / f"{name}.ipynb", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def solve(tmp_path, text="assert True"):
    "Run a check as a notebook would, from a source that can be read"
    source = f"@show.check\ndef exercise_1():\n    {text}\n"
    (file := tmp_path / "cell.py").write_text(source)
    exec(compile(source, str(file), "exec"), dict(show=show, __name__="cell"))
    return source


def test_what_was_right_is_remembered(desk):
    solve(desk, "assert False, 'no'")
    assert practice.progress() == {}, "a check that fails leaves nothing"
    source = solve(desk)
    assert practice.progress().keys() == {practice.hashlib.blake2b(source.strip().encode(), digest_size=8).hexdigest()}
    day, = practice.progress().values()
    (desk / "practice.json").write_text(json.dumps({key: "2020-01-01" for key in practice.progress()}))
    solve(desk)
    assert [*practice.progress().values()] == ["2020-01-01"], "the first day stays"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)


def test_a_solved_exercise_is_marked_in_the_table(desk):
    first = practice.exercises()[0]
    assert first[0] == "01_flow" and first[1].startswith("Exercise 1"), "the chapter's exercises, in order"
    (desk / "practice.json").write_text(json.dumps({first[2]: "2026-01-02"}))
    rows = practice.exercise_table().splitlines()
    assert "2026-01-02" in rows[2] and "2026-01-02" not in "".join(rows[3:]), "this one and no other"


def test_the_key_is_that_of_the_cell(desk):
    "What a chapter's own check leaves is what the page looks for"
    cell = next(c["source"] for c in house.read(desk / "01_flow.ipynb")["cells"] if c["source"].startswith("@show.check"))
    (file := desk / "cell.py").write_text(cell)
    exec(compile(cell.replace("@show.check", "@remember"), str(file), "exec"), dict(remember=show.remember, __name__="cell"))
    assert practice.exercises()[0][2] in practice.progress(), "the hash of the function must be the hash of the cell"


def test_elsewhere_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    solve(tmp_path)
    assert not (tmp_path / "practice.json").exists()


def test_a_file_that_is_no_json_stays_as_it_is(desk, capsys):
    (desk / "practice.json").write_text("mine")
    solve(desk)
    assert (desk / "practice.json").read_text() == "mine" and "is no JSON" in capsys.readouterr().out
    assert practice.progress() == {}


# ---- questions

def test_every_chapter_has_questions():
    asked = {p.stem for p in house.chapters()} - {"index", "40_practice", "41_howto"}
    assert {p.stem for p in QUIZZES} == asked, "a file in nbs/quiz for each chapter, and none for others"


@pytest.mark.parametrize("path", QUIZZES, ids=lambda p: p.stem)
def test_questions(path):
    questions = json.loads(path.read_text(encoding="utf-8"))
    assert len(questions) == 8 and len({q["question"] for q in questions}) == 8, "eight different ones"
    for q in questions:
        texts = [a["text"] for a in q["answers"]]
        assert 3 <= len(texts) == len(set(texts)) <= 4 and 0 <= q["right"] < len(texts), f"three or four answers, one right: {q['question']}"
        for text in [q["question"], *texts, *(a["why"] for a in q["answers"])]:
            assert text.strip() and text.count("`") % 2 == 0 and text.count("$") % 2 == 0, f"an open formula or piece of code: {text}"
    places = [q["right"] for q in questions]
    assert max(places.count(i) for i in range(4)) <= 4, "the right answer must not be found by its place"
    longest = sum(max(range(len(q["answers"])), key=lambda i: len(q["answers"][i]["text"])) == q["right"] for q in questions)
    assert longest <= 4, "nor by its length"


def test_a_question_as_html():
    text = practice.marked_up("if `a < b` and $x < y$ then *not* <b>")
    assert text == "if <code>a &lt; b</code> and \\(x &lt; y\\) then <em>not</em> &lt;b&gt;", "code, formula, stress; and no tag of the text's own"
    page = practice.quiz("01_flow", house.NBS / "quiz")
    assert page.count("<details") == page.count("</details>") and page.count("<b>Right.</b>") == 8, "one right answer to each question"
    with pytest.raises(FileNotFoundError, match="chapter 'nope' has no questions .* 01_flow"):
        practice.quiz("nope", house.NBS / "quiz")
