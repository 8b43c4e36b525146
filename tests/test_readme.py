"""Pages and help texts tell the truth: their command lines parse, and their snippets name what exists."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
import shlex
import types

import pytest

from benchmarks import aliases
from matterform.arguments import flags_of, parse

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOLDERS = ("matterform", "crystalformer", "atomformer", "agedi", "experiments", "benchmarks")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
PROGRAMS = {program: importlib.import_module(f"{program}.cli").COMMANDS for program in aliases.PROGRAMS}
COMMANDS = {f"{program} {command.name}": command for program in PROGRAMS for command in PROGRAMS[program]}
ONE_LINE = re.compile(rf"^\W*((?:{'|'.join(COMMANDS)})(?: .*)?)$", re.MULTILINE)
QUOTED = re.compile(rf"`((?:{'|'.join(COMMANDS)}) [^`]+)`")
CONTINUED = re.compile(r"\s*\\?\n\s*(?=--\w)")  # the next line begins with a flag
REST = re.compile(r"  #.*|  \(.*|\"\"\"|\\n.*")  # what follows a command line
SURE = re.compile(r"--|/|_|\.\w")  # flags and files, as prose about a command has none
PLACEHOLDER = re.compile(r"[{}<>…]|\b(?!A\b)[A-Z][A-Z]+\b(?![.\w])|\.\.\.")
PLACEHOLDERS = ("FILE", "N", "WEIGHTS", "SOURCE", "OUT", "TABLE.csv", "MINUTES")


def command_lines():
    """Command lines of pages, docstrings and help, each with the file it stands in."""
    found = {}
    for path in [*PAGES, *CODE]:
        text = CONTINUED.sub(" ", path.read_text(encoding="utf-8"))
        for line in (*ONE_LINE.findall(text), *QUOTED.findall(text)):
            line = REST.split(line)[0].strip(" `'\",;")
            if SURE.search(line) and not PLACEHOLDER.search(line) and not set(PLACEHOLDERS) & set(line.split()):
                found.setdefault(line, path.relative_to(ROOT))
    return [pytest.param(line, id=f"{path}: {line}") for line, path in found.items()]


LINES = command_lines()


@pytest.mark.parametrize("line", LINES)
def test_command_lines_are_understood_in_our_words(line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program, name, *words = shlex.split(line)
    command = COMMANDS[f"{program} {name}"]
    given = [word.split("=")[0] for word in words if word.startswith("--")]
    if not {"--help", "--resume"} & set(given):  # what a run that is resumed needs lies in its folder
        if program == "agedi":
            words = importlib.import_module("agedi.cli.published").understand(command, words)
        assert parse(command, program, words) is not None
    ours = {flag.name for flag in flags_of(command.arguments)} | {"--config", "--resume", "--help"}
    assert sorted(set(given) - ours) == []


def test_pages_show_command_lines_of_every_family():
    assert {line.values[0].split()[0] for line in LINES} == set(PROGRAMS)
    assert len(LINES) > 40


def snippets():
    """Python blocks of README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def resolve(node, names):
    """The object that a dotted name means, or None where it is a variable of the snippet."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, names)
        return getattr(owner, node.attr) if isinstance(owner, types.ModuleType) else None
    return None


def imported(tree):
    """Names that a snippet imports, with what they mean."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
                first = alias.name.split(".")[0]
                names[alias.asname or first] = importlib.import_module(alias.name if alias.asname else first)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.name] = getattr(importlib.import_module(node.module), alias.name)
    return names


def options_of(function):
    """Names that a function takes by keyword, or None if it takes whatever its dataclasses declare."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def fields_of(*classes):
    """Fields of dataclasses and of those nested in them, with their aliases."""
    return {
        name
        for cls in classes
        for flag in flags_of(cls)
        for name in (flag.field.name, *flag.field.metadata.get("aliases", ()))
    } | {field.name for cls in classes for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("code", snippets(), ids=lambda code: re.sub(r"\W+", " ", code)[:40])
def test_snippets_use_names_and_arguments_that_exist(code):
    tree = ast.parse(code)
    names = imported(tree)
    if "import" not in code.splitlines()[0] and "crystalformer." in code:
        names["crystalformer"] = importlib.import_module("crystalformer")
    resolved = [resolve(node, names) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert any(resolved)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = resolve(call.func, names)
        given = {keyword.arg for keyword in call.keywords} - {None}
        if function is not None and given:
            known = options_of(function)
            assert known is None or given <= known, (ast.unparse(call.func), given - known)


def test_options_of_sampling_and_training_in_readme_are_fields_of_their_settings():
    agedi, crystalformer = importlib.import_module("agedi"), importlib.import_module("crystalformer")
    known = {
        "agedi.sample": fields_of(agedi.SampleRequest, agedi.SampleConfig),
        "agedi.train_from_atoms": fields_of(agedi.TrainConfig),
        "crystalformer.sample": fields_of(importlib.import_module("crystalformer.sampling.config").SamplingConfig)
        | options_of_signature(crystalformer.sample),
    }
    for code in snippets():
        for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert {keyword.arg for keyword in call.keywords} <= known.get(name, {k.arg for k in call.keywords}), name


def options_of_signature(function):
    """Names of the parameters that a function declares itself."""
    return set(inspect.signature(function).parameters)


def test_the_page_of_aliases_is_up_to_date():
    assert aliases.PAGE.read_text(encoding="utf-8") == aliases.page(), "run `python benchmarks/aliases.py`"
