"""What the commands that need no study share: the images that somebody names on the command line,
and the folder written to."""
