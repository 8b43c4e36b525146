"""Writes `docs/aliases.md`: the published and former names of flags that each command understands.

    python benchmarks/aliases.py

The table is made from the commands themselves; `tests/test_readme.py` fails when the page is out of date.
"""

import importlib
import pathlib
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # started as a script
    sys.path.insert(0, str(ROOT))

from matterform.arguments import Command, flags_of  # noqa: E402

PAGE = ROOT / "docs" / "aliases.md"
PROGRAMS = ("matterform", "crystalformer", "atomformer", "agedi")
HEADER = """# Names that commands still understand

The right-hand column works in place of the left-hand one, silently, with dashes or underscores. "Words" are what may
stand right after the command without a flag. Flags that no longer exist are answered by the line given. `agedi` also
takes structures and `KEY=VALUE` settings where the published AGeDi documents them. This page is written by
`python benchmarks/aliases.py`.
"""


def page() -> str:
    """The page for all commands."""
    parts = [HEADER]
    for program in PROGRAMS:
        for command in importlib.import_module(f"{program}.cli").COMMANDS:
            section = "\n".join(command_lines(program, command))
            if section:
                parts.append(f"## {program} {command.name}\n\n{section}\n")
    return "\n".join(parts)


def command_lines(program: str, command: Command) -> list[str]:
    """The table of one command, and the answers to flags that have no counterpart; empty without either."""
    rows: dict[str, list[str]] = {}
    for name, alias in aliases(program, command):
        rows.setdefault(name, []).append(alias)
    lines = []
    words = [flag or "(left as it is)" for flag in command.positional]
    if words:
        lines += [f"Words: {', '.join(f'`{word}`' for word in words)}.", ""]
    if rows:
        lines += ["| flag | also |", "|---|---|"]
        lines += [f"| `{name}` | {', '.join(f'`{alias}`' for alias in rows[name])} |" for name in sorted(rows)]
    if command.answers:
        lines += ["", *(f"- `{dashed(flag)}`: {answer}" for flag, answer in sorted(command.answers.items()))]
    return lines


def aliases(program: str, command: Command) -> Iterator[tuple[str, str]]:
    """Pairs of a flag and another name of it, by the order in which `matterform.arguments.translate` looks them up."""
    flags = flags_of(command.arguments)
    declared = {flag.name for flag in flags}
    meanings = {alias: flag.name for flag in flags for alias in (*flag.shown, *flag.silent)}
    meanings |= {dashed(alias): dashed(name) for alias, name in command.aliases.items()}
    if program == "agedi":
        from agedi.cli.published import ELSEWHERE, TRAIN_SHORT

        short = TRAIN_SHORT if command.training else ELSEWHERE
        meanings |= {alias: name for alias, name in short.items() if name in declared}
    yield from ((name, alias) for alias, name in meanings.items() if alias not in declared)


def dashed(flag: str) -> str:
    """A flag as the help shows it."""
    return flag.replace("_", "-") if flag.startswith("--") else flag


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
