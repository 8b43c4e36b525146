"""Import structure of each package: counts the imports between modules in any checkout.

    python benchmarks/house.py                 # this checkout
    python benchmarks/house.py ../base --tree  # another one, with its tree

One JSON line per package. `arrows` are pairs of modules of which one imports the other, `room_arrows` pairs of rooms; a
room is a folder of the package, or a file directly in it. `floors` and `room_floors` count modules and rooms on the
longest chain of imports. `cycles` and `room_cycles` import each other around a circle. `outside` names the other
packages of the house that are imported, `upward` the arrows against the order of the rooms (`LEVELS`). Imports inside
functions count; those for type checking do not.
"""

import argparse
import ast
import functools
import importlib.util
import json
import pathlib
import re
from collections.abc import Iterable, Iterator

PACKAGES = ("matterform", "crystalformer", "atomformer", "agedi")
FAMILIES = PACKAGES[1:]
# A room imports rooms of its own level and of lower ones.
LEVELS = (
    ("config", "symmetry"),
    ("data",),
    ("network", "noise"),
    ("loss", "checkpoint", "diffusion", "table"),
    ("training", "sampling", "prediction", "forcefield", "rl"),
    ("cli",),
)
CHANGELOG = pathlib.Path(__file__).parents[1] / "CHANGELOG.md"


def main() -> None:
    """Prints one line per package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).parents[1])
    parser.add_argument("--tree", action="store_true", help="print the modules and what they import as well")
    arguments = parser.parse_args()
    imports = read_imports(arguments.checkout)
    for package in PACKAGES:
        print(json.dumps({"package": package, **measure(package, imports)}))
        if arguments.tree:
            for module in sorted(name for name in imports if is_in(name, package)):
                inside = sorted(name for name in imports[module] if is_in(name, package))
                print(f"  {module}: {', '.join(name.removeprefix(f'{package}.') for name in inside)}")


def is_in(module: str, package: str) -> bool:
    """Whether a dotted name is the package or inside it."""
    return module == package or module.startswith(f"{package}.")


def read_imports(checkout: pathlib.Path) -> dict[str, set[str]]:
    """For every module of the packages the modules that it imports, itself aside; `assets` hold no modules."""
    sources = {}
    for package in PACKAGES:
        for path in sorted((checkout / package).rglob("*.py")):
            parts = path.relative_to(checkout).with_suffix("").parts
            if not {"assets", "data"} & set(parts) or (checkout.joinpath(*parts[:-1]) / "__init__.py").exists():
                sources[".".join(parts).removesuffix(".__init__")] = path
    return {name: set(imported(name, path, sources)) - {name} for name, path in sources.items()}


def imported(module: str, path: pathlib.Path, known: Iterable[str]) -> Iterator[str]:
    """The known modules that a file imports, in functions too, but not for type checking."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:  # `from package import module` names the module in the list
                if f"{base}.{alias.name}" in known:
                    yield f"{base}.{alias.name}"
                elif base in known:
                    yield base


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield from nodes(child)


def measure(package: str, imports: dict[str, set[str]]) -> dict[str, object]:
    """The numbers of one package."""
    inside = {name: {other for other in found if is_in(other, package)} for name, found in imports.items()}
    inside = {name: found for name, found in inside.items() if is_in(name, package)}
    arrows = [(name, other) for name, found in inside.items() for other in found]
    rooms: dict[str, set[str]] = {room_of(name): set() for name in inside}
    for name, other in arrows:
        rooms[room_of(name)] |= {room_of(other)} - {room_of(name)}
    result: dict[str, object] = {
        "modules": len(inside),
        "arrows": len(arrows),
        "rooms": len(rooms),
        "room_arrows": sum(map(len, rooms.values())),
        "floors": floors(inside),
        "room_floors": floors(rooms),
        "cycles": cycles(inside),
        "room_cycles": cycles(rooms),
        "outside": sorted({other.split(".")[0] for name in inside for other in imports[name]} - {package}),
    }
    if package in FAMILIES:
        result["upward"] = sorted(f"{name} -> {other}" for name, other in arrows if is_upward(name, other))
    return result


def room_of(module: str) -> str:
    """The folder of a package that a module is in, or the file itself."""
    return ".".join(module.split(".")[:2])


def is_upward(module: str, other: str) -> bool:
    """Whether an arrow goes to a higher room; there is no rule for rooms that `LEVELS` does not name."""
    first, second = level(module), level(other)
    return first is not None and second is not None and first < second


def level(module: str) -> int | None:
    """The number of a module's room in `LEVELS`."""
    room = room_of(moved().get(module, module)).partition(".")[2]
    return next((number for number, rooms in enumerate(LEVELS) if room in rooms), None)


@functools.cache
def moved() -> dict[str, str]:
    """Old name -> new name, from the table in CHANGELOG.md, so that an old checkout is measured by the same levels."""
    text = CHANGELOG.read_text(encoding="utf-8") if CHANGELOG.exists() else ""
    return dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|", text, re.MULTILINE))


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Everything that a module imports, directly or not."""
    found, waiting = set(), [start]
    while waiting:
        for other in graph[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which imports all others, directly or not."""
    reach = {name: reachable(graph, name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return sorted(list(group) for group in groups if group)


def floors(graph: dict[str, set[str]]) -> int:
    """Modules on the longest chain of imports; a circle counts as one floor."""
    reach = {name: reachable(graph, name) for name in graph}

    @functools.cache
    def height(name: str) -> int:
        below = [other for other in graph[name] if name not in reach[other]]
        ring = [other for other in reach[name] if name in reach[other]]
        below += [other for member in ring for other in graph[member] if name not in reach[other]]
        return 1 + max((height(other) for other in below), default=0)

    return max(map(height, graph), default=0)


if __name__ == "__main__":
    main()
