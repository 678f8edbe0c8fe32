"""The page of a run: `write_report(run)` writes report.html; of one mixture: `mixture_page`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixing.callable_module import make_callable

if TYPE_CHECKING:
    from mixing.mixture import Mixture
    from mixing.report.page import write_report as write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from mixing.report.page import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _call(what: Mixture | Path | str, out: Path | str | None = None) -> Path:
    """The page of a run folder (`write_report`), or of a mixture or mixture.json, written to `out`."""
    from mixing.mixture import Mixture, read_mixture
    from mixing.report.mixture_page import write_mixture_page

    if not isinstance(what, Mixture):
        if Path(what).is_dir():
            from mixing.report.page import write_report

            return write_report(Path(what))
        out = Path(what).with_name("report.html") if out is None else out
        what = read_mixture(what)
    return write_mixture_page(what, Path("report.html") if out is None else Path(out))


make_callable(__name__)
