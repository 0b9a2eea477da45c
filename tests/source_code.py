"""The pack's source as laws about it need it; test modules import this as `.source_code`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def shipped_modules() -> list[Path]:
    """The Python files a user runs."""
    folders = [path for name in ("nodes", "ld3", "demo") for path in (ROOT / name).rglob("*.py")]
    ignored = (ROOT / ".comfyignore").read_text().split()
    files = [ROOT / "__init__.py", *folders]
    return sorted(file for file in files if file.relative_to(ROOT).as_posix() not in ignored)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_own(module: str) -> bool:
    """Whether a dotted name is one of the pack's modules."""
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names of all that a file imports, anywhere in it.

    Of `from a import b` it is a.b, and also a unless b is one of the pack's modules itself.
    """
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join([*module, alias.name]) for alias in node.names]
            yield from names
            if not all(is_own(name) for name in names):
                yield ".".join(module)
