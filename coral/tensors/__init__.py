"""Values of any framework as tensors that coral can keep, and back; nothing here knows of a repository."""
