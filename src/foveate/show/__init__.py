"""What a person looks at: text, tables and pictures of a trace."""
