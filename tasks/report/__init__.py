"""The report of `evaluate`: scores, comparison, table, figures, page. Knows arrays, no networks or videos."""
