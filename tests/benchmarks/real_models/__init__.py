"""Recipes on language models that pip can fetch: ``python -m tests.benchmarks.real_models``."""
