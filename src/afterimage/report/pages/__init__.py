"""One module per page: the tables, figures and sentences of the notebook of that name."""
