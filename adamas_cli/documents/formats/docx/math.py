"""Equations of Word documents (Office MathML) as LaTeX."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree.ElementTree import Element

from adamas_cli.documents.formats.docx.markup_xml import M, W, parents, replace, run, value

_OPERATORS = {
    "∑": "\\sum", "∏": "\\prod", "∐": "\\coprod", "∫": "\\int", "∬": "\\iint", "∭": "\\iiint",
    "∮": "\\oint", "\u22c3": "\\bigcup", "⋂": "\\bigcap", "\u22c1": "\\bigvee", "⋀": "\\bigwedge",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "\\grave", "\u0301": "\\acute", "\u0302": "\\hat", "\u0303": "\\tilde", "\u0304": "\\bar",
    "\u0305": "\\overline", "\u0306": "\\breve", "\u0307": "\\dot", "\u0308": "\\ddot", "\u030c": "\\check",
    "\u20d7": "\\vec", "\u20d6": "\\overleftarrow", "^": "\\hat", "~": "\\tilde", "¯": "\\bar", "→": "\\vec",
}  # fmt: skip
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "log",
    "ln", "lg", "exp", "lim", "max", "min", "sup", "inf", "det", "dim", "gcd", "ker", "arg", "deg", "Pr",
}  # fmt: skip
_ESCAPES = {"{": "\\{", "}": "\\}", "%": "\\%", "#": "\\#", "$": "\\$", "\\": "\\backslash "}
_ESCAPES |= {script: f"^{{{digit}}}" for digit, script in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_ESCAPES |= {script: f"_{{{digit}}}" for digit, script in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_FENCES = {"{": "\\{", "}": "\\}", "‖": "\\|", "⟨": "\\langle", "⟩": "\\rangle", "⌈": "\\lceil",
           "⌉": "\\rceil", "⌊": "\\lfloor", "⌋": "\\rfloor", "": "."}  # fmt: skip


def write_equations(root: Element) -> None:
    """Replace each equation by LaTeX: `$...$` inside a line, `$$...$$` on its own."""
    above = parents(root)
    for node in list(root.iter(f"{M}oMathPara")):
        equations = " \\\\ ".join(latex(equation) for equation in node.iter(f"{M}oMath"))
        new = run(f"$${equations}$$")
        replace(above[node], node, [new])
        above[new] = above[node]
        node.clear()
    for node in list(root.iter(f"{M}oMath")):
        replace(above[node], node, [run(f"${latex(node)}$")])


def latex(node: Element) -> str:
    """An equation's element as LaTeX; its content if LaTeX has no form for the element."""
    name = node.tag.rpartition("}")[2]
    if node.tag in (f"{W}del", f"{W}moveFrom"):
        return ""
    if node.tag == f"{M}t" or node.tag == f"{W}t":
        return "".join(_ESCAPES.get(character, character) for character in node.text or "")
    if name.endswith("Pr") or name == "ctrlPr":
        return ""
    write = _FORMS.get(name) if node.tag.startswith(M) else None
    return write(node) if write is not None else _inside(node)


def _inside(node: Element | None) -> str:
    return "".join(latex(child) for child in node) if node is not None else ""


def _part(node: Element, name: str) -> str:
    return _inside(node.find(f"{M}{name}")).strip()


def _property(node: Element, name: str, default: str = "") -> str:
    """A property's value; `default` if the file omits it, empty if it is given without a value."""
    found = node.find(f"{M}{node.tag.rpartition('}')[2]}Pr/{M}{name}")
    return default if found is None else value(found)


def _on(node: Element, name: str) -> bool:
    found = node.find(f"{M}{node.tag.rpartition('}')[2]}Pr/{M}{name}")
    return found is not None and value(found, "1") not in ("0", "off", "false")


def _fraction(node: Element) -> str:
    above, below = _part(node, "num"), _part(node, "den")
    kind = _property(node, "type")
    if kind in ("lin", "skw"):
        return f"{{{above}}}/{{{below}}}"
    return f"\\binom{{{above}}}{{{below}}}" if kind == "noBar" else f"\\frac{{{above}}}{{{below}}}"


def _root(node: Element) -> str:
    degree = "" if _on(node, "degHide") else _part(node, "deg")
    return f"\\sqrt[{degree}]{{{_part(node, 'e')}}}" if degree else f"\\sqrt{{{_part(node, 'e')}}}"


def _scripts(node: Element) -> str:
    below, above = _part(node, "sub"), _part(node, "sup")
    written = (f"_{{{below}}}" if below else "") + (f"^{{{above}}}" if above else "")
    base = _part(node, "e")
    return f"{{}}{written}{{{base}}}" if node.tag == f"{M}sPre" else f"{_grouped(base)}{written}"


def _grouped(base: str) -> str:
    return base if len(base) == 1 or base.isalnum() or base.startswith("\\") else f"{{{base}}}"


def _operator(node: Element) -> str:
    sign = _property(node, "chr", "∫")
    below = "" if _on(node, "subHide") else _part(node, "sub")
    above = "" if _on(node, "supHide") else _part(node, "sup")
    limits = (f"_{{{below}}}" if below else "") + (f"^{{{above}}}" if above else "")
    return f"{_OPERATORS.get(sign, sign)}{limits} {_part(node, 'e')}"


def _delimited(node: Element) -> str:
    begin, end = _property(node, "begChr", "("), _property(node, "endChr", ")")
    between = _property(node, "sepChr", "|")
    inner = between.join(_inside(part).strip() for part in node.findall(f"{M}e"))
    return f"\\left{_FENCES.get(begin, begin)} {inner} \\right{_FENCES.get(end, end)}"


def _function(node: Element) -> str:
    name = _part(node, "fName")
    known = f"\\{name}" if name in _FUNCTIONS else name
    return f"{known} {_part(node, 'e')}"


def _accent(node: Element) -> str:
    sign = _property(node, "chr", "\u0302")
    accent = _ACCENTS.get(sign, "\\hat")
    return f"{accent}{{{_part(node, 'e')}}}"


def _bar(node: Element) -> str:
    side = "over" if _property(node, "pos") == "top" else "under"
    return f"\\{side}line{{{_part(node, 'e')}}}"


def _limit(node: Element) -> str:
    base, limit = _part(node, "e"), _part(node, "lim")
    known = f"\\{base}" if base in _FUNCTIONS else base
    return f"{known}_{{{limit}}}" if node.tag == f"{M}limLow" else f"{known}^{{{limit}}}"


def _group(node: Element) -> str:
    sign, top = _property(node, "chr", "⏟"), _property(node, "pos") == "top"
    kind = "brace" if sign in "⏟⏞" else "line"
    return f"\\{'over' if top else 'under'}{kind}{{{_part(node, 'e')}}}"


def _matrix(node: Element) -> str:
    rows = (
        " & ".join(_inside(cell).strip() for cell in row.findall(f"{M}e")) for row in node.findall(f"{M}mr")
    )
    return "\\begin{matrix} " + " \\\\ ".join(rows) + " \\end{matrix}"


def _equations(node: Element) -> str:
    rows = (_inside(row).strip() for row in node.findall(f"{M}e"))
    return "\\begin{aligned} " + " \\\\ ".join(rows) + " \\end{aligned}"


_FORMS: dict[str, Callable[[Element], str]] = {
    "f": _fraction,
    "rad": _root,
    "sSup": _scripts,
    "sSub": _scripts,
    "sSubSup": _scripts,
    "sPre": _scripts,
    "nary": _operator,
    "d": _delimited,
    "func": _function,
    "acc": _accent,
    "bar": _bar,
    "limLow": _limit,
    "limUpp": _limit,
    "groupChr": _group,
    "m": _matrix,
    "eqArr": _equations,
}
