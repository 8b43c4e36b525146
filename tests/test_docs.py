"""References in code and pages lead to something inside the repository."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "formulas").glob("*.md"))
FOLDERS = ("matterform", "crystalformer", "atomformer", "agedi", "experiments", "benchmarks", "tests")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path != pathlib.Path(__file__)]
REFERENCE = re.compile(r"docs/formulas/(\w+\.md)(?:,\s+(eqs?\.|sections?)\s+(\d+)(?:\s+(?:and|to)\s+(\d+))?)?")
OUTSIDE = re.compile(r"\bspec(?:s|ification)? sections? \d|\bspec \d|design\.md|style\.md|shared/specs")


def tags(text):
    """The numbers of a page's equations, in order."""
    return [int(number) for number in re.findall(r"\\tag\{(\d+)\}", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_equations_are_numbered_in_order(page):
    text = page.read_text(encoding="utf-8")
    assert tags(text) == list(range(1, len(tags(text)) + 1))
    assert text.count("$$") % 2 == 0


def test_references_to_formulas_lead_somewhere():
    broken = []
    for path in CODE:
        for name, kind, *numbers in REFERENCE.findall(path.read_text(encoding="utf-8")):
            page = ROOT / "docs" / "formulas" / name
            text = page.read_text(encoding="utf-8") if page.exists() else ""
            known = tags(text) if kind.startswith("eq") else [int(n) for n in re.findall(r"^## (\d+)\.", text, re.M)]
            if not text or not {int(number) for number in numbers if number} <= set(known):
                broken.append(f"{path.relative_to(ROOT)}: {name} {kind} {' '.join(numbers)}")
    assert broken == []


def test_nothing_refers_to_documents_outside_the_repository():
    found = [path for path in CODE if OUTSIDE.search(path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in found] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"])
def test_links_of_a_page_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def raised(function):
    """What a function raises itself, not only through what it calls; bare `raise` and exits aside."""
    stack, found = list(ast.iter_child_nodes(function)), []
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            found.append(ast.unparse(node.exc))
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            stack.extend(ast.iter_child_nodes(node))
    return [text for text in found if not re.search("NotImplementedError|Exit", text)]


def test_public_functions_that_raise_say_so():
    silent = []
    for path in CODE:
        place = path.relative_to(ROOT)
        if place.parts[0] not in FOLDERS[:4] or "assets" in place.parts:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            # A docstring of one line may say it in a clause.
            if public and raised(node) and not re.search("Raises:|Error", ast.get_docstring(node) or ""):
                silent.append(f"{place}: {node.name}")
    assert silent == []
