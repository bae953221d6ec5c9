"""The trainer runtime: runs one trial inside the user's image. Standard library only, Python 3.9 or newer."""
