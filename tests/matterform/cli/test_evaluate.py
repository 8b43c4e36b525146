"""`matterform evaluate`: one row per crystal, and shares over all of them."""

import json

from matterform.cli import main
from matterform.io.tables import read_rows


def test_evaluation_joins_validity_and_stability(folder, tmp_path, capsys):
    stability = tmp_path / "above.csv"
    stability.write_text("index,e_above_hull\n0,0.05\n1,\n2,0.3\n3,-0.1\n")
    arguments = [str(folder / "crystals.csv"), f"--reference={folder / 'table.csv'}", f"--stability={stability}"]
    assert main(["evaluate", *arguments, "--requested=G", f"--out={tmp_path / 'judged'}"]) == 0
    said = capsys.readouterr()
    assert "structure 1 refused" in said.err
    rows = read_rows(tmp_path / "judged" / "judged.csv")
    assert [row["index"] for row in rows] == ["0", "2", "3"]
    assert [row["novel"] for row in rows] == ["False", "True", "False"]
    assert [row["space_group_kept"] for row in rows] == ["True", "False", "True"]
    summary = json.loads((tmp_path / "judged" / "summary.json").read_text())
    # Of four crystals one is on the hull, two are below 0.1 eV/atom, and the only novel one is not.
    assert summary["stability"] == {"stable": 0.25, "metastable": 0.5, "sun": 0, "metastable_sun": 0}
    assert list(summary["unreadable"]) == ["1"]
    assert "valid" in summary["metrics"]
