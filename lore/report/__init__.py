"""What a run leaves behind: statistics, tables of text, pictures, JSON."""
