"""Measuring what quantization costs."""
