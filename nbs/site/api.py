"""The reference: a page a module, from signatures, docstrings and the comments after parameters (nbdev's docments)."""
import ast
import importlib
import re
from functools import lru_cache

from fastcore.docments import docments

MARK = re.compile(r"^# %% \.\./nbs/(\w+)\.ipynb #([\w-]+)$", re.M)         # nbdev writes it above what a cell exports


@lru_cache
def definitions(path):
    "What a module defines, in the order of the file: syntax tree, names, notebook, cell"
    source, found = path.read_text(encoding="utf-8"), []
    marks = [(source.count("\n", 0, m.start()) + 1, *m.groups()) for m in MARK.finditer(source)]
    for node in ast.parse(source).body:
        names = [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)] or [getattr(node, "name", "__all__")]
        if names != ["__all__"]:
            found.append((node, names, *[place for line, *place in marks if line < node.lineno][-1]))
    return found


def homes(lib):
    "Where each public name is written: imm_edu.flow.OTFM -> 01_flow"
    return {f"{lib.name}.{p.stem}.{name}": notebook for p in lib.glob("[a-z]*.py") for _, names, notebook, _ in definitions(p) for name in names}


def plain(text):
    "Prose that Markdown must not read as emphasis, mathematics or a table; code in backticks stays"
    return "".join(p if p.startswith("`") else re.sub(r"([*$<|\\\[\]{}])", r"\\\1", p) for p in re.split(r"(`[^`]*`)", text))


def comment(line):
    return (re.findall(r"\s# *(.*)$", line) or [""])[0]


def doc(node, lines):
    "The docstring; of a constant or a function of one line, the comment behind it"
    if isinstance(node, ast.Assign) or node.lineno == node.end_lineno: text = comment(lines[node.lineno - 1])
    else: text = ast.get_docstring(node) or ""
    return plain(text) + "\n"


def signature(node):
    "The parameters with their defaults; what they are stands in the table"
    for a in ast.walk(node.args):
        if isinstance(a, ast.arg): a.annotation = None
    return re.sub(r"^self(, )?", "", ast.unparse(node.args))


def continued(node, lines):
    "Comments of parameters that go on in a line of their own, which docments does not read"
    more, last = {}, None
    for line in lines[node.lineno:node.body[0].lineno - 1]:
        if m := re.match(r"\s*\**(\w+)\b.*#", line): last = m[1]
        elif (m := re.match(r"\s*#\s*(.*)", line)) and last: more[last] = f"{more.get(last, '')} {m[1]}"
    return more


def parameters(function, node, lines):
    "What each parameter is, as a table; nothing where they stand on one line, without comments of their own"
    about, rows = docments(function, full=True), []
    if not node.args.args or node.args.args[-1].lineno == node.lineno or not any(p["docment"] for p in about.values()): return ""
    for name, p in about.items():
        text = " ".join((p["docment"] or "").split()) + continued(node, lines).get(name, "")
        kind = p["anno"].__name__ if isinstance(p["anno"], type) else str(p["anno"]).replace("|", "or")
        kind = f"`{kind}`" if kind not in ("_empty", "NoneType") else ""
        if name != "self" and (name != "return" or text):
            rows.append((f"`{name}`" if name != "return" else "*returns*", kind, plain(text)))
    return table(("parameter", "type", "what it is"), rows)


def fields(node, lines):
    "What the fields of a dataclass are"
    rows = [(f"`{f.target.id}`", f"`{ast.unparse(f.value)}`" if f.value else "", plain(comment(lines[f.lineno - 1])))
            for f in node.body if isinstance(f, ast.AnnAssign)]
    return table(("field", "default", "what it is"), rows) if rows else ""


def table(head, rows):
    return "\n".join(["", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), ""])


def method(thing, node, lines):
    "A method or property of a class"
    kind = "attribute" if node.decorator_list else "method"
    head = node.name if node.decorator_list else f"{node.name}({signature(node)})"
    body = "" if node.decorator_list else parameters(getattr(thing, node.name), node, lines)
    return f"\n:::{{py:{kind}}} {head}\n{doc(node, lines)}{body}:::\n"


def entry(module, node, name, lines):
    "The kind of a definition, its head, and what there is to say"
    thing, says = getattr(module, name), doc(node, lines)
    if isinstance(node, ast.Assign):
        value = ast.unparse(node.value)
        return "data", name, (f":value: {value}\n" if len(value) < 90 else "") + says
    if isinstance(node, ast.FunctionDef):
        return "function", f"{name}({signature(node)})", says + parameters(thing, node, lines)
    methods = {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}
    init = methods.get("__init__")
    says += parameters(thing.__init__, init, lines) if init else fields(node, lines)
    says += "".join(method(thing, m, lines) for n, m in methods.items() if n == "__call__" or not n.startswith("_"))
    return "class", f"{name}({signature(init)})" if init else name, says


def page(path, home, title):
    "The reference of one module, each definition with a link to the cell of the chapter that writes it"
    module, lines = importlib.import_module(f"{path.parent.name}.{path.stem}"), path.read_text(encoding="utf-8").splitlines()
    text = (f"# `{path.stem}`\n\n```{{py:module}} {module.__name__}\n```\n\n"
            f"What chapter [{title}](../{home}.ipynb) writes: `from {path.parent.name} import {path.stem}`.\n")
    for node, names, notebook, cell in definitions(path):
        for name in names:
            kind, head, says = entry(module, node, name, lines)
            where = f"{{.written}}\n{{ref}}`chapter {notebook.split('_')[0]} <cell-{cell}>`"
            text += f"\n::::{{py:{kind}}} {head}\n:module: {module.__name__}\n{says}\n{where}\n::::\n"
    return text


def pages(lib, parts):
    "Markdown by page name: `api`, the list of modules in the order of the book, and `api/MODULE` for each"
    titles = {name: title for rows in parts.values() for title, name in rows}
    home = {p: definitions(p)[0][2] for p in lib.glob("[a-z]*.py")}
    order = sorted(home, key=lambda p: (list(titles).index(home[p]), p.stem))
    out = {f"api/{p.stem}": page(p, home[p], titles[home[p]]) for p in order}
    rows = []
    for p in order:
        names = [n for node, names, *_ in definitions(p) for n in names if not isinstance(node, ast.Assign)]
        linked = ", ".join(f"{{py:obj}}`{n} <{lib.name}.{p.stem}.{n}>`" for n in names)
        rows.append((f"[{p.stem}](api/{p.stem}.md)", f"[{titles[home[p]]}]({home[p]}.ipynb)", linked))
    out["api"] = (f"# The package\n\nThe cells of the book are the package `{lib.name}`: a module a chapter, in the order of the book. "
                  "Every name leads to what it takes and gives, and from there to the cell that writes it.\n"
                  + table(("module", "chapter", "names"), rows)
                  + "\n```{toctree}\n:hidden:\n\n" + "\n".join(f"{p.stem} <api/{p.stem}>" for p in order) + "\n```\n")
    return out
