"""The report of a sweep: figures, findings, tables and page."""
