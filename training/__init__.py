"""Makes the training data of the small default model and trains it; the server never imports this package."""
