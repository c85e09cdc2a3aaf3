"""`python -m whit`: the command line."""

from whit.cli import main

if __name__ == "__main__":
    main()
