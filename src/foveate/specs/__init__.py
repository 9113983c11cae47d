"""Methods and settings written as text: on a command line, in a file."""
