"""DVC in a folder that is no git repository, as ``docs/install.md`` says."""

import re

import pytest

pytestmark = pytest.mark.slow


def test_command_of_the_documentation_makes_dvc_work_without_git(empty, root):
    (command,) = re.findall(
        r"^dvc config .*$", (root / "docs" / "install.md").read_text(), re.MULTILINE
    )
    refused = empty.run("dvc", "status", check=False)
    assert refused.returncode != 0
    assert "is not a git repository" in refused.stderr
    empty.run(*command.split())
    assert "deleted:            results/tiny/train" in empty.run("dvc", "status").stdout
    assert "type" in (empty.folder / ".dvc" / "config").read_text(), (
        "the other settings are still there"
    )
