"""What the server decides: each part gets its collaborators as arguments."""
