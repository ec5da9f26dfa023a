"""What keeps a store whole and small: collecting garbage, checking, repairing, verifying, repacking."""
