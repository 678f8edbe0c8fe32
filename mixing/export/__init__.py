"""Weights for other trainers: `export_mixture(mixture, "nanotron", plan)` and `write_export`."""

from mixing.export.export import FORMATS, Exported, export_mixture, write_export
from mixing.export.plan import ExportPlan

__all__ = ["FORMATS", "ExportPlan", "Exported", "export_mixture", "write_export"]
