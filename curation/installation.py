"""Collections of real text that every machine has: the running Python installation and its packages.

Everything is only read: sources are parsed with `ast`, never imported. Origins are named relative to the
installation (`python:json/decoder.py`), so that ids and splits do not depend on where Python lives. Two
collections that read one file name the same origin, so a held-out file is held out of both.

Files come in the order of a seeded hash of their names: whoever stops reading early has an unbiased sample.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.metadata
import importlib.util
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from pathlib import Path, PurePath
from typing import cast

from curation.docstrings import SHORTEST_DOCSTRING, docstring_documents, read_module
from curation.documents import Document, document_id
from curation.errors import DataError, RecipeError
from curation.records import BrokenRecord
from curation.tables import table
from curation.word_problems import word_problem

Records = Iterator[Document | BrokenRecord]

SHORTEST_SOURCE = 200
"""Characters; most shorter source files are empty `__init__.py`."""
DOCSTRING_PACKAGES = (
    "datasets",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "polars",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)
SHARE_OF_DOCSTRINGS = 0.6
"""Of the standard library's modules: these give their docstrings, and the others their source."""
GENERATED_TABLES = 1500
"""About as many bytes as the licences of a usual installation."""

# Test suites, the installer's wheels, and tables or parsers that a program wrote.
_LEFT_OUT_FOLDERS = frozenset(
    ("test", "tests", "testing", "idle_test", "benchmarks", "site-packages", "dist-packages")
    + ("__pycache__", "_bundled", "_vendor", "encodings", "pydoc_data", "_antlr")
)
_LICENCE_NAMES = ("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "AUTHORS", "THIRD")
_OWN_DISTRIBUTION = "mixwright"


def read_collection(collection: str, *, source: str, seed: int) -> Records:
    """Stream the documents of a collection of the running installation.

    collection : one of `COLLECTIONS`
    source     : the source that the documents are to name
    seed       : of the order of the files, and of generated text

    Raises RecipeError for an unknown collection, DataError when the package it reads is not installed.
    """
    if collection not in COLLECTIONS:
        close = difflib.get_close_matches(collection, COLLECTIONS, n=1)
        raise RecipeError(
            f"There is no collection `{collection}`; there are {', '.join(sorted(COLLECTIONS))}",
            where=f"source {source}",
            remedy=f"Did you mean `{close[0]}`" if close else "Choose one of these",
        )
    return COLLECTIONS[collection](source, seed)


def _standard_library(source: str, seed: int) -> Records:
    folder = _library_folder("standard_library")
    modules = [path for path in _modules(folder) if not _gives_docstrings(path)]
    return _sources(folder, modules, "", source, seed)


def _sympy_source(source: str, seed: int) -> Records:
    folder = _package_folder("sympy", "sympy_source")
    return _sources(folder, _modules(folder), "sympy", source, seed)


def _docstrings(source: str, seed: int) -> Records:
    folders = {name: folder for name in DOCSTRING_PACKAGES if (folder := _find_package(name))}
    if not folders:
        raise DataError(
            f"The collection `docstrings` reads {', '.join(DOCSTRING_PACKAGES)}, and none is installed",
            where=f"source {source}",
            remedy="Install numpy and scipy (`pip install numpy scipy`), or take the source out",
        )
    files = [
        (f"{name}/{path}", folder / path) for name, folder in folders.items() for path in _modules(folder)
    ]
    return docstring_documents(_shuffled(files, seed), source)


def _language_reference(source: str, seed: int) -> Records:
    """The language reference that `help()` prints, one document a topic, and docstrings of the library."""
    folder = _library_folder("language_reference")
    topics = _literal(folder / "pydoc_data" / "topics.py", "topics")
    for name in sorted(topics, key=lambda name: _order(seed, name)):
        yield _document(topics[name], source, f"python:pydoc_data/topics.py#{name}")
    modules = [(path.as_posix(), folder / path) for path in _modules(folder) if _gives_docstrings(path)]
    yield from docstring_documents(_shuffled(modules, seed), source)


def _readmes(source: str, seed: int) -> Records:
    """Long descriptions of the installed distributions, and the .md and .rst files that packages bring."""
    distributions = _distributions()
    for name in sorted(distributions, key=lambda name: _order(seed, name)):
        text = _description(distributions[name])
        if len(text) >= SHORTEST_DOCSTRING:
            yield _document(text, source, f"python:{name}/METADATA", title=name)
    files = [
        (relative, path)
        for relative, path in _distribution_files(distributions)
        if path.suffix.lower() in (".md", ".rst") and not _is_licence(path)
    ]
    for relative, path in _shuffled(files, seed):
        yield _text_document(relative, path, source)


def _licences_and_tables(source: str, seed: int) -> Records:
    """Noise: licence texts, which repeat one another, alternating with tables of random numbers."""
    files = [
        (relative, path) for relative, path in _distribution_files(_distributions()) if _is_licence(path)
    ]
    licences = _shuffled(files, seed)
    for index in range(max(GENERATED_TABLES, len(licences))):
        if index < len(licences):
            yield _text_document(*licences[index], source)
        if index < GENERATED_TABLES:
            made = table(seed, index)
            url = f"generated:tables/{seed}/{index}"
            yield _document(made.text, source, url, kind=made.kind)


def _word_problems(source: str, seed: int) -> Records:
    """An endless stream; whoever reads it stops."""
    index = 0
    while True:
        problem = word_problem(seed, index)
        url = f"generated:word_problems/{seed}/{index}"
        yield _document(problem.as_text(), source, url, kind=problem.kind, difficulty=problem.difficulty)
        index += 1


COLLECTIONS: dict[str, Callable[[str, int], Records]] = {
    "standard_library": _standard_library,
    "sympy_source": _sympy_source,
    "docstrings": _docstrings,
    "language_reference": _language_reference,
    "readmes": _readmes,
    "licences_and_tables": _licences_and_tables,
    "word_problems": _word_problems,
}


def _gives_docstrings(module: PurePath) -> bool:
    """Whether a module of the standard library goes to `language_reference` and not to `standard_library`.

    Without this, half of the source files would hold texts of the other collection word for word, and neither
    leave-one-out nor influence could tell the two apart.
    """
    return _order(0, f"docstrings of {module.as_posix()}")[0] < 256 * SHARE_OF_DOCSTRINGS


def _sources(folder: Path, modules: Sequence[PurePath], prefix: str, source: str, seed: int) -> Records:
    files = [(PurePath(prefix, path).as_posix(), folder / path) for path in modules]
    for relative, path in _shuffled(files, seed):
        record = read_module(relative, path)
        if isinstance(record, BrokenRecord):
            yield record
        elif len(record) >= SHORTEST_SOURCE:
            yield _document(record, source, f"python:{relative}")


def _text_document(relative: str, path: Path, source: str) -> Document | BrokenRecord:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        return BrokenRecord(relative, f"cannot be read: {error}")
    if not text.strip():
        return BrokenRecord(relative, "the file is empty", empty=True)
    return _document(text, source, f"python:{relative}")


def _document(text: str, source: str, url: str, **meta: str | int) -> Document:
    return Document(document_id(source, text), text, source, url, {"origin": url, **meta})


def _literal(path: Path, name: str) -> dict[str, str]:
    """The dictionary of strings assigned to `name` in a Python file, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            "This Python installation has no language reference",
            where=path.name,
            remedy="Install the full standard library (python3 on Debian), or take the source out",
        ) from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return dict(ast.literal_eval(node.value))
    raise DataError(f"There is no table `{name}` in this file", where=f"{path.parent.name}/{path.name}")


def _modules(folder: Path) -> list[PurePath]:
    """Relative paths of the Python files below `folder`, without tests and generated files, by name."""
    found = []
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder)
        # _sysconfigdata holds the paths of the machine that Python was built on.
        if not _LEFT_OUT_FOLDERS.intersection(relative.parts[:-1]) and "_sysconfigdata" not in path.name:
            found.append(relative)
    return sorted(found, key=lambda path: path.as_posix())


def _library_folder(collection: str) -> Path:
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "ast.py").is_file():
        raise DataError(
            f"The collection `{collection}` needs the standard library's source files, which are not here",
            where=str(folder),
            remedy="Use a Python that is installed as files, or take the source out of the recipe",
        )
    return folder


def _find_package(name: str) -> Path | None:
    """The folder of an installed package; a top-level name is found without importing anything."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places and Path(places[0]).is_dir() else None


def _package_folder(name: str, collection: str) -> Path:
    folder = _find_package(name)
    if folder is None:
        raise DataError(
            f"The collection `{collection}` reads the package {name}, which is not installed",
            where=f"collection {collection}",
            remedy=f"Install it (`pip install {name}`), or take the source out of the recipe",
        )
    return folder


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions by name, without this one, whose texts change with its own development."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and name != _OWN_DISTRIBUTION:
            found.setdefault(name, distribution)
    return found


def _description(distribution: importlib.metadata.Distribution) -> str:
    """The long description: the body of the metadata, or in old metadata an indented field."""
    metadata = cast(Message, distribution.metadata)
    body = metadata.get_payload()
    if isinstance(body, str) and body.strip():
        return body
    return str(metadata.get("Description") or "")


def _distribution_files(
    distributions: dict[str, importlib.metadata.Distribution],
) -> list[tuple[str, Path]]:
    """Relative and full paths of the files that the distributions installed, each once."""
    found = {}
    for name in sorted(distributions):
        for file in distributions[name].files or []:
            if ".." not in file.parts and (
                file.suffix.lower() in (".md", ".rst", ".txt") or _is_licence(file)
            ):
                found[file.as_posix()] = Path(str(distributions[name].locate_file(file)))
    return sorted((relative, path) for relative, path in found.items() if path.is_file())


def _is_licence(path: PurePath) -> bool:
    return path.name.upper().startswith(_LICENCE_NAMES) and path.suffix.lower() not in (
        ".py",
        ".pyc",
        ".html",
    )


def _shuffled(files: Sequence[tuple[str, Path]], seed: int) -> list[tuple[str, Path]]:
    return sorted(files, key=lambda file: _order(seed, file[0]))


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"order\0{seed}\0{name}".encode()).digest()
