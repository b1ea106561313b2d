"""Tests mirror the tree of the project; what they share lies in modules beside this file."""
