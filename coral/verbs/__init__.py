"""What can be done with a repository, as functions over the floors below: staging, checkout, diff, states."""
