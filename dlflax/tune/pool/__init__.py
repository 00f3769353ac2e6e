"""Pool: the trials that train, the rules of who continues, and their workers."""
