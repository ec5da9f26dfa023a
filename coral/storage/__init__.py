"""Keys to bytes: the only code of coral that writes to the disk, and the locks that order the writers."""
