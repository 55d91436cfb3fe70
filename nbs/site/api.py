"""The reference: a page a module, from signatures, docstrings and the comments after parameters (nbdev's docments)."""
import ast
import importlib
import inspect
import re
from functools import lru_cache
from pathlib import Path

from fastcore.docments import docments

MARK = re.compile(r"^# %% \.\./nbs/(\w+)\.ipynb #([\w-]+)$")       # nbdev writes it above what a cell exports


@lru_cache
def public(path):
    "What a module defines: (syntax tree, the module's source, notebook, cell), in the order of the file"
    source = path.read_text(encoding="utf-8")
    lines, found, place = source.splitlines(), [], {}
    for n, line in enumerate(lines, 1):
        if m := MARK.match(line): place[n] = m.groups()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Assign)) and (marks := [n for n in place if n < node.lineno]):
            found.append((node, source, *place[marks[-1]]))
    return found


def homes(lib):
    "Where each public name is written: imm_edu.flow.OTFM -> 01_flow"
    return {f"{lib.name}.{p.stem}.{name}": notebook for p in sorted(lib.glob("[a-z]*.py")) for node, _, notebook, _ in public(p)
            for name in ([node.name] if hasattr(node, "name") else [t.id for t in node.targets if isinstance(t, ast.Name)])}


def plain(text):
    "Prose that Markdown must not read as emphasis, mathematics or a table; code in backticks stays"
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*$<|\\\[\]{}])", r"\\\1", p) for p in pieces)


def signature(node):
    "The parameters with their defaults; what they are stands in the table"
    for a in ast.walk(node.args):
        if isinstance(a, ast.arg): a.annotation = None
    return re.sub(r"^self(, )?", "", ast.unparse(node.args))


def continued(function):
    "Comments of parameters that go on in the next line, which docments does not read"
    more, last = {}, None
    for line in inspect.getsource(function).splitlines():
        if m := re.match(r"\s*\**(\w+)[:=,\s].*?#", line): last = m[1]
        elif (m := re.match(r"\s*#\s*(.*)", line)) and last: more[last] = f"{more.get(last, '')} {m[1]}"
        elif re.match(r"\s*\).*:", line) or line.strip().startswith('"'): break
    return more


def kind(annotation):
    "A type as a person writes it"
    if annotation in (inspect.Parameter.empty, type(None)): return ""
    text = getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
    return f"`{text.replace('|', 'or')}`"


def table(function, node):
    "What each parameter is, as a table; nothing where the parameters stand on one line, without comments of their own"
    if not node.args.args or node.args.args[-1].lineno == node.lineno: return ""
    about, more = docments(function, full=True), continued(function)
    if not any(p["docment"] for p in about.values()): return ""
    rows = []
    for name, p in about.items():
        if name == "self" or name == "return" and not p["docment"]: continue
        text = plain(" ".join((p["docment"] or "").split()) + more.get(name, ""))
        rows.append(f"| {'*returns*' if name == 'return' else f'`{name}`'} | {kind(p['anno'])} | {text} |")
    return "\n".join(["", "| parameter | type | what it is |", "|---|---|---|", *rows, ""])


def doc(node, source):
    "The docstring; of a function of one line, the comment behind it"
    behind = re.search(r"\s#\s*(.*)$", source.splitlines()[node.lineno - 1]) if node.lineno == node.end_lineno else None
    return plain(ast.get_docstring(node) or (behind[1] if behind else "")) + "\n"


def entry(module, node, source, notebook, cell):
    "One definition, with a link to the cell of the chapter that writes it"
    page = dict(index="start").get(notebook, notebook)
    where = f"\n{{.written}}\n{{ref}}`chapter {notebook.split('_')[0]} <cell-{cell}>`\n"
    if isinstance(node, ast.Assign):
        comment = re.search(r"\s# *(.*)$", source.splitlines()[node.lineno - 1])
        value = ast.unparse(node.value)
        shown = f":value: {value}\n" if len(value) < 90 else ""
        return "".join(f"\n:::{{py:data}} {t.id}\n:module: {module.__name__}\n{shown}{plain(comment[1]) if comment else ''}\n{where}:::\n"
                       for t in node.targets if isinstance(t, ast.Name))
    thing = getattr(module, node.name)
    if isinstance(node, ast.FunctionDef):
        return f"\n:::{{py:function}} {node.name}({signature(node)})\n:module: {module.__name__}\n{doc(node, source)}{table(thing, node)}{where}:::\n"
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
    init = next((m for m in methods if m.name == "__init__"), None)
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]                  # a dataclass documents its fields
    head = f"({signature(init)})" if init else ""
    body = doc(node, source) + (table(thing.__init__, init) if init else fields_table(fields, inspect.getsource(thing)))
    for m in methods:
        if m.name == "__call__" or not m.name.startswith("_"):
            body += f"\n:::{{py:method}} {m.name}({signature(m)})\n{doc(m, source)}{table(getattr(thing, m.name), m)}:::\n" if not m.decorator_list else \
                    f"\n:::{{py:attribute}} {m.name}\n{doc(m, source)}:::\n"
    return f"\n::::{{py:class}} {node.name}{head}\n:module: {module.__name__}\n{body}{where}::::\n"


def fields_table(fields, source):
    if not fields: return ""
    notes = dict(re.findall(r"^    (\w+) *:.*?# *(.*)$", source, re.M))
    rows = [f"| `{f.target.id}` | {f'`{ast.unparse(f.value)}`' if f.value else ''} | {plain(notes.get(f.target.id, ''))} |" for f in fields]
    return "\n".join(["", "| field | default | what it is |", "|---|---|---|", *rows, ""])


def pages(lib, parts):
    "Markdown by page name: `api`, the list of modules in the order of the book, and `api/MODULE` for each"
    chapters = [(title, name) for rows in parts.values() for title, name in rows]
    written, out = {}, {}
    for p in sorted(lib.glob("[a-z]*.py")):
        home = public(p)[0][2]
        title = dict((n, t) for t, n in chapters)[home]
        written[p.stem] = ([n for _, n in chapters].index(home), title, home)
        module = importlib.import_module(f"{lib.name}.{p.stem}")
        body = "".join(entry(module, *found) for found in public(p))
        out[f"api/{p.stem}"] = (f"# `{p.stem}`\n\n```{{py:module}} {lib.name}.{p.stem}\n```\n\n"
                                f"What chapter [{title}](../{home}.ipynb) writes: `from {lib.name} import {p.stem}`.\n{body}")
    order = sorted(written, key=lambda name: (written[name][0], name))
    rows = "\n".join(f"| [{n}](api/{n}.md) | [{written[n][1]}]({written[n][2]}.ipynb) | {', '.join(main_names(lib / f'{n}.py'))} |" for n in order)
    tree = "```{toctree}\n:hidden:\n\n" + "\n".join(f"{n} <api/{n}>" for n in order) + "\n```"
    out["api"] = (f"# The package\n\nThe cells of the book are the package `{lib.name}`: a module a chapter, in the order of the book. "
                  f"Every name leads to what it takes and gives, and from there to the cell that writes it.\n\n"
                  f"| module | chapter | names |\n|---|---|---|\n{rows}\n\n{tree}\n")
    return out


def main_names(path):
    "Classes and functions of a module, for its row in the list"
    return [f"{{py:obj}}`{node.name} <imm_edu.{path.stem}.{node.name}>`" for node, *_ in public(path) if hasattr(node, "name")]
