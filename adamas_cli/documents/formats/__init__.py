"""From files that are not plain text to text in sections: one reader for each format."""
