"""What coral's seams promise, as tests that every member passes: a subclass says which, by fixtures of these names."""
