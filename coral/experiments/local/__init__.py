"""Runs kept as files: a journal while one lives, one JSON file afterwards, an index that may be deleted."""
