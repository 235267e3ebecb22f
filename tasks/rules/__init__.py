"""The rules of cleaning: `text`, `redaction`, `targets` and `moments` repair; `language` and `several` judge."""
