"""An HTTP server of OpenAI's protocol over one pruned model, with iteration-level batching."""
