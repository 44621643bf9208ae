"""Commands that need no study, and what they share: sets of images named on the command line, and
the output folder."""
