"""The page of a run: `write_report(run)` writes report.html."""

from mixing.report.page import write_report

__all__ = ["write_report"]
