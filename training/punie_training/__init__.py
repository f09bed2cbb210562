"""Makes the training data, trains the adapter, and measures the result."""
