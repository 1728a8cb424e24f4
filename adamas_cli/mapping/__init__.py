"""Every question about every document: a table of answers, however often the run is interrupted."""
