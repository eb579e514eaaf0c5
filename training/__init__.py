"""How the bundled encoder was made. Not part of the package."""
