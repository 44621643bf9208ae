"""What each published method changes about plain training, one module each."""
