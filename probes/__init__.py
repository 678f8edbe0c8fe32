"""Measuring a model: capability probes, likelihood, tasks."""
