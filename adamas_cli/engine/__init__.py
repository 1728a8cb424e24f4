"""From token ids to events: attention, cache, prefill, decode and sampling."""
