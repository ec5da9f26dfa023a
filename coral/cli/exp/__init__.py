"""The subcommands of ``coral exp``, one a file; each is imported when it is called."""
