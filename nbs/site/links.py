"""Links that nobody has to type: from `code` in the prose to the reference, and from a term's first use on a page to the glossary."""
import json
import re
from pathlib import Path

import api
from docutils import nodes

LIB = Path(__file__).resolve().parents[2] / "imm_edu"
ROAD = {"exact", "flow", "mmd", "precond", "mlp", "dit", "unet", "objective", "data", "train", "sample", "run"}


def jupyter_slug(title):
    return title.replace(" ", "-")


def shadowed(path):
    "Names that a notebook defines for itself: there they do not mean the package's"
    if not path.exists(): return set()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    own = [c["source"] for c, before in zip(cells[1:], cells) if c["cell_type"] == "code" and not before["source"].startswith("(cell-")]
    return set(re.findall(r"^(?:def|class) (\w+)", "\n".join(own), re.M))


def target(text, objects, here, hidden):
    "The definition a piece of code names, as (page, anchor), or None"
    name = re.match(r"[A-Za-z_][\w.]*(?=\(|$)", text)
    if not name: return None
    name = name[0].removeprefix("imm_edu.")
    found = [key for key in objects if key.endswith(f".{name}")]
    at_home = [key for key in found if ".".join(key.split(".")[:3]) in here]
    plain = name == text and re.fullmatch("[a-z]+", name)              # a word such as `images` means many things elsewhere
    if name in hidden or plain and not at_home: found = [k for k in found if k.split(".")[1] in ROAD and k.count(".") == 2 and name not in hidden]
    best = at_home if name not in hidden and at_home else found
    shortest = [key for key in best if key.count(".") == min(k.count(".") for k in best)]
    return objects[shortest[0]] if len(shortest) == 1 else None


def link(app, page, to, node, css):
    uri = f"{app.builder.get_relative_uri(page, to[0])}#{to[1]}" if page != to[0] else f"#{to[1]}"
    return nodes.reference("", "", node, refuri=uri, internal=True, classes=[css])


def link_code(app, doctree, page):
    "Wrap every `name` of the package in a link to the reference"
    objects = {name: (o.docname, o.node_id) for name, o in app.env.domains["py"].objects.items() if o.objtype != "module"}
    here = {name for name, notebook in api.homes(LIB).items() if notebook == page}
    hidden = shadowed(app.srcdir / f"{page}.ipynb")
    for node in list(doctree.findall(lambda n: type(n) is nodes.literal)):
        inside = node.parent
        while inside and not isinstance(inside, (nodes.reference, nodes.title)): inside = inside.parent
        if not inside and (to := target(node.astext(), objects, here, hidden)):
            node.replace_self(link(app, page, to, node.deepcopy(), "api-link"))


def link_terms(app, doctree, page):
    "Link the first use of each term of the glossary"
    terms = {shown.lower(): (doc, anchor) for _, shown, kind, doc, anchor, _ in app.env.domains["std"].get_objects() if kind == "term"}
    closed = (nodes.reference, nodes.title, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.thead, nodes.raw)
    for text in list(doctree.findall(nodes.Text)):
        above = text.parent
        while above and not isinstance(above, closed): above = above.parent
        if above or not terms: continue
        words = "|".join(re.escape(t) for t in sorted(terms, key=len, reverse=True))
        pieces, rest = [], str(text)
        while terms and (m := re.search(rf"(?<![\w-])({words})s?(?![\w-])", rest, re.I)):
            to = terms.pop(m[1].lower())
            pieces += [nodes.Text(rest[:m.start()]), link(app, page, to, nodes.Text(m[0]), "term-link")]
            rest = rest[m.end():]
            words = "|".join(re.escape(t) for t in sorted(terms, key=len, reverse=True)) or "(?!)"
        if pieces: text.parent.replace(text, pieces + [nodes.Text(rest)])


def on_resolved(app, doctree, page):
    link_code(app, doctree, page)
    if page not in ("glossary", "index") and not page.startswith("api"): link_terms(app, doctree, page)


def setup(app):
    app.connect("doctree-resolved", on_resolved)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
