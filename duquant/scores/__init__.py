"""What was measured, as values: what evaluation finds and what reports show."""
