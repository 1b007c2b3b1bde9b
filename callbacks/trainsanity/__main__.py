"""`python -m trainsanity` is the command line, also where no script is on the path."""

from trainsanity.cli import main

if __name__ == "__main__":
    main()
