"""Texts and names are plain English: words that once had a private meaning in this project are not used."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = (
    *(
        "operator",
        "trainer-image",
        "kubectl-tuning",
        "charts",
        "crds",
        "docs",
        "examples",
        "dev",
        "tests",
    ),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"),
)
EXCEPT = (":!tests/unit/test_wording.py", ":!tests/e2e/data")
WORDS = (
    "told|tells|standing|mend|mends|mended|hopeless|anew|story|trouble|dear|spare|spared|outrun|hasten|surroundings|"
    "milestone|misfit|for ever"
)
PRIVATE = re.compile(rf"(?<![a-z])({WORDS})(?![a-z])", re.IGNORECASE)


def test_no_private_words() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *PLACES, *EXCEPT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in tracked.stdout.splitlines()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), start=1)
        if PRIVATE.search(line)
    ]
    assert not found, "\n".join(found)
