"""What the project's own scripts share; not part of the package."""
