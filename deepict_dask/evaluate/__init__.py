"""How good is a result? Picks and segmentations against the truth."""
