"""Where words come from: labels of what an AI wrote, and signed manifests of what leaves as a file."""
