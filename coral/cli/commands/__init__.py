"""The subcommands of ``coral``, one a file; each is imported when it is called."""
