"""From the results of a run to its tables, figure and page."""
