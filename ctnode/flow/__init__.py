"""The decisions: complete or not, what to run, what to send, when to try again."""
