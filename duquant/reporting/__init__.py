"""Reports: what a run did and measured, on one page."""
