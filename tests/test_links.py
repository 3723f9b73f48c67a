"""Links between the pages of the documentation."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PAGES = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = [line.lstrip("#").strip() for line in page.read_text().splitlines() if line.startswith("#")]
    words = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in words}


@pytest.mark.skipif(not PAGES, reason="a copy without git's list of files")
def test_every_link_leads_to_a_file_and_a_heading():
    broken = []
    for page in (ROOT / name for name in PAGES):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = Path(page.parent, path) if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken
