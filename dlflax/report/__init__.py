"""Progress, tables, figures and loggers of runs; the report of a sweep."""
