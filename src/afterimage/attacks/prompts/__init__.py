"""Which prompts bring memorised images out of a text-to-image model? One detector per module, and
their control."""
