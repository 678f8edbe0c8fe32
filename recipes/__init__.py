"""The recipe schema, the pipeline that runs a recipe, and the `mixwright` command."""
