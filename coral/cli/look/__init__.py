"""How things look in a terminal: numbers, tables, commits, runs, differences, progress."""
