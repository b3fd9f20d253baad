"""A study: methods × seeds × data sets, compared. Reads what the pipeline wrote; trains and scores nothing."""
