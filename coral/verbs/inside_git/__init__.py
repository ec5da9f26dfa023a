"""Coral inside people's own git repositories: the filter, what is tracked, the push hook, git-LFS."""
