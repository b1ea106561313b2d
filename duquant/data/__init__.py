"""Text in, activations out: corpora, token windows, and the streams between blocks."""
