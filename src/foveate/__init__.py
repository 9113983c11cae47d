"""foveate: visual-token pruning for stock Hugging Face vision-language models."""
