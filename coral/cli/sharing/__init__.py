"""The commands inside people's own git repositories, and those that share tensors."""
