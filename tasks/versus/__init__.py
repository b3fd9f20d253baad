"""Two registered versions side by side: what each said of the test clips, tables for a terminal, a page."""
