"""Train networks, one or many, here or on a cluster."""
