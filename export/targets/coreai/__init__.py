"""Core AI: programs written operator by operator, compiled and run by Apple's own wheel."""
