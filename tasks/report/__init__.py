"""The report of `evaluate`: scores, comparison, table, figures, page. Knows arrays, no networks or videos."""

ACTION = "action"
"""The head that is right when all heads are. A head of that name stands for itself."""
