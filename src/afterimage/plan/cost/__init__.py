"""What jobs cost: time, memory and GPUs."""
