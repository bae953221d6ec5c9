"""Which files beside a script it imports: they go into its ConfigMap with it."""

import ast
from pathlib import Path


def local_modules(script: Path) -> tuple[list[str], list[str]]:
    """Return (files, folders) beside the script that it imports, directly or through one another.

    Folders are packages, which a ConfigMap cannot hold.

    Raises:
        SyntaxError: a file is no Python.
    """
    folder = script.parent
    files: list[str] = []
    packages: list[str] = []
    ahead = [script]
    while ahead:
        for module in _imported(ahead.pop()):
            file = folder / f"{module}.py"
            if file.is_file() and file != script and file.name not in files:
                files.append(file.name)
                ahead.append(file)
            elif (folder / module).is_dir() and any((folder / module).glob("*.py")):
                packages.append(module)
    return sorted(files), sorted(set(packages))


def _imported(file: Path) -> list[str]:
    """Return the outermost names of what a file imports anywhere."""
    found: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module.split(".")[0])
    return found
