"""One file or folder for each library that coral works with; no lower floor imports one, entry points and users do."""
