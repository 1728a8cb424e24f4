"""Answers over HTTP and as MCP tools: one model, one thread that owns it, any number of clients."""
