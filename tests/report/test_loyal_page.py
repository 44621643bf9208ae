"""The page of LoyalDiffusion on made-up results: its arms, and what is published of each."""

from functools import cache

import pytest
import yaml

from afterimage import config

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
def page(root, tmp_path_factory, make_up, truth, show):
    """Return a function that makes up a study and runs the notebook; it gives what that showed, and
    its figures."""
    params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
    params |= {"arms": ARMS, "forget": {}, "loyal_selection": None, "attribution": None}
    truths = {name: truth() for name in ARMS} | {"rau_net": truth(0.1, 0.1)}

    @cache
    def run(replicates: int) -> tuple[str, frozenset[str]]:
        study = config.parse(params | {"replicates": replicates})
        return show("loyal", study, make_up(tmp_path_factory.mktemp("made"), study, truths))

    return run


@pytest.mark.parametrize(
    ("replicates", "said"), [(1, "one training: no verdict. R"), (3, "remembers less")]
)
def test_arms_are_compared_with_their_controls(replicates, said, page):
    text, figures = page(replicates)
    assert figures == {"loyal_arms"}
    assert "arms on this page: baseline, rau_net, split, loyal, alone." in text
    assert f"**rau_net** against baseline: {said}" in text
    assert "**alone** names no control" in text


def test_page_gives_every_published_row_its_arm_or_says_that_there_is_none(page):
    text, _ = page(1)
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


def test_arms_with_other_captions_have_rows_of_their_own(
    captioned, tmp_path_factory, make_up, truth, show
):
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
    made = make_up(tmp_path_factory.mktemp("made"), study, {name: truth() for name in arms})
    text, _ = show("loyal", study, made)
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
