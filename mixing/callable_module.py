"""A package that can also be called: `mixing.fit(runs)` beside `from mixing.fit import fit_mixture`.

Python binds a package's name in its parent when it is first imported, whatever the parent had there. So what is to
be called under that name must be the package.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module whose `_call` is what calling it does."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__dict__["_call"](*arguments, **named)


def make_callable(name: str) -> None:
    """Let the module `name`, which defines `_call`, be called."""
    sys.modules[name].__class__ = CallableModule
