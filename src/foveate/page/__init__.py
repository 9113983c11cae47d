"""A page in the browser: one question, unpruned and pruned side by side, and what pruning dropped where."""
