"""What hone accepts and what it hands on: the recipe, the records between stages, the data models at the borders."""
