"""Active learning: what to label next, again and again, until the models agree."""
