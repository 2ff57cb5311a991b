"""Who does how much, and what is done when that is too much. docs/abuse.md."""
