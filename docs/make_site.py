"""Makes the pages of the documentation site, as a hook of mkdocs; see mkdocs.yml and `make docs`.

Pages have the same paths in the site as in the repository (README.md, docs/bridge.md, envs/README.md), so that a link
works in both. Each public module of the package has a page below reference/, made from its docstrings. The build fails
if a public name of the package has none.
"""

from __future__ import annotations

import ast
import zlib
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vla_robot"
ASSETS = (
    "LICENSE",
    "CITATION.cff",
    "examples/*.py",
    *(f"docs/**/*.{suffix}" for suffix in ("png", "svg", "gif", "webp")),
)
GUIDES = {
    "Use": (
        "evaluate",
        "benchmarks-worlds",
        "finetune",
        "actions",
        "words",
        "data",
        "teleoperate",
        "openvla",
        "families",
        "gpu",
        "edge",
        "lerobot",
        "serving",
        "cluster",
    ),
    "Robot": ("real-arm", "bridge", "safety", "security", "reliability"),
}
"""Pages of docs/ by their tab; pages without a tab follow under "More"."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the order of the pages."""
    guides = {f"docs/{name}.md" for names in GUIDES.values() for name in names}
    more = [page for page in _pages() if page.startswith("docs/") and page not in guides]
    folders = [page for page in _pages() if page.endswith("/README.md")]
    project = [page for page in _pages() if "/" not in page and page != "README.md"]
    config.nav = [
        {"Home": "README.md"},
        *({tab: [f"docs/{name}.md" for name in names]} for tab, names in GUIDES.items()),
        {"More": more},
        {"Folders": [{page.removesuffix("/README.md"): page} for page in folders]},
        {"Reference": _reference(PACKAGE)},
        {"Project": [*project, {"LICENSE": "LICENSE"}]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace mkdocs' pages below docs/ by the repository's pages, and add the reference."""
    theirs = [file for file in files if not _is_below_docs(file)]  # the theme's
    names = {*_pages(), *(path.relative_to(ROOT).as_posix() for glob in ASSETS for path in ROOT.glob(glob))}
    ours = [File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in sorted(names)]
    reference = [
        File.generated(config, _page_of(module), content=f"---\ntitle: {module.stem}\n---\n\n::: {_dotted(module)}\n")
        for module in _modules()
    ]
    return Files([*theirs, *ours, *reference])


def on_post_build(config: MkDocsConfig) -> None:
    """Raise PluginError unless each public name of the package has an entry in the reference."""
    inventory = (Path(config.site_dir) / "objects.inv").read_bytes()
    lines = zlib.decompress(inventory.split(b"\n", 4)[4]).decode().splitlines()
    documented = {line.split(" ", 1)[0] for line in lines}
    missing = [name for module in _modules() for name in _public_names(module) if name not in documented]
    if missing:
        raise PluginError(f"{len(missing)} public names have no page: {', '.join(missing[:20])}")


def _is_below_docs(file: File) -> bool:
    return file.abs_src_path is not None and ROOT / "docs" in Path(file.abs_src_path).parents


def _pages() -> list[str]:
    """Return the Markdown files of the repository's root, of docs/, and each folder's README."""
    found = [path for glob in ("*.md", "docs/*.md", "*/README.md", "*/*/README.md") for path in ROOT.glob(glob)]
    return sorted({path.relative_to(ROOT).as_posix() for path in found if not _is_hidden(path)})


def _is_hidden(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return any(part.startswith(".") for part in parts) or parts[0] in ("runs", "data", "site", "dist", "tests")


def _modules() -> list[Path]:
    """Return the package's public modules; an `__init__` stands for its package."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.stem == "__init__" or path.stem[0] != "_"]


def _dotted(module: Path) -> str:
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _page_of(module: Path) -> str:
    name = module.relative_to(ROOT).with_suffix("").as_posix()
    return f"reference/{name.removesuffix('__init__')}{'index' if module.stem == '__init__' else ''}.md"


def _reference(folder: Path) -> list[object]:
    """Return the pages of one folder: its own, then its modules, then its folders."""
    modules = [path for path in _modules() if path.parent == folder and path.stem != "__init__"]
    packages = sorted(path.parent for path in folder.glob("*/__init__.py"))
    return [
        _page_of(folder / "__init__.py"),
        *({path.stem: _page_of(path)} for path in modules),
        *({path.name: _reference(path)} for path in packages),
    ]


def _public_names(module: Path) -> Iterator[str]:
    """Yield a module's public functions and classes, and the public methods of those classes."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            name = f"{_dotted(module)}.{node.name}"
            yield name
            if isinstance(node, ast.ClassDef):
                methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
                yield from (f"{name}.{method.name}" for method in methods if not method.name.startswith("_"))
