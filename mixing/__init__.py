"""Leave-one-out, influence, mixture weights, comparison and report."""
