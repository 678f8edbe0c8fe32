"""The tests of a row of a programming benchmark, as the code reward reads them."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

from curation.errors import DataError
from probes.task_record import Task
from probes.templates import lookup, render
from training.rewards.code import functions_called

MOST_TEST_BYTES = 1 << 28  # of one row, unpacked


def program_tests(task: Task, row: Mapping[str, Any], where: str) -> str:
    """The reference "answer" of training.rewards.code: JSON with the tests of a row.

    Raises DataError naming the row when it has no tests, or some that cannot be read.
    """
    if task.generation.tests == "livecodebench":
        return json.dumps(_livecodebench(row, where))
    tests = render(task.gold, row, where)
    if not tests.strip():
        raise DataError("The row has no tests", where=where, remedy="Mend or remove the row")
    try:
        functions = functions_called(tests)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"The tests are not Python: {error}", where=where, remedy="Mend the row") from error
    if task.generation.check:
        check = render(task.generation.check, row, where).strip()
        # HumanEval's 32, 38 and 50 also call a helper that stands in the prompt, 33 the function by its name.
        return json.dumps({"tests": tests, "check": check, "functions": functions})
    if not functions:
        raise DataError("The tests call no function of the answer", where=where, remedy="Mend the row")
    return json.dumps({"tests": tests, "functions": functions})


def _livecodebench(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Cases of `public_test_cases` and `private_test_cases`: output for input, or values of a method of Solution."""
    cases = _cases(lookup(row, "public_test_cases", where), where)
    if row.get("private_test_cases"):
        cases += _cases(row["private_test_cases"], where)
    try:
        kinds = {case["testtype"] for case in cases}
        if kinds == {"stdin"}:
            return {"io": [[case["input"], case["output"]] for case in cases]}
        if kinds == {"functional"}:
            metadata = row.get("metadata") or "{}"
            name = (json.loads(metadata) if isinstance(metadata, str) else metadata)["func_name"]
            calls = [
                [[json.loads(line) for line in case["input"].splitlines() if line.strip()], json.loads(case["output"])]
                for case in cases
            ]  # fmt: skip
            return {"function": f"Solution().{name}" if "class Solution" in row.get("starter_code", "") else name,
                    "calls": calls}  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"The test cases cannot be read: {error!r}", where=where, remedy="Mend the row"
        ) from error
    raise DataError(
        "The test cases are neither all 'stdin' nor all 'functional'", where=where, remedy="Mend the row"
    )


class _TextOnly(pickle.Unpickler):
    """Reads texts, numbers and lists; nothing that a pickle could name is looked up, so nothing of it runs."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _cases(given: Any, where: str) -> list[dict[str, Any]]:
    """Cases from a list, from its JSON, or from the hub's zlib and pickle of that JSON in base64."""
    try:
        if isinstance(given, str) and not given.lstrip().startswith("["):
            unpacking = zlib.decompressobj()
            packed = unpacking.decompress(base64.b64decode(given, validate=True), MOST_TEST_BYTES)
            if not unpacking.eof:
                raise ValueError("they are larger than 256 MiB")
            given = _TextOnly(io.BytesIO(packed)).load()
        found = json.loads(given) if isinstance(given, str | bytes) else given
    except (ValueError, TypeError, zlib.error, binascii.Error, pickle.UnpicklingError, EOFError,
            RecursionError, IndexError, KeyError, AttributeError, MemoryError) as error:  # fmt: skip
        raise DataError(
            f"The test cases cannot be read: {error}", where=where, remedy="Mend the row"
        ) from error
    if not isinstance(found, list) or not found or not all(isinstance(case, dict) for case in found):
        raise DataError("There are no test cases", where=where, remedy="Mend or remove the row")
    return found
