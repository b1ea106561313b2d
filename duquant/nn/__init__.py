"""Small modules: one idea each, usable alone, tested against plain linear algebra."""
