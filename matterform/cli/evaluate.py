"""The command `matterform evaluate`: validity, uniqueness, novelty and stability of crystals."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tyro

from matterform.arguments import OUT_NAMES, Out
from matterform.cli.crystals import number_column, read_crystals
from matterform.commandline import on_interrupt, say, this_command
from matterform.config import setting

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pymatgen.core


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Evaluates crystals; writes judged.csv (one row per crystal) and summary.json (shares, their meanings, protocol).

    matterform evaluate samples/samples.csv --reference mp_20.csv --stability above_hull.csv --out judged
    """

    structures: tyro.conf.Positional[pathlib.Path]  # crystals: CSV with CIFs, CIF files or a folder, extxyz, traj, LMDB
    reference: pathlib.Path | None = None  # known crystals, usually the training set, to define novelty
    requested: str | None = None  # name of the column with the requested space group (1 to 230)
    stability: pathlib.Path | None = None  # table of `matterform above-hull` for these crystals; adds S.U.N.
    composition: bool = False  # check whether oxidation states can balance; needs SMACT (extra `eval`)
    out: Out = setting(pathlib.Path("judged"), *OUT_NAMES)  # new folder for the results


def run_evaluate(arguments: EvaluateArguments) -> int:
    """Evaluates crystals and writes the results; needs no potential.

    Raises:
        ValueError: the output folder exists, or an input is invalid.
    """
    from matterform.evaluation.summary import describe

    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists already; remove it or choose another name")
    with on_interrupt(lambda: f"nothing was written; start again with: {this_command()}"):
        table, summary = _evaluate(arguments)
        _write(arguments.out, table, summary)
    say(describe(summary))
    for name, share in summary.get("stability", {}).items():
        say(f"{100 * share:6.1f} %  {name}")
    say(f"written: {arguments.out / 'judged.csv'} and summary.json")
    return 0


def _evaluate(arguments: EvaluateArguments) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """The table of all crystals and its summary."""
    import numpy as np

    from matterform.evaluation.summary import EvaluationConfig, evaluate

    structures, indices, refused = read_crystals(arguments.structures)
    reference = None if arguments.reference is None else read_crystals(arguments.reference).structures
    requested = None
    if arguments.requested is not None:
        requested = _space_groups(structures, indices, arguments.requested, arguments.structures)
    table, summary = evaluate(structures, requested, reference, EvaluationConfig(composition=arguments.composition))
    table.insert(0, "index", np.array(indices))
    summary["unreadable"] = refused
    if arguments.stability is not None:
        table, summary["stability"] = _with_stability(table, arguments.stability, len(refused))
    return table, summary


def _write(folder: pathlib.Path, table: "pd.DataFrame", summary: dict[str, Any]) -> None:
    from matterform.io.files import write_atomically
    from matterform.io.tables import write_table

    with write_atomically(folder) as temporary:
        temporary.mkdir()
        write_table(temporary / "judged.csv", table)
        (temporary / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def _space_groups(
    structures: "Sequence[pymatgen.core.Structure]", indices: Sequence[int], name: str, path: pathlib.Path
) -> "np.ndarray":
    import numpy as np

    numbers = number_column(structures, name, path)
    if len(wrong := np.flatnonzero(~np.isin(numbers, np.arange(1, 231)))):
        number = numbers[wrong[0]]
        raise ValueError(
            f"{path}, structure {indices[wrong[0]]}: column {name!r} should hold a space group's number, 1 to 230; "
            f"found {'nothing' if np.isnan(number) else format(number, 'g')}"
        )
    return numbers.astype(int)


def _with_stability(
    table: "pd.DataFrame", path: pathlib.Path, num_unreadable: int
) -> "tuple[pd.DataFrame, dict[str, float]]":
    """Adds energies above the hull to the table; also returns shares over all crystals, including unreadable ones."""
    import numpy as np
    import pandas as pd

    from matterform.io.files import existing
    from matterform.stability.above_hull import stability_shares

    try:
        energies = pd.read_csv(existing(path))
    except ValueError as error:  # pandas raises ValueErrors that do not name the file
        raise ValueError(f"{path} is not a table of `matterform above-hull`: {error}") from error
    if not {"index", "e_above_hull"} <= set(energies.columns):
        raise ValueError(
            f"{path} is not a table of `matterform above-hull`: it needs the columns index and e_above_hull"
        )
    if missing := set(table["index"]) - set(energies["index"]):
        raise ValueError(f"{path} is of other crystals: it lacks structure {min(missing)} and {len(missing) - 1} more")
    above = energies.drop_duplicates("index").set_index("index")["e_above_hull"].reindex(table["index"]).to_numpy()
    table = table.assign(e_above_hull=above)

    def padded(values: np.ndarray, nothing: Any) -> np.ndarray:
        return np.append(values, np.full(num_unreadable, nothing))

    novel = padded(table["novel"].to_numpy(bool), False) if "novel" in table else None
    shares = stability_shares(padded(above, np.nan), padded(table["unique"].to_numpy(bool), False), novel)
    return table, {name: share for name, share in shares._asdict().items() if np.isfinite(share)}
