"""The page of LoyalDiffusion on made-up results: its arms, and what is published of each."""

import shutil
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib import pyplot as plt

from afterimage import config
from afterimage.report.notebook import Notebook
from afterimage.report.pages.loyal import Loyal

BLOCKS = {"groups": [1, 2]}
ARMS = {
    "baseline": {"method": "baseline"},
    "dedup": {"method": "baseline", "data": "deduplicated", "control": "baseline"},
    "rau_net": {"method": "baseline", "rau_net": BLOCKS, "control": "baseline"},
    "split": {"method": "loyal", "switch_timestep": 500},
    "loyal": {"method": "loyal", "switch_timestep": 500, "rau_net": BLOCKS, "control": "split"},
    "alone": {"method": "loyal", "switch_timestep": 500, "rau_net": BLOCKS, "blocks_in": "front"},
}


@pytest.fixture(scope="module")
def study(root, tmp_path_factory, make_up, truth):
    """Return a function that makes up a study; it gives its settings and results."""
    params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
    params |= {"arms": ARMS, "forget": {}, "loyal_selection": None, "attribution": None}
    truths = {name: truth() for name in ARMS} | {"rau_net": truth(0.1, 0.1)}

    @cache
    def build(replicates: int) -> tuple[config.Study, Path]:
        made = config.parse(params | {"replicates": replicates})
        return made, make_up(tmp_path_factory.mktemp("made"), made, truths)

    return build


@pytest.mark.parametrize(
    ("replicates", "said"), [(1, "one training: no verdict. R"), (3, "remembers less")]
)
def test_arms_are_compared_with_their_controls(replicates, said, study, show):
    text, figures = show("loyal", *study(replicates))
    assert figures == {"loyal_arms"}
    assert "arms on this page: baseline, rau_net, split, loyal, alone." in text
    assert "123,456 weights are trained from scratch on 500 images" in text
    assert "text_alignment" not in text
    assert f"**rau_net** against baseline: {said}" in text
    assert "**alone** names no control" in text


def test_page_gives_every_published_row_its_arm_or_says_that_there_is_none(study, show):
    text, _ = show("loyal", *study(1))
    row = {
        line.split("</td>")[0].split(">")[-1]: line for line in text.split("<tr") if "<td" in line
    }
    assert "<b>loyal</b>" in row["two networks, blocks in the tail (LoyalDiffusion)"]
    assert "<b>alone</b>" in row["two networks, blocks in the front (mirrored)"]
    assert "no such arm" in row["LoyalDiffusion with other captions and dual fusion"]
    assert "value not verified" in row["RAU-Net at all timesteps"]
    assert "held-out images" in row["real images that no model saw"]


def test_levels_of_a_stored_network_are_told(root, tmp_path_factory, make_up, truth, show):
    params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
    arms = {name: ARMS[name] for name in ("baseline", "rau_net")}
    params |= {"arms": arms, "forget": {}, "loyal_selection": None, "attribution": None}
    study = config.parse(params | {"model": {"kind": "stored", "path": "unet"}})
    truths = {name: truth() for name in arms}
    text, _ = show("loyal", study, make_up(tmp_path_factory.mktemp("made"), study, truths))
    assert "This network has levels 1 to 3." in text
    assert "123,456 weights are trained from stored weights on 500 images" in text


def test_r_is_said_to_compare_with_published_values_in_their_space_alone(study, tmp_path):
    """SSCD's is the published one, and is not centred."""
    _, results = study(1)
    compares = {}
    for space in ("pixels", "sscd", "clip"):
        other = tmp_path / space
        shutil.copytree(results, other)
        for table in (other / "report" / "tables").glob("*.csv"):
            table.write_text(table.read_text().replace("[pixels]", f"[{space}]"))
        said = Loyal(Notebook(other, tmp_path / "figures", 0.95), list(ARMS), 1).about_r()
        assert f"`{space}`" in said
        assert ("centred" in said) == (space == "pixels")
        compares[space] = said.endswith("that of published values.")
    assert compares == {"pixels": False, "sscd": True, "clip": False}


def test_arms_with_other_captions_have_rows_of_their_own(
    captioned, tmp_path_factory, make_up, truth, show, tmp_path
):
    """Text alignment is the last column, and a panel."""
    general = {"captions": "general"}
    loyal = {"method": "loyal", "switch_timestep": 500, "rau_net": BLOCKS}
    arms = {
        "general": {"method": "baseline", "control": "plain"} | general,
        "plain": {"method": "baseline"},
        "loyal": loyal,
        "loyal_general": loyal | general | {"control": "loyal"},
        "fused": loyal | general | {"control": "loyal", "dual_fusion": {}},
    }
    study = captioned(arms, text={"captions": {"general": {"kind": "general"}}})
    truths = {name: truth(alignment=0.5 + 0.05 * place) for place, name in enumerate(arms)}
    made = make_up(tmp_path_factory.mktemp("made"), study, truths)
    text, _ = show("loyal", study, made)
    aligned = "text_alignment[classifier]"
    table = pd.read_csv(made / "report" / "tables" / "arms.csv").set_index(["metric", "arm"])
    page = Loyal(Notebook(made, tmp_path / "figures", 0.95), list(arms), 1)
    shown = {str(row["arm"]): str(row.get(aligned)) for row in page.published()}
    for arm in arms:
        assert shown[f"<b>{arm}</b>"].startswith(f"{table['value'][aligned, arm]:.3g} <small>")
    assert shown["held-out images"].startswith("0.8 <small>")
    figure = page.figure()
    assert figure.axes[-1].get_title().startswith("text_alignment\n[classifier]")
    plt.close(figure)
    assert f"{aligned} 0.5" in text  # in the verdict on general, the first arm
    rows = [line for line in text.split("<tr") if "<td" in line]
    found = {
        line.split("</td>")[0].split(">")[-1]: [arm for arm in arms if f"<b>{arm}</b>" in line]
        for line in rows
    }
    assert found["the same, other captions (published: generalised to 5 words)"] == ["general"]
    assert found["LoyalDiffusion with other captions, without dual fusion"] == ["loyal_general"]
    assert found["two networks, blocks in the tail (LoyalDiffusion)"] == ["loyal"]
    assert found["LoyalDiffusion with other captions and dual fusion"] == ["fused"]
    assert "**general** against plain" in text
