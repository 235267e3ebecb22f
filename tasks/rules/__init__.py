"""The rules of cleaning: `text`, `personal_data`, `targets` and `moments` repair; `language` and `several` judge."""
