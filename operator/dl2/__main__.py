"""`python -m dl2` is the same program as `dl2`."""

from dl2.cli.main import run

if __name__ == "__main__":
    run()
