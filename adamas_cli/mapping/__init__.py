"""Every question of every document: one table of answers, written once however often the run is interrupted."""
