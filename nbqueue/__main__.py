"""`python -m nbqueue` is the command line."""

from nbqueue.cli import main

if __name__ == "__main__":
    main()
