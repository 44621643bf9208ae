"""Which training images made an image: gradients, scores, and how well retraining bears them out."""
