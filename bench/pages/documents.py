"""The marked blocks of the documents.

A file holds blocks between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; what stands between them is replaced, so
no number there is typed by hand. Those of the quality study begin with `quality:`.
"""

import re
from collections.abc import Iterable
from pathlib import Path


def fill_files(root: Path, names: Iterable[str], blocks: dict[str, str], prefix: str) -> None:
    """Fills the blocks of these documents of a checkout, and says so.

    Raises:
        OSError: if one is missing.
        ValueError: for a block of a name that no one fills.
    """
    for name in names:
        path = root / name
        path.write_text(fill(path.read_text(encoding="utf-8"), blocks, prefix), encoding="utf-8")
        print(f"filled {path}")


def fill(text: str, blocks: dict[str, str], prefix: str) -> str:
    """The document with its blocks of this prefix replaced.

    Raises:
        ValueError: for a block of a name that no one fills.
    """

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if name not in blocks:
            raise ValueError(f"block {name}: expected one of {', '.join(blocks)}")
        return f"<!-- {prefix}:{name} -->\n{blocks[name].strip()}\n<!-- /{prefix}:{name} -->"

    pattern = rf"<!-- {prefix}:([\w-]+) -->.*?<!-- /{prefix}:\1 -->"
    return re.sub(pattern, replacement, text, flags=re.DOTALL)
