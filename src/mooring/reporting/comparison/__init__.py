"""From the results of a comparison of methods and tuned models to its tables, figures and page."""
