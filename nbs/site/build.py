"""Build the book as a site: `python nbs/site/build.py` writes `_site/`, and `make docs` calls it.

Chapters, front page, glossary and the reference are laid out in `build/site/`; Sphinx makes pages of them, with warnings as errors.
No notebook is run: the site shows the outputs that are committed. GIT_URL in the environment, or git_url in settings.ini, adds
the doors to Colab, Kaggle and the notebook's source.
"""
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT, NBS = SITE.parents[1], SITE.parent
OUT, HTML, STAGE, STATIC = ROOT / "_site", ROOT / "build" / "html", ROOT / "build" / "site", ROOT / "build" / "static"
PLAYER = SITE / "player"            # the browser player, where it is there
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(SITE)]
import api
import house
from imm_edu import practice

PAGE = {"index": "start"}           # the site's own index is the front page


def parts():
    "The chapters as the README's tables order them: caption -> [(title, notebook)], the notebook `index` under Start"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = re.findall(r"^([A-Z][^,:\n]*)[,:][^\n]*\n\n(\| chapter.*?)\n\n", readme, re.M | re.S)
    rows = {caption: re.findall(r"\[([^\]]+)\]\(nbs/(\w+)\.ipynb\)", table) for caption, table in tables}
    start = [("IMM in sixty lines", "index")]
    return {"Start": start} | {caption: [r for r in chapters if r[1] != "index"] for caption, chapters in rows.items()}


def toctrees():
    "The sidebar: the road first, then the reference"
    lists = {c: [f"{title} <{PAGE.get(name, name)}>" for title, name in rows] for c, rows in parts().items()}
    lists["Reference"] = ["Glossary <glossary>", "The package <api>"]
    return "\n\n".join(f"```{{toctree}}\n:hidden:\n:caption: {c}\n\n" + "\n".join(rows) + "\n```" for c, rows in lists.items())


def doors(name, git_url, branch):
    "Where this notebook can be run or read elsewhere; nothing as long as the book has no address"
    if not git_url:
        return ""
    file = f"{git_url}/blob/{branch}/nbs/{name}.ipynb"
    colab = file.replace("https://github.com/", "https://colab.research.google.com/github/")
    return (f"\n\n:::{{container}} doors-line\n[Open in Colab]({colab}) [Open in Kaggle](https://kaggle.com/kernels/welcome?src={file}) "
            f"[This notebook's source]({file})\n:::\n")


def chapter(path, git_url="", branch="main"):
    "A notebook as the site shows it: directives gone, folded cells folded, places to link to, solutions and questions folded at the end"
    nb, cells, heading = house.read(path), [], ""
    for cell in house.with_door(nb, path.stem, "")["cells"]:          # the page has doors of its own
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ +(.+)$", cell["source"], re.M) or [heading])[-1]
            cell["source"] = re.sub(r"\]\(solutions/\w+\.py\)", "](#Solutions)", cell["source"].replace("](index.ipynb", "](start.ipynb"))
        else:
            exported = house.exports(cell)
            cell["source"] = re.sub(r"^#\|.*\n?", "", cell["source"], flags=re.M).strip("\n")
            if not cell["source"]: continue                             # it held #|default_exp and nothing else
            folded = cell["metadata"].get("jupyter", {}).get("source_hidden")
            alt = re.sub(r"[*`$\\]", "", heading)
            cell["metadata"] = dict(tags=["hide-input"] if folded else [], mystnb=dict(image=dict(alt=f"Figure: {alt}")))
            if exported: cells.append(markdown(f"(cell-{cell['id']})="))
        cells.append(cell)
    cells[0]["source"] = re.sub(r"^(# .*)$", lambda m: m[1] + doors(path.stem, git_url, branch), cells[0]["source"], count=1, flags=re.M)
    solution = NBS / "solutions" / f"{path.stem}.py"
    if solution.exists():
        folded = dict(cell_type="code", id="solutions", source=solution.read_text(encoding="utf-8").strip(), outputs=[],
                      execution_count=None, metadata=dict(tags=["hide-input"], mystnb=dict(code_prompt_show="Show the solutions")))
        cells[-1:-1] = [markdown("## Solutions\n\nTry first; the check of each exercise tells you what is wrong."), folded]
    if (NBS / "quiz" / f"{path.stem}.json").exists():
        cells[-1:-1] = [markdown("## Questions\n\nChoose an answer; it unfolds into the reason why it is right or wrong.\n\n"
                                 f"```{{raw}} html\n{practice.quiz(path.stem, NBS / 'quiz')}\n```")]
    return dict(nb, cells=cells)


def markdown(text):
    return dict(cell_type="markdown", id="site-" + re.sub(r"\W+", "-", text.lower())[:50], metadata={}, source=text)


def front():
    "The front page with its board, its player if there is one, and pictures out of the notebooks"
    text = house.with_board((SITE / "front.md").read_text(encoding="utf-8"))
    for cell_id in set(re.findall(r"pictures/([\w-]+)\.png", text)):
        name, = [p for p in house.chapters() if p.stem.split("_")[0] == cell_id.rsplit("-", 1)[0]]
        cell, = [c for c in house.read(name)["cells"] if c["id"] == cell_id]
        picture = house.pictures(dict(cells=[cell]))[-1]
        (STAGE / "pictures").mkdir(exist_ok=True)
        (STAGE / "pictures" / f"{cell_id}.png").write_bytes(base64.b64decode(picture))
    player = PLAYER / "player.html"
    html = f"``````{{raw}} html\n{player.read_text(encoding='utf-8')}\n``````" if player.exists() else ""
    return text.replace("<!-- player -->", html).replace("<!-- toctrees -->", toctrees())


def stage(git_url, branch):
    "Everything Sphinx reads, in build/site and build/static"
    for folder in (STAGE, STATIC): shutil.rmtree(folder, ignore_errors=True)
    (STAGE / "api").mkdir(parents=True)
    STATIC.mkdir()
    for path in house.chapters():
        page = STAGE / f"{PAGE.get(path.stem, path.stem)}.ipynb"
        page.write_text(json.dumps(chapter(path, git_url, branch)), encoding="utf-8")
    for name, text in api.pages(ROOT / "imm_edu", parts()).items():
        (STAGE / f"{name}.md").write_text(text, encoding="utf-8")
    (STAGE / "index.md").write_text(front(), encoding="utf-8")
    shutil.copy(SITE / "glossary.md", STAGE)
    shutil.copytree(NBS / "results", STAGE / "results", ignore=lambda folder, names: [n for n in names if not n.endswith(".png")])
    if (PLAYER / "pack.py").exists():               # its scripts and models, which the front page finds in _static
        subprocess.run([sys.executable, PLAYER / "pack.py", STATIC], cwd=ROOT, env=os.environ | dict(PYTHONPATH=str(ROOT)), check=True)


def main():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    stage((os.environ.get("GIT_URL") or ini["DEFAULT"]["git_url"]).rstrip("/"), ini["DEFAULT"]["branch"])
    shutil.rmtree(HTML, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "auto", "-c", SITE, "-d", ROOT / "build" / "doctrees", STAGE, HTML])
    if done.returncode:
        raise SystemExit("The site is not right yet: mend the warnings above, they name file and line.")
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(HTML, OUT)                              # not made there at once: myst-nb writes a folder beside it
    print(f"The book stands in {OUT.relative_to(ROOT)}/: open {OUT.relative_to(ROOT)}/index.html, no server needed.")


if __name__ == "__main__":
    main()
