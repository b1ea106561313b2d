"""What a quantized model can be written as: one target per file, joined by a table."""
