"""The commands that keep a store whole and small."""
