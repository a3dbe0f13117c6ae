"""What torture.py does to runs and files."""
