"""The quantized model on disk: packed integers, scales, transforms, and nothing that can run."""
