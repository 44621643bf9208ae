"""One module per page: what the notebook of its name shows, as tables, figures and sentences."""
