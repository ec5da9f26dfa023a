"""Tensors shared between repositories: which remotes there are, what goes there and comes back."""
