"""How `mixwright --help` lists the commands: by what they are for, each with its whole first sentence."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

SECTIONS = {
    "A run": ("init", "plan", "run", "stage", "train", "report", "verify", "show", "doctor"),
    "Data": ("curate", "score", "classifier", "dedup", "decontaminate", "data"),
    "Mixtures": ("influence", "loo", "doremi", "fit", "propose", "compare", "compress", "export"),
    "Training": ("sft", "shorten", "teach", "gkd", "grpo", "solve-rate", "replay", "matrix"),
    "Evaluation": ("eval", "eval-compare", "speed", "gguf"),
}


class CommandList(TyperGroup):
    """The commands of `SECTIONS`, and below them any that no section names."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write them; click would cut sentences to fit a line."""
        names = self.list_commands(ctx)
        named = {name for section in SECTIONS.values() for name in section}
        sections = SECTIONS | {"Other": tuple(name for name in names if name not in named)}
        width = max(map(len, names), default=0)
        for title, members in sections.items():
            rows = [(name.ljust(width), self._says(ctx, name)) for name in members if name in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _says(self, ctx: Any, name: str) -> str:
        command = self.get_command(ctx, name)
        said = " ".join((command.help or "").split("\n\n")[0].split()) if command else ""
        return said.split(". ")[0].removesuffix(".") + "." if said else ""
