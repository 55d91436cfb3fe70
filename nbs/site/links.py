"""Links that nobody has to type: from `code` in the prose to the reference, and from a term's first use on a page to the glossary."""
import json
import re
from pathlib import Path

import api
from docutils import nodes

HOMES = api.homes(Path(__file__).resolve().parents[2] / "imm_edu")
ROAD = {"exact", "flow", "mmd", "precond", "mlp", "dit", "unet", "objective", "data", "train", "sample", "run"}
# Where a page means something else by a term: channels in groups, the diagonal of a picture or matrix, a teacher to distil from
HOMONYMS = {("05_unet", "group"), ("03_precond", "diagonal"), ("10_metrics", "diagonal"), ("start", "teacher")}


def jupyter_slug(title):
    return title.replace(" ", "-")


def shadowed(path):
    "Names that a notebook defines for itself: there they do not mean the package's"
    if not path.exists(): return set()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    own = [c["source"] for c, before in zip(cells[1:], cells) if c["cell_type"] == "code" and not before["source"].startswith("(cell-")]
    return set(re.findall(r"^(?:def|class) (\w+)", "\n".join(own), re.M))


def target(text, objects, page, hidden):
    "The definition a piece of code names, as (page, anchor), or None where it may mean something else"
    if not (m := re.match(r"[A-Za-z_][\w.]*(?=\(|$)", text)) or m[0] in hidden: return None
    home = {key: HOMES[".".join(key.split(".")[:3])] for key in objects if key.endswith("." + m[0].removeprefix("imm_edu."))}
    word = m[0] == text and re.fullmatch("[a-z]+", text)                # `images` means many things outside its chapter
    found = [key for key in home if home[key] == page] or [
        key for key in home if key.count(".") <= 2 + m[0].count(".")    # a method only with its class
        and (home[key] < page or not page[0].isdigit()) and not (word and key.split(".")[1] not in ROAD)]     # chapters use earlier ones
    nearest = [key for key in found if key.count(".") == min(k.count(".") for k in found)]
    return objects[nearest[0]] if len(nearest) == 1 else None


def within(node, kinds):
    while node and not isinstance(node, kinds): node = node.parent
    return node is not None


def link(app, page, to, node, css):
    uri = f"{app.builder.get_relative_uri(page, to[0])}#{to[1]}" if page != to[0] else f"#{to[1]}"
    return nodes.reference("", "", node, refuri=uri, internal=True, classes=[css])


def link_code(app, doctree, page):
    "Wrap every `name` of the package in a link to the reference"
    objects = {name: (o.docname, o.node_id) for name, o in app.env.domains["py"].objects.items() if o.objtype != "module"}
    hidden = shadowed(app.srcdir / f"{page}.ipynb")
    for node in [n for n in doctree.findall(nodes.literal) if not within(n.parent, (nodes.reference, nodes.title))]:
        cell = node.parent.parent
        if page.startswith("api/") and isinstance(cell, nodes.entry) and cell.parent.index(cell) == 0: continue      # a parameter's own name
        if to := target(node.astext(), objects, page, hidden):
            node.replace_self(link(app, page, to, node.deepcopy(), "api-link"))


def link_terms(app, doctree, page):
    "Link the first use of each term of the glossary"
    terms = {shown.lower(): (doc, anchor) for _, shown, kind, doc, anchor, _ in app.env.domains["std"].get_objects()
             if kind == "term" and (page, shown) not in HOMONYMS}
    words = "|".join(re.escape(t) for t in sorted(terms, key=len, reverse=True))
    closed = (nodes.reference, nodes.title, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.thead, nodes.raw)
    for text in [n for n in doctree.findall(nodes.Text) if not within(n.parent, closed)]:
        pieces, start = [], 0
        for m in re.finditer(rf"(?<![\w-])({words})s?(?![\w-])", text, re.I):
            if to := terms.pop(m[1].lower(), None):
                pieces += [nodes.Text(text[start:m.start()]), link(app, page, to, nodes.Text(m[0]), "term-link")]
                start = m.end()
        if pieces: text.parent.replace(text, [*pieces, nodes.Text(text[start:])])


def on_resolved(app, doctree, page):
    link_code(app, doctree, page)
    if page not in ("glossary", "index") and not page.startswith("api"): link_terms(app, doctree, page)


def setup(app):
    app.connect("doctree-resolved", on_resolved)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
