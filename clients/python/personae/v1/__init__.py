"""Version 1 of the personae API, generated."""
