"""Windows and widgets; the only part that imports Kivy."""
