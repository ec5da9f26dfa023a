"""The commands that git calls: its filter, its diff driver, its merge driver, its hook."""
