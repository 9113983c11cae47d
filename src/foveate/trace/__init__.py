"""What was alive where, and how a person sees it. Knows no hooks."""
