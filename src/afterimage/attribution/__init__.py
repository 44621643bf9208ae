"""Which training images a generated image owes most to: gradients, scores and their evaluation."""
