"""Docstrings of Python files, found by parsing and never by importing."""

from __future__ import annotations

import ast
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from curation.documents import Document, document_id
from curation.records import BrokenRecord

SHORTEST_DOCSTRING = 200
"""Characters; shorter docstrings say too little to be documents."""


def docstring_documents(files: Iterable[tuple[str, Path]], source: str) -> Iterator[Document | BrokenRecord]:
    """A document for each docstring of the files, headed by its qualified name and arguments, in their order.

    files : pairs of the file's name relative to the installation and its path; the origin is `python:<name>`
    """
    for relative, path in files:
        record = read_module(relative, path)
        if isinstance(record, BrokenRecord):
            yield record
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "invalid escape sequence" is the package's own affair
                tree = ast.parse(record)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield BrokenRecord(relative, f"not valid Python: {error}")
            continue
        module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for heading, name, text in _described(tree, module):
            url = f"python:{relative}"
            whole = f"{heading}\n\n{text}\n"
            yield Document(document_id(source, whole), whole, source, f"{url}#{name}", {"origin": url})


def _described(tree: ast.AST, name: str) -> Iterator[tuple[str, str, str]]:
    """Heading, qualified name and docstring of the module, its classes and functions, in their order."""
    node: ast.AST
    waiting: list[tuple[ast.AST, str]] = [(tree, name)]
    while waiting:
        node, name = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= SHORTEST_DOCSTRING:
                yield _heading(node, name), name, text
        if isinstance(node, ast.Module | ast.ClassDef):
            inner = [child for child in node.body if isinstance(child, ast.ClassDef | ast.FunctionDef)]
            waiting.extend((child, f"{name}.{child.name}") for child in reversed(inner))


def _heading(node: ast.AST, name: str) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{name}({ast.unparse(node.args)})"
    return name


def read_module(relative: str, path: Path) -> str | BrokenRecord:
    """The text of a Python file in the encoding that it declares."""
    try:
        with tokenize.open(path) as handle:
            return handle.read()
    except (OSError, SyntaxError, UnicodeError) as error:
        return BrokenRecord(relative, f"cannot be read: {error}")
