"""From paths and streams to text: walk, ignore, decode, convert."""
