"""Several versions of a model in one: merged, averaged, compared."""
