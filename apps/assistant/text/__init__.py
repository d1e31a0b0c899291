"""What a message is made of: Markdown blocks, runs of one font, lines in visual order."""
