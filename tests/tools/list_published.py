"""The table of docs/data.md: every dataset of the registry, as what it is published, and how its recipe was checked.

python tests/tools/list_published.py                 prints it
python tests/tools/list_published.py docs/data.md    puts it into the page, in place of the one that is there
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from publish_rlds import info_names, schemas

from vla_robot.recipe import read
from vla_robot.recipe.oxe import SourceRecipe

REPOSITORY = Path(__file__).parents[2]
HEAD = "| dataset | calls itself | folder | versions | how it was checked |\n|---|---|---|---|---|\n"
TABLE = re.compile(re.escape(HEAD) + r"(\|[^\n]*\n)+")


def table() -> str:
    """Markdown, one row for each recipe of datasets/oxe/."""
    names = sorted(path.stem for path in (REPOSITORY / "datasets" / "oxe").glob("*.toml"))
    return HEAD + "".join(f"| {' | '.join(row(name))} |\n" for name in names)


def row(name: str) -> tuple[str, ...]:
    published = read(SourceRecipe, name).published
    schema = schemas().get(name)
    if schema is None:
        return name, "", "", "", "not found"
    told = dict.fromkeys(info_names(name, schema).values())
    has_sample = (REPOSITORY / "tests" / "golden" / "rlds_samples" / name).is_dir()
    checked = f"built in the structure of {schema['version']}" + (", and a sample" if has_sample else "")
    others = [said for said in told if said != name]
    return name, ", ".join(others), ", ".join(published.folders), ", ".join(published.versions), checked


if __name__ == "__main__":
    if sys.argv[1:]:
        page = Path(sys.argv[1])
        text, count = TABLE.subn(lambda _: table(), page.read_text())
        if count != 1:
            sys.exit(f"{page} has {count} tables of this kind; it must have one to be replaced.")
        page.write_text(text)
    else:
        print(table(), end="")
