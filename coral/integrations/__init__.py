"""One file for each library that coral works with; each is loaded through an entry point, never by a lower floor."""
