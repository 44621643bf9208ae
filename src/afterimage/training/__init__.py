"""The one training loop, its exact checkpoint and its moving average."""
